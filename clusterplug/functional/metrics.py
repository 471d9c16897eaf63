"""Agreement of two labelings of the same points: accuracy under the best matching, NMI, adjusted Rand index."""

import math

import torch
from torch import Tensor

__all__ = ['adjusted_rand_index', 'clustering_accuracy', 'normalized_mutual_info']

_MEANS = {
    'arithmetic': lambda a, b: (a + b) / 2,
    'geometric': lambda a, b: math.sqrt(a * b),
    'min': min,
    'max': max,
}


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
    it is installed.

    Example:
        >>> clustering_accuracy(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 3, 5]))
        0.75
    """
    counts = _contingency(labels_true, labels_pred)
    if counts.numel() == 0:
        raise ValueError('labels_true and labels_pred must hold at least one point, got none')
    rows, cols = _best_assignment(-counts.double())
    return counts[rows, cols].sum().item() / counts.sum().item()


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
    if average not in _MEANS:
        raise ValueError(f'average must be one of {", ".join(_MEANS)}, got {average!r}')
    counts = _contingency(labels_true, labels_pred)
    if counts.shape in ((1, 1), (0, 0)):
        return 1.0
    joint = counts.double() / counts.sum()
    rows, cols = joint.sum(1), joint.sum(0)
    cell = joint.nonzero(as_tuple=True)
    shared = joint[cell]
    information = (shared * (shared.log() - (rows[cell[0]] * cols[cell[1]]).log())).sum().item()
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
    counts = _contingency(labels_true, labels_pred)
    n = int(counts.sum())
    together = int(counts.square().sum())
    in_class, in_cluster = int(counts.sum(1).square().sum()), int(counts.sum(0).square().sum())
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


def _contingency(labels_true: Tensor, labels_pred: Tensor) -> Tensor:
    """Return the (classes, clusters) int64 table of counts, over the labels that occur, on the CPU."""
    for name, labels in (('labels_true', labels_true), ('labels_pred', labels_pred)):
        if not isinstance(labels, Tensor):
            raise TypeError(f'{name} must be a torch.Tensor, got {type(labels).__name__}')
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f'{name} must have an integer dtype, got {labels.dtype}; convert it with {name}.long()')
        if labels.dim() != 1:
            raise ValueError(f'{name} must have shape (N,), got {tuple(labels.shape)}; score each problem by itself')
    if labels_true.shape != labels_pred.shape:
        raise ValueError(f'labels_pred must have shape {tuple(labels_true.shape)}, got {tuple(labels_pred.shape)}')
    classes, true_index = labels_true.cpu().unique(return_inverse=True)
    clusters, pred_index = labels_pred.cpu().unique(return_inverse=True)
    flat = torch.bincount(true_index * len(clusters) + pred_index, minlength=len(classes) * len(clusters))
    return flat.view(len(classes), len(clusters))


def _best_assignment(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and column indices of the one-to-one matching of least total ``cost`` (n, m)."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        return _shortest_augmenting_paths(cost)
    rows, cols = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(rows), torch.from_numpy(cols)


def _shortest_augmenting_paths(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The same without scipy: one shortest augmenting path per row, O(n^2 m), vectorised over the columns."""
    if cost.shape[0] > cost.shape[1]:
        cols, rows = _shortest_augmenting_paths(cost.mT)
        return rows, cols
    num_rows, num_cols = cost.shape
    row_of = torch.full((num_cols,), -1)
    row_price, col_price = cost.new_zeros(num_rows), cost.new_zeros(num_cols)
    for start in range(num_rows):
        distance = cost.new_full((num_cols,), math.inf)
        previous, done = torch.full((num_cols,), -1), torch.zeros(num_cols, dtype=torch.bool)
        row, column, lowest = start, -1, 0.0
        while row != -1:
            through = lowest + cost[row] - row_price[row] - col_price
            better = ~done & (through < distance)
            distance, previous = torch.where(better, through, distance), torch.where(better, column, previous)
            column = int(distance.masked_fill(done, math.inf).argmin())
            lowest, done[column] = float(distance[column]), True
            row = int(row_of[column])
        seen = done & (row_of >= 0)
        row_price[row_of[seen]] += lowest - distance[seen]
        row_price[start] += lowest
        col_price[done] -= lowest - distance[done]
        while column != -1:
            before = int(previous[column])
            row_of[column] = start if before == -1 else row_of[before]
            column = before
    cols = (row_of >= 0).nonzero().flatten()
    return row_of[cols], cols
