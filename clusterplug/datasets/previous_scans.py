# SPDX-License-Identifier: Apache-2.0
"""Points of the scans before the last one, in the coordinates of the last, with their age."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import BaseTransform

from clusterplug.datasets.scan_poses import read_poses
from clusterplug.registry import TRANSFORMS


@TRANSFORMS.register_module()
class AddPreviousScans(BaseTransform):
    """Put the points of earlier scans of a sequence behind those of the current one.

    Belongs behind ``LoadPointsFromFile`` and ``LoadAnnotations3D`` and before ``PointSegClassMapping``. Earlier scans
    are ``<number - 1>.bin`` and so on beside the current file, as many as exist. The last column of the points becomes
    their age in seconds, 0 for the current scan, whose points stay the first ones. Points of earlier scans with NaN or
    inf are left out.

    Args:
        num_scans: scans in all, the current one included.
        poses: file with the poses, in the folder of the sequence (see :func:`~clusterplug.datasets.scan_poses.
            read_poses`).
        calib: calibration file there, None if the poses are those of the laser.
        load_dim: columns of a point file.
        scan_period: seconds between scans.
        label_previous: give points of earlier scans their labels; False leaves them unlabeled (raw class 0), as in
            the benchmark's evaluation, which asks for the current scan alone.

    Raises:
        ValueError: bad arguments; fewer poses than scans; a file that is cut off.
        FileNotFoundError: no poses, or points without labels.

    Example:
        In a config::

            dict(type='clusterplug.AddPreviousScans', num_scans=3)
    """

    def __init__(
        self,
        num_scans: int = 3,
        poses: str = 'poses.txt',
        calib: str | None = 'calib.txt',
        load_dim: int = 4,
        scan_period: float = 0.1,
        label_previous: bool = True,
    ):
        if not isinstance(num_scans, int) or num_scans < 1:
            raise ValueError(f'num_scans must be an int of at least 1, the current scan included, got {num_scans!r}')
        if not scan_period > 0:
            raise ValueError(f'scan_period must be positive, in seconds, got {scan_period!r}')
        self.num_scans, self.poses, self.calib = num_scans, poses, calib
        self.load_dim, self.scan_period, self.label_previous = load_dim, scan_period, label_previous

    def transform(self, results: dict) -> dict:
        """Extend ``points`` by scans and a column, and the raw labels where they are loaded."""
        current = Path(results['lidar_points']['lidar_path'])
        number, points = int(current.stem), results['points']
        calib = self.calib and str(current.parents[1] / self.calib)
        to_sequence = _poses_of(str(current.parents[1] / self.poses), calib)
        last = _last_scan(str(current.parent))
        if len(to_sequence) <= max(last, number):
            raise ValueError(
                f'{current.parents[1] / self.poses} has {len(to_sequence)} poses, but the scans in {current.parent} go '
                f'up to {max(last, number):06d}, which needs {max(last, number) + 1}; line k belongs to scan k'
            )
        parts = [_with_age(points.tensor, 0.0)]
        labels = [results['pts_semantic_mask']] if 'pts_semantic_mask' in results else None
        for age in range(1, self.num_scans):
            path = current.with_name(f'{number - age:06d}.bin')
            if number < age or not path.is_file():
                continue
            scan, finite = self._read(path, points.tensor.shape[1])
            motion = np.linalg.inv(to_sequence[number]) @ to_sequence[number - age]
            scan[:, :3] = scan[:, :3] @ motion[:3, :3].T + motion[:3, 3]
            parts.append(_with_age(torch.from_numpy(scan).to(points.tensor.dtype), age * self.scan_period))
            if labels is not None:
                raw = self._labels(results, path, len(finite), labels[0].dtype)
                labels.append(raw[finite])
        results['current_points'] = len(points)
        columns = points.tensor.shape[1] + 1
        names = {**(points.attribute_dims or {}), 'age': columns - 1}
        results['points'] = type(points)(torch.cat(parts), points_dim=columns, attribute_dims=names)
        if labels is not None:
            results['pts_semantic_mask'] = np.concatenate(labels)
            if 'eval_ann_info' in results:
                results['eval_ann_info']['pts_semantic_mask'] = results['pts_semantic_mask']
        return results

    def _read(self, path: Path, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Finite points (M, columns) of a file of N, and which of the N they are."""
        size = path.stat().st_size
        if size % (4 * self.load_dim):
            raise ValueError(f'{path} has {size} bytes, which is not a multiple of {4 * self.load_dim}; fetch it again')
        scan = np.fromfile(path, '<f4').reshape(-1, self.load_dim)[:, :columns].astype(np.float64)
        finite = np.isfinite(scan).all(1)
        return scan[finite], finite

    def _labels(self, results: dict, path: Path, count: int, dtype) -> np.ndarray:
        """Raw classes (count,) of an earlier scan."""
        if not self.label_previous:
            table, rule = results.get('seg_label_mapping'), results.get('unknown_labels')
            if table is not None and rule is not None and int(table[0]) != rule['ignore']:
                raise ValueError(
                    f'label_previous=False gives earlier points the raw label 0, which labels_map makes class '
                    f'{int(table[0])}; map 0 to ignore_index ({rule["ignore"]}), or set label_previous=True'
                )
            return np.zeros(count, dtype)
        file = Path(results['pts_semantic_mask_path']).with_name(f'{path.stem}.label')
        if not file.is_file():
            raise FileNotFoundError(f'{file} is missing, the labels of {path}; or set label_previous=False')
        if file.stat().st_size != 4 * count:
            raise ValueError(f'{file} has {file.stat().st_size} bytes, but {count} points need {4 * count}')
        return (np.fromfile(file, '<u4') & 0xFFFF).astype(dtype)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(num_scans={self.num_scans}, poses={self.poses!r}, calib={self.calib!r})'


@lru_cache(maxsize=64)
def _poses_of(path: str, calib: str | None) -> np.ndarray:
    return read_poses(path, calib)


@lru_cache(maxsize=64)
def _last_scan(folder: str) -> int:
    return max((int(path.stem) for path in Path(folder).glob('[0-9]*.bin')), default=-1)


def _with_age(points: torch.Tensor, age: float) -> torch.Tensor:
    return torch.cat([points, torch.full_like(points[:, :1], age)], 1)
