# SPDX-License-Identifier: Apache-2.0
"""Objects of a labeled scan: by their instance ids, or where there are none by the gaps between them."""

from typing import NamedTuple

import numpy as np

from clusterplug.core.checks import check_count, check_number

__all__ = ['ScanObject', 'scan_objects']

_NEAR = 5  # points within the radius that make a point part of an object


class ScanObject(NamedTuple):
    """An object of a scan."""

    label: int  # -1 = unlabeled
    rows: np.ndarray  # (n,) of the scan
    center: np.ndarray  # (3,) of its bounding box
    size: np.ndarray  # (3,) of its bounding box


def scan_objects(
    points: np.ndarray,
    labels: np.ndarray,
    instances: np.ndarray | None = None,
    *,
    min_points: int = 20,
    max_size: float | None = 12.0,
    radius: float = 0.6,
) -> list[ScanObject]:
    """Return the objects of a scan, class by class.

    Points of one class and instance id > 0 are one object. Points without id are split where gaps between them are
    wider than ``radius`` (DBSCAN): unlabeled ones always, those of classes only in a scan without any id.

    Args:
        points: (N, 3 or more) x, y, z in meters.
        labels: (N,) int, -1 = unlabeled, below = not looked at.
        instances: (N,) int ids, 0 = none; None = no ids.
        min_points: Objects of fewer points are dropped.
        max_size: Objects that are longer along x or y are dropped: road, buildings; None = no limit.
        radius: In meters.

    Raises:
        ValueError: Shapes that do not fit, options out of range.

    Example:
        >>> x = np.concatenate([np.random.default_rng(0).normal(m, 0.1, (40, 3)) for m in (0.0, 5.0)])
        >>> [len(found.rows) for found in scan_objects(x, np.full(80, -1))]
        [40, 40]
    """
    points, labels = np.asarray(points), np.asarray(labels)
    check_count(min_points, 'min_points', 1)
    if max_size is not None:
        check_number(max_size, 'max_size', 0)
    check_number(radius, 'radius', 0)
    if points.ndim != 2 or points.shape[1] < 3 or labels.shape != points.shape[:1]:
        raise ValueError(f'points must be (N, 3 or more) and labels (N,), got {points.shape} and {labels.shape}')
    ids = np.zeros(len(points), np.int64) if instances is None else np.asarray(instances)
    if ids.shape != labels.shape:
        raise ValueError(f'instances must be {labels.shape} like labels, got {ids.shape}')
    finite = np.isfinite(points[:, :3]).all(1)
    found = []
    for label in np.unique(labels[labels >= -1]):
        mine = (labels == label) & finite
        with_id = np.flatnonzero(mine & (ids > 0))
        groups = _groups(with_id, ids[with_id])
        if label == -1 or not (ids > 0).any():
            without = np.flatnonzero(mine & (ids <= 0))
            groups += _parts(without, points[without, :3], radius)
        for rows in groups:
            low, high = points[rows, :3].min(0), points[rows, :3].max(0)
            if len(rows) >= min_points and (max_size is None or (high - low)[:2].max() <= max_size):
                found.append(ScanObject(int(label), rows, (low + high) / 2, high - low))
    return found


def _groups(rows: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(numbers, kind='stable')
    starts = np.flatnonzero(np.diff(numbers[order])) + 1
    return np.split(rows[order], starts) if len(rows) else []


def _parts(rows: np.ndarray, positions: np.ndarray, radius: float) -> list[np.ndarray]:
    if len(rows) == 0 or radius == 0:
        return []
    from sklearn.cluster import DBSCAN

    numbers = DBSCAN(eps=radius, min_samples=_NEAR).fit_predict(positions)
    return _groups(rows[numbers >= 0], numbers[numbers >= 0])
