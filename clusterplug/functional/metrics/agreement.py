# SPDX-License-Identifier: Apache-2.0
"""Agreement of two labelings of the same points: accuracy under the best matching, NMI, adjusted Rand index."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_choice
from clusterplug.functional.metrics.assignment import best_assignment

__all__ = ['adjusted_rand_index', 'clustering_accuracy', 'normalized_mutual_info']

_MEANS: dict[str, Callable[[float, float], float]] = {
    'arithmetic': lambda a, b: (a + b) / 2,
    'geometric': lambda a, b: math.sqrt(a * b),
    'min': min,
    'max': max,
}

# Up to this many entries of a table (32 MB) the matching of dense tables is the faster one.
_DENSE_ENTRIES = 1 << 22


class _Pairs(NamedTuple):
    """The pairs (class, cluster) that occur, P of at most N, on the CPU: memory by them, not by classes x clusters."""

    counts: Tensor  # (P,) int64 points of each pair
    classes: Tensor  # (P,) index of its class
    clusters: Tensor  # (P,) index of its cluster
    class_sizes: Tensor  # (C,) int64
    cluster_sizes: Tensor  # (K,) int64


def clustering_accuracy(labels_true: Tensor, labels_pred: Tensor) -> float:
    """Return the share of points that agree under the best one-to-one matching of clusters to classes.

    Args:
        labels_true: (N,) integer class of each point; any integers, also negative ones.
        labels_pred: (N,) integer cluster of each point. There may be more or fewer clusters than classes; points of
            a cluster without a class count as wrong.

    Returns:
        A Python float in [0, 1] (the matching runs on the host).

    Raises:
        TypeError: A labeling is not an integer tensor.
        ValueError: The two differ in shape, are not one-dimensional, or hold no point.

    Source: the assignment is exact (Kuhn 1955; shortest augmenting paths, Jonker and Volgenant 1987), by scipy where
    it is installed. Memory follows the pairs of class and cluster that occur (without scipy: the square of the labels
    that are linked by common points).

    Example:
        >>> clustering_accuracy(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 3, 5]))
        0.75
    """
    pairs = _pairs(labels_true, labels_pred)
    if len(pairs.counts) == 0:
        raise ValueError('labels_true and labels_pred must hold at least one point, got none')
    return _most_agreeing(pairs) / int(pairs.class_sizes.sum())


def normalized_mutual_info(labels_true: Tensor, labels_pred: Tensor, *, average: str = 'arithmetic') -> float:
    """Return the mutual information of two labelings divided by a mean of their entropies.

    Args:
        labels_true: (N,) integer class of each point.
        labels_pred: (N,) integer cluster of each point.
        average: Mean of the two entropies: 'arithmetic', 'geometric', 'min' or 'max'.

    Returns:
        A Python float in [0, 1]. 1 if both labelings have a single label or hold no point.

    Raises:
        TypeError: A labeling is not an integer tensor.
        ValueError: The two differ in shape or are not one-dimensional; an unknown ``average``.

    Source: Strehl and Ghosh 2002; equal to scikit-learn's ``normalized_mutual_info_score``.

    Example:
        >>> normalized_mutual_info(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 3, 3]))
        1.0
    """
    check_choice(average, 'average', _MEANS)
    pairs = _pairs(labels_true, labels_pred)
    if len(pairs.class_sizes) <= 1 and len(pairs.cluster_sizes) <= 1:
        return 1.0
    num_points = int(pairs.class_sizes.sum())
    shared, rows, cols = (each.double() / num_points for each in (pairs.counts, *pairs[3:]))
    chance = rows.log()[pairs.classes] + cols.log()[pairs.clusters]
    information = (shared * (shared.log() - chance)).sum().item()
    if information <= torch.finfo(torch.float64).eps:
        return 0.0
    normalizer = _MEANS[average](-(rows * rows.log()).sum().item(), -(cols * cols.log()).sum().item())
    return min(information / normalizer, 1.0)


def adjusted_rand_index(labels_true: Tensor, labels_pred: Tensor) -> float:
    """Return the share of agreeing pairs of points, corrected so that random labelings have 0 on average.

    Args:
        labels_true: (N,) integer class of each point.
        labels_pred: (N,) integer cluster of each point.

    Returns:
        A Python float in [-0.5, 1]. 1 if both labelings are all-equal or all-different, or hold no point.

    Raises:
        TypeError: A labeling is not an integer tensor.
        ValueError: The two differ in shape or are not one-dimensional.

    Source: Hubert and Arabie 1985; equal to scikit-learn's ``adjusted_rand_score``, in exact integers.

    Example:
        >>> adjusted_rand_index(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 2])) == 4 / 7
        True
    """
    pairs = _pairs(labels_true, labels_pred)
    n = int(pairs.class_sizes.sum())
    together, in_class, in_cluster = (int(each.square().sum()) for each in (pairs.counts, *pairs[3:]))
    both = together - n
    only_class, only_cluster = in_class - together, in_cluster - together
    neither = n * n - together - only_class - only_cluster
    if only_class == 0 and only_cluster == 0:
        return 1.0
    # Python integers: the products exceed 64 bits from about 50,000 points on
    return (
        2.0 * (both * neither - only_class * only_cluster)
        / ((both + only_class) * (only_class + neither) + (both + only_cluster) * (only_cluster + neither))
    )  # fmt: skip


def _pairs(labels_true: Tensor, labels_pred: Tensor) -> _Pairs:
    """Return how often each pair of labels occurs."""
    for name, labels in (('labels_true', labels_true), ('labels_pred', labels_pred)):
        if not isinstance(labels, Tensor):
            raise TypeError(f'{name} must be a torch.Tensor, got {type(labels).__name__}')
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f'{name} must have an integer dtype, got {labels.dtype}; convert it with {name}.long()')
        if labels.dim() != 1:
            raise ValueError(f'{name} must have shape (N,), got {tuple(labels.shape)}; score each problem by itself')
    if labels_true.shape != labels_pred.shape:
        raise ValueError(f'labels_pred must have shape {tuple(labels_true.shape)}, got {tuple(labels_pred.shape)}')
    # 64 bits hold every integer type one to one, and the product of two numbers of labels.
    _, true_index, class_sizes = labels_true.cpu().long().unique(return_inverse=True, return_counts=True)
    _, pred_index, cluster_sizes = labels_pred.cpu().long().unique(return_inverse=True, return_counts=True)
    num_clusters = max(len(cluster_sizes), 1)
    found, counts = (true_index * num_clusters + pred_index).unique(return_counts=True)
    return _Pairs(counts, found // num_clusters, found % num_clusters, class_sizes, cluster_sizes)


def _most_agreeing(pairs: _Pairs) -> int:
    """Return the points that agree under the best one-to-one matching of clusters to classes."""
    shape = (len(pairs.class_sizes), len(pairs.cluster_sizes))
    try:
        from scipy.sparse.csgraph import connected_components  # noqa: F401
    except ImportError:
        if math.prod(shape) <= _DENSE_ENTRIES:
            return _by_dense_table(pairs, shape)
        return sum(_by_dense_table(*part) for part in _linked_parts(pairs))
    return _by_dense_table(pairs, shape) if math.prod(shape) <= _DENSE_ENTRIES else _by_sparse_graph(pairs, shape)


def _by_dense_table(pairs: _Pairs, shape: tuple[int, int]) -> int:
    table = torch.zeros(shape, dtype=torch.int64, device='cpu')
    table[pairs.classes, pairs.clusters] = pairs.counts
    rows, cols = best_assignment(-table.double())
    return int(table[rows, cols].sum())


def _by_sparse_graph(pairs: _Pairs, shape: tuple[int, int]) -> int:
    """The same over the pairs that occur.

    scipy matches every row, so each class gets a column of its own and each cluster a row of its own, for 'without a
    partner'; where class and cluster are matched, their two spare nodes match each other (the transposed pairs).
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    num_classes, num_clusters = shape
    size = num_classes + num_clusters
    counts, classes, clusters = pairs[:3]
    # Rows: classes, then spares of clusters. Columns: clusters, then spares of classes. No weight may be 0.
    own_classes, own_clusters = (torch.arange(count, device='cpu') for count in shape)
    rows = torch.cat([classes, num_classes + clusters, own_classes, num_classes + own_clusters])
    cols = torch.cat([clusters, num_clusters + classes, num_clusters + own_classes, own_clusters])
    most = int(counts.max()) + 1
    costs = torch.cat([most - counts, counts.new_full((len(counts) + size,), most)]).double()
    graph = coo_matrix((costs.numpy(), (rows.numpy(), cols.numpy())), shape=(size, size)).tocsr()
    rows, cols = min_weight_full_bipartite_matching(graph)
    return size * most - round(float(graph[rows, cols].sum()))


def _linked_parts(pairs: _Pairs):
    """Yield the pairs of each set of labels that are linked by common points, with the shape of its table."""
    group, before = pairs.classes.clone(), None
    while before is None or not torch.equal(group, before):  # the smallest class of a set spreads over it
        before = group
        for labels, sizes in ((pairs.clusters, pairs.cluster_sizes), (pairs.classes, pairs.class_sizes)):
            least = group.new_full((len(sizes),), len(group)).scatter_reduce(
                0, labels, group, 'amin', include_self=False
            )
            group = least[labels]
    order = group.argsort()
    for part in order.split(group.unique(return_counts=True)[1].tolist()):
        classes, class_index = pairs.classes[part].unique(return_inverse=True)
        clusters, cluster_index = pairs.clusters[part].unique(return_inverse=True)
        shape = (len(classes), len(clusters))
        yield pairs._replace(counts=pairs.counts[part], classes=class_index, clusters=cluster_index), shape
