"""A truncated point or label file is named with its byte counts: mmdet3d reports a numpy shape, or nothing at all.

mmdet3d 1.4.0 says ``cannot reshape array of size 1001 into shape (4)`` for a short point file, fails inside the
voxelisation for a short label file, and trains on shifted labels when the label file is too long.
"""

import os

from clusterplug.compat._patch import Workaround


def _bytes(path: str) -> str:
    return f'{os.path.getsize(path)} bytes' if os.path.isfile(path) else 'an unknown number of bytes'


def patch(module):
    """Check sizes after ``LoadPointsFromFile`` and ``LoadAnnotations3D`` have read a file."""
    host_points = module.LoadPointsFromFile._load_points
    host_labels = module.LoadAnnotations3D._load_semantic_seg_3d

    def _load_points(self, pts_filename):
        size = 4 * self.load_dim
        try:
            points = host_points(self, pts_filename)
            if points.size and points.size % self.load_dim == 0:
                return points
        except ValueError as error:  # numpy: not a whole number of floats
            if pts_filename.endswith('.npy'):
                raise
            cause = error
        else:
            cause = None
        raise ValueError(
            f'{pts_filename} has {_bytes(pts_filename)}, which is not a multiple of {size} ({self.load_dim} float32 '
            f'values a point) above zero: the file is truncated or empty, or load_dim={self.load_dim} is wrong'
        ) from cause

    def _load_semantic_seg_3d(self, results):
        path = results['pts_semantic_mask_path']
        try:
            results = host_labels(self, results)
        except ValueError as error:
            raise ValueError(f'{path} has {_bytes(path)}, not a whole number of labels: it is truncated') from error
        labels, points = results['pts_semantic_mask'], results.get('points')
        if points is not None and len(points) != len(labels):
            raise ValueError(
                f'{path} has {_bytes(path)} = {len(labels)} labels, but {results.get("lidar_path", "its scan")} has '
                f'{len(points)} points: one of the two files is truncated or belongs to another scan'
            )
        return results

    return [
        (module.LoadPointsFromFile, '_load_points', _load_points),
        (module.LoadAnnotations3D, '_load_semantic_seg_3d', _load_semantic_seg_3d),
    ]


WORKAROUND = Workaround(
    name='truncated_files',
    host='mmdet3d.datasets.transforms.loading',
    patch=patch,
    thread='',
    noted='2026-11, mmdet3d 1.4.0',
    until='mmdet3d checks the size of what it reads',
)
