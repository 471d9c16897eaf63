# SPDX-License-Identifier: Apache-2.0
"""Which classes share directions: the overlap of their subspaces as a picture."""

import os
from collections.abc import Sequence

import numpy as np

from clusterplug.visualization.class_maps import save_class_map


def save_class_overlap(
    path: str | os.PathLike, overlap: np.ndarray, names: Sequence[str] = (), title: str = ''
) -> None:
    """Draw the overlap of all pairs of classes, those that look alike next to each other.

    Classes are ordered by the leading eigenvector of the overlap. The diagonal, which is 1, is left white, so that the
    colors belong to the pairs.

    Args:
        path: PNG to write, whole or not at all.
        overlap: (K, K), 0 to 1 (``GrassmannHead.confusability()``).
        names: Of the classes; none = their numbers.
        title: Above all.

    Raises:
        ValueError: A shape does not fit, or numbers that are not finite.
        ModuleNotFoundError: matplotlib is missing.
    """
    overlap = np.asarray(overlap, float)
    count = len(overlap)
    if overlap.shape != (count, count) or not count or not np.isfinite(overlap).all():
        raise ValueError(f'overlap must be a square of finite numbers (K, K), got shape {overlap.shape}')
    if len(names) not in (0, count):
        raise ValueError(f'names must be one per class, got {len(names)} for {count} classes')
    names = list(names) or [str(k) for k in range(count)]
    pairs = (overlap + overlap.T) / 2
    np.fill_diagonal(pairs, np.nan)
    centered = np.nan_to_num(pairs - np.nanmean(pairs)) if count > 1 else np.zeros((1, 1))
    order = np.argsort(np.linalg.eigh(centered)[1][:, -1], kind='stable')
    save_class_map(
        path,
        pairs[np.ix_(order, order)],
        [names[k] for k in order],
        title or 'Overlap of class subspaces',
        'mean squared cosine of the principal angles',
    )
