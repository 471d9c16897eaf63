# SPDX-License-Identifier: Apache-2.0
"""Scans and label files as they are on disks: truncated, with returns that are no numbers, without labels to test on.

mmdet3d 1.4.0 says ``cannot reshape array of size 1001 into shape (4)`` for a short point file, fails inside the
voxelisation for a short label file, and trains on shifted labels when the label file is too long. One NaN or inf in a
scan spoils the voxel grid of spconv or all batch norms; here such points are left out together with their labels. A
test split that has no labels is a KeyError there; here it is loaded without.
"""

import copy
import os

import numpy as np

from clusterplug.compat._warn import warn_once
from clusterplug.compat.workaround import Workaround


def _bytes(path: str) -> str:
    return f'{os.path.getsize(path)} bytes' if os.path.isfile(path) else 'an unknown number of bytes'


def _finite_rows(points: np.ndarray, path: str, columns) -> np.ndarray | None:
    """Which rows (N,) are finite in the columns that are used; None if all are."""
    finite = np.isfinite(points[:, columns]).all(1)
    if finite.all():
        return None
    bad = int((~finite).sum())
    if bad == len(finite):
        raise ValueError(
            f'{path} has {bad} points, all with NaN or inf in the columns that are used ({columns}); fetch the file '
            'again, or correct load_dim and use_dim of LoadPointsFromFile'
        )
    warn_once(
        'not finite',
        f'{path} has {bad} of {len(finite)} points with NaN or inf; such points are left out with their labels, here '
        'and in all other scans',
    )
    return finite


def _check_length(path: str, count: int, results: dict) -> None:
    points, finite = results.get('points'), results.get('finite_points')
    wanted = None if points is None else len(points) if finite is None else len(finite)
    if wanted is not None and wanted != count:
        raise ValueError(
            f'{path} has {_bytes(path)} = {count} labels, but {results.get("lidar_path", "its scan")} has '
            f'{wanted} points: one of the two files is truncated or belongs to another scan'
        )


def _load_points(host):
    def load(self, pts_filename):
        size = 4 * self.load_dim
        try:
            points = host(self, pts_filename)
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

    return load


def _finite_points(host):
    """Read and filter first, so that what the host computes from all points (heights) is not spoilt."""

    def transform(self, results):
        path = results['lidar_points']['lidar_path']
        points = self._load_points(path).reshape(-1, self.load_dim)
        finite = _finite_rows(points, path, self.use_dim)
        if finite is not None:
            points = points[finite]
            results['finite_points'] = finite
        reader = copy.copy(self)
        reader._load_points = lambda _: points
        return host(reader, results)

    return transform


def _masks(host, key: str, path_key: str, needed: bool):
    """Load labels of one kind, compare their number with the points, and leave out those of points that are no more."""

    def load(self, results):
        if needed and path_key not in results:
            return _without_labels(results)
        path = results[path_key]
        try:
            results = host(self, results)
        except ValueError as error:
            raise ValueError(f'{path} has {_bytes(path)}, not a whole number of labels: it is truncated') from error
        _check_length(path, len(results[key]), results)
        finite = results.get('finite_points')
        if finite is not None:
            results[key] = results[key][finite]
            if key in (results.get('eval_ann_info') or {}):
                results['eval_ann_info'][key] = results[key]
        return results

    return load


def _without_labels(results: dict) -> dict:
    scan = results.get('lidar_path', results.get('sample_idx', 'a scan'))
    if 'eval_ann_info' not in results:
        raise ValueError(
            f'{scan} has no labels in its info file, which training needs; prepare it as --train or --val with '
            'tools/prepare_semantickitti.py, or name it in the test data loader alone'
        )
    warn_once('no labels', f'{scan} has no labels: it is predicted, but not evaluated')
    return results


def patch(module):
    """Check, filter and align in ``LoadPointsFromFile`` and ``LoadAnnotations3D``."""
    points, labels = module.LoadPointsFromFile, module.LoadAnnotations3D
    semantic = _masks(labels._load_semantic_seg_3d, 'pts_semantic_mask', 'pts_semantic_mask_path', needed=True)
    instance = _masks(labels._load_masks_3d, 'pts_instance_mask', 'pts_instance_mask_path', needed=False)
    host_panoptic = labels._load_panoptic_3d

    def _load_panoptic_3d(self, results):
        path = results['pts_panoptic_mask_path']
        results = host_panoptic(self, results)
        _check_length(path, len(results['pts_semantic_mask']), results)
        finite = results.get('finite_points')
        for key in ('pts_semantic_mask', 'pts_instance_mask') if finite is not None else ():
            results[key] = results[key][finite]
            if key in (results.get('eval_ann_info') or {}):
                results['eval_ann_info'][key] = results[key]
        return results

    return [
        (points, '_load_points', _load_points(points._load_points)),
        (points, 'transform', _finite_points(points.transform)),
        (labels, '_load_semantic_seg_3d', semantic),
        (labels, '_load_masks_3d', instance),
        (labels, '_load_panoptic_3d', _load_panoptic_3d),
    ]


WORKAROUND = Workaround(
    name='truncated_files',
    host='mmdet3d.datasets.transforms.loading',
    patch=patch,
    thread='',
    noted='2026-11, mmdet3d 1.4.0',
    until='mmdet3d checks the size and the values of what it reads',
)
