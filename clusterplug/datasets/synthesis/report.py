# SPDX-License-Identifier: Apache-2.0
"""How evenly a set covers the leaves of a tree, and how different its samples are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clusterplug.core.checks import check_count

__all__ = ['Coverage', 'coverage', 'mean_cosine']


class Coverage(NamedTuple):
    """How a set lies in the leaves of a tree.

    Attributes:
        counts: (leaves,) samples of each leaf.
        covered: Share of the leaves that have any.
        entropy: Of the leaves, in nats; the logarithm of their number where all are equally full.
        evenness: Entropy over that logarithm, 1 for one leaf.
        smallest, largest: Samples of the emptiest and of the fullest leaf.
        outside: Samples that belong to no leaf.
    """

    counts: np.ndarray
    covered: float
    entropy: float
    evenness: float
    smallest: int
    largest: int
    outside: int


def coverage(leaf: Sequence[int] | np.ndarray, num_leaves: int) -> Coverage:
    r"""Count samples by leaf: :math:`H = -\sum_l p_l \log p_l`.

    Args:
        leaf: Index of each sample's leaf, -1 for none (``leaf`` of a synthesis, of routed or rebalanced samples).
        num_leaves: Leaves of the tree.

    Raises:
        ValueError: An index that no leaf has.

    Example:
        >>> found = coverage([0, 0, 1, 1, -1], 3)
        >>> found.counts.tolist(), round(found.covered, 3), round(found.entropy, 3), found.outside
        ([2, 2, 0], 0.667, 0.693, 1)
    """
    num_leaves = check_count(num_leaves, 'num_leaves', 1)
    leaf = np.asarray(leaf)
    leaf = leaf.astype(np.int64) if not leaf.size else leaf
    if leaf.ndim != 1 or not np.issubdtype(leaf.dtype, np.integer):
        raise ValueError(f'leaf must be a list of integers, got shape {leaf.shape} of {leaf.dtype}')
    if leaf.size and (leaf.min() < -1 or leaf.max() >= num_leaves):
        raise ValueError(f'leaf must be from -1 to {num_leaves - 1}, got {leaf.min()} to {leaf.max()}')
    counts = np.bincount(leaf[leaf >= 0], minlength=num_leaves)
    share = counts[counts > 0] / max(counts.sum(), 1)
    entropy = float(-(share * np.log(share)).sum()) + 0.0
    evenness = min(entropy / np.log(num_leaves), 1.0) if num_leaves > 1 else 1.0
    return Coverage(
        counts, float((counts > 0).mean()), entropy, float(evenness), int(counts.min()), int(counts.max()),
        int((leaf < 0).sum()),
    )  # fmt: skip


def mean_cosine(vectors: np.ndarray) -> float:
    r"""Mean cosine of all pairs of different rows, lower is more diverse; O(N D), no N x N matrix.

    .. math:: \frac{|\sum_i u_i|^2 - N}{N (N - 1)}, \qquad u_i = x_i / |x_i|

    Args:
        vectors: (N, D), N >= 2, such as embeddings of samples; no row of zeros.

    Raises:
        ValueError: Fewer than two rows, a row of zeros, NaN or infinity.

    Source:
        The diversity measure of Wang et al., arXiv 2503.17195.

    Example:
        >>> round(mean_cosine(np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])), 4)
        0.4714
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) < 2:
        raise ValueError(f'vectors must have shape (N, D) with N >= 2, got {vectors.shape}')
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    if not np.isfinite(largest).all() or not largest.all():
        bad = np.flatnonzero(~np.isfinite(largest[:, 0]) | (largest[:, 0] == 0))
        raise ValueError(f'vectors must be finite and not 0, rows {bad[:5].tolist()} are not; drop them')
    unit = vectors / largest
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    number = len(unit)
    return float((np.square(unit.sum(axis=0)).sum() - number) / (number * (number - 1)))
