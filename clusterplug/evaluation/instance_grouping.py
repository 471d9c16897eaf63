# SPDX-License-Identifier: Apache-2.0
"""Objects in a scan: points of a class grouped from above, and how well that agrees with the true objects."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from clusterplug.core.checks import check_choice, check_count, check_number

__all__ = ['PanopticQuality', 'group_instances', 'panoptic_quality']

GROUPINGS = ('components', 'hdbscan', 'perceptual')
_APART = 3.0  # m: what is farther away than this from everything is looked at by itself by 'perceptual'


class PanopticQuality(NamedTuple):
    """Quality of each class, and how many objects were found, invented and missed."""

    classes: np.ndarray  # (C,) int64
    quality: np.ndarray  # (C,) PQ = SQ x RQ, NaN for a class that neither has
    segmentation: np.ndarray  # (C,) SQ, mean IoU of the matched objects
    recognition: np.ndarray  # (C,) RQ, F1 of the matches
    matched: np.ndarray  # (C,) int64
    invented: np.ndarray  # (C,) int64
    missed: np.ndarray  # (C,) int64

    @property
    def mean(self) -> float:
        """Mean quality of the classes that occur."""
        return float(np.nanmean(self.quality)) if np.isfinite(self.quality).any() else float('nan')


def group_instances(
    points: np.ndarray,
    classes: np.ndarray,
    things: Sequence[int],
    method: str = 'components',
    *,
    radius: float = 0.6,
    min_points: int = 10,
    cell_size: float = 0.1,
    estimator: Any = None,
) -> np.ndarray:
    """Group the points of each thing class into objects, seen from above.

    Points are first joined in cells of ``cell_size`` of the plane, so the cost follows the area, not the density.

    Args:
        points: (N, 2 or more) x, y in meters.
        classes: (N,) integers.
        things: classes whose points form objects.
        method: ``'components'``: cells nearer than ``radius`` belong together. ``'hdbscan'``: scikit-learn's, smallest
            cluster of 5 cells, one cluster allowed. ``'perceptual'``: parts 3 m and more from all others, each
            divided by :class:`~clusterplug.estimators.PerceptualClusterer`.
        radius: in meters, of ``'components'``.
        min_points: objects with fewer points are none.
        cell_size: in meters.
        estimator: ``'perceptual'``: another one with ``fit_predict``; default ``PerceptualClusterer()``.

    Returns:
        (N,) int64: number of the object from 1 on, over all classes; 0 for what is none.

    Raises:
        ValueError: Shapes or options do not fit, NaN among the points of a thing class.

    Example:
        >>> points = np.concatenate([np.zeros((20, 2)), np.full((20, 2), 5.0)])
        >>> np.unique(group_instances(points, np.zeros(40, int), [0])).tolist()
        [1, 2]
    """
    points, classes = np.asarray(points, np.float64), np.asarray(classes)
    if points.ndim != 2 or points.shape[1] < 2 or classes.shape != points.shape[:1]:
        raise ValueError(f'points must be (N, 2 or more) and classes (N,), got {points.shape} and {classes.shape}')
    check_choice(method, 'method', GROUPINGS)
    radius, cell_size = check_number(radius, 'radius', above=0), check_number(cell_size, 'cell_size', above=0)
    min_points = check_count(min_points, 'min_points', 1)
    if method == 'perceptual' and estimator is None:
        from clusterplug.estimators import PerceptualClusterer

        estimator = PerceptualClusterer()
    found, number = np.zeros(len(points), np.int64), 0
    for each in things:
        rows = np.flatnonzero(classes == each)
        if not len(rows):
            continue
        plane = points[rows, :2]
        if not np.isfinite(plane).all():
            raise ValueError(f'points must be finite, got NaN or infinity in class {each}; drop them')
        cells, index = np.unique(np.floor(plane / cell_size).astype(np.int64), axis=0, return_inverse=True)
        labels = _group_cells((cells + 0.5) * cell_size, method, radius, estimator)[index.reshape(-1)]
        for label in np.unique(labels[labels >= 0]):
            members = rows[labels == label]
            if len(members) >= min_points:
                number += 1
                found[members] = number
    return found


def panoptic_quality(
    classes: np.ndarray,
    instances: np.ndarray,
    true_classes: np.ndarray,
    true_instances: np.ndarray,
    things: Sequence[int],
    *,
    min_points: int = 10,
) -> PanopticQuality:
    r"""Return the panoptic quality of thing classes in one scan, or several with instance ids that differ.

    .. math:: PQ = \frac{\sum_{(p, g) \in TP} IoU(p, g)}{|TP| + |FP| / 2 + |FN| / 2}, \qquad IoU(p, g) > 1/2.

    Args:
        classes: (N,) predicted classes. instances: (N,) predicted objects, 0 = none.
        true_classes: (N,) true classes. true_instances: (N,) true objects, 0 = none. Points of a true thing class
            with object 0 are ignored, in predicted objects too.
        things: the classes that count.
        min_points: smaller objects are neither missed nor invented.

    Raises:
        ValueError: The arrays differ in shape.

    Source: Kirillov et al., "Panoptic Segmentation", CVPR 2019, arXiv 1801.00868; SemanticKITTI's evaluation.
    **Differs** from SemanticKITTI's: things alone, and the smallest object is an argument (50 points there).

    Example:
        >>> ids = np.repeat([1, 2], 20)
        >>> panoptic_quality(ids * 0, ids, ids * 0, ids, [0]).mean
        1.0
    """
    arrays = [np.asarray(each) for each in (classes, instances, true_classes, true_instances)]
    if any(each.ndim != 1 or each.shape != arrays[0].shape for each in arrays):
        raise ValueError(f'all four arrays must be (N,), got shapes {[each.shape for each in arrays]}')
    classes, instances, true_classes, true_instances = arrays
    ignored = np.isin(true_classes, list(things)) & (true_instances <= 0)
    rows = []
    for each in things:
        ours = np.where((classes == each) & ~ignored, instances, 0)
        theirs = np.where(true_classes == each, true_instances, 0)
        rows.append(_quality(np.maximum(ours, 0), np.maximum(theirs, 0), min_points))
    numbers = np.array(rows, np.float64).reshape(-1, 4)
    overlap, matched, invented, missed = numbers.T
    with np.errstate(invalid='ignore', divide='ignore'):
        segmentation = np.where(matched > 0, overlap / matched, 0.0)
        recognition = matched / (matched + invented / 2 + missed / 2)
    counts = [each.astype(np.int64) for each in (matched, invented, missed)]
    return PanopticQuality(
        np.array(list(things), np.int64), segmentation * recognition, segmentation, recognition, *counts
    )


def _quality(ours: np.ndarray, theirs: np.ndarray, min_points: int) -> tuple[float, int, int, int]:
    """Sum of the IoU of matched objects, and numbers matched, invented, missed."""
    our_ids, our_index, our_sizes = np.unique(ours, return_inverse=True, return_counts=True)
    their_ids, their_index, their_sizes = np.unique(theirs, return_inverse=True, return_counts=True)
    pairs, shared = np.unique(
        our_index.reshape(-1).astype(np.int64) * len(their_ids) + their_index.reshape(-1), return_counts=True
    )
    a, b = pairs // max(len(their_ids), 1), pairs % max(len(their_ids), 1)
    overlap = shared / (our_sizes[a] + their_sizes[b] - shared)
    hit = (our_ids[a] > 0) & (their_ids[b] > 0) & (overlap > 0.5)
    used, met = np.zeros(len(our_ids), bool), np.zeros(len(their_ids), bool)
    used[a[hit]], met[b[hit]] = True, True
    invented = int(((our_ids > 0) & ~used & (our_sizes >= min_points)).sum())
    missed = int(((their_ids > 0) & ~met & (their_sizes >= min_points)).sum())
    return float(overlap[hit].sum()), int(hit.sum()), invented, missed


def _group_cells(cells: np.ndarray, method: str, radius: float, estimator: Any) -> np.ndarray:
    """Label (M,) of each cell, -1 for noise."""
    if method == 'components':
        return _components(cells, radius)
    if method == 'hdbscan':
        from sklearn.cluster import HDBSCAN

        if len(cells) < 6:
            return _components(cells, radius)
        return HDBSCAN(min_cluster_size=5, allow_single_cluster=True, copy=True).fit_predict(cells)
    parts, labels, number = _components(cells, _APART), np.full(len(cells), -1), 0
    for part in range(int(parts.max()) + 1):
        rows = np.flatnonzero(parts == part)
        inner = np.asarray(estimator.fit_predict(cells[rows])) if len(rows) >= 8 else np.zeros(len(rows), np.int64)
        labels[rows] = np.where(inner >= 0, inner + number, -1)
        number += int(inner.max(initial=-1)) + 1
    return labels


def _components(cells: np.ndarray, radius: float) -> np.ndarray:
    """Connected components of cells nearer than ``radius``."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    pairs = cKDTree(cells).query_pairs(radius, output_type='ndarray')
    graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(cells), len(cells)))
    return connected_components(graph, directed=False)[1].astype(np.int64)
