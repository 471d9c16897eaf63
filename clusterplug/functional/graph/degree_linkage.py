# SPDX-License-Identifier: Apache-2.0
"""Graph degree linkage: agglomerative clustering by the degrees of a sparse graph; and co-association of labelings."""

import math

import torch
from torch import Tensor

from clusterplug.core.checks import (
    check_choice,
    check_count,
    check_finite,
    check_mask,
    check_num_clusters,
    check_points,
)
from clusterplug.core.numerics import working_dtype
from clusterplug.functional.graph._degree_merges import DegreeMerges, chain_labels
from clusterplug.functional.graph.neighbors import knn_graph

__all__ = ['co_association', 'graph_degree_linkage']


@torch.no_grad()
def graph_degree_linkage(
    x: Tensor,
    num_clusters: int,
    *,
    num_neighbors: int = 20,
    num_candidates: int = 5,
    metric: str = 'euclidean',
    labels: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Merge clusters of each set of points by the product of the degrees between them, down to K.

    .. math:: W_{nm} = e^{-d_{nm}^2 / s^2} \; (m \text{ a neighbor of } n), \quad
              s^2 = \frac{1}{N m} \sum d_{nm}^2, \qquad
              A_{ij} = \frac{\mathbf 1^\top W_{ij} W_{ji} \mathbf 1}{|C_i|^2} +
              \frac{\mathbf 1^\top W_{ji} W_{ij} \mathbf 1}{|C_j|^2}

    It starts from the connected parts of the graph of nearest neighbors (from single points where those are fewer
    than K), and merges the cluster i that maximizes
    :math:`A_{(1)} + \frac{1}{c - 1} \sum_{k=2}^{c} (A_{(1)} - A_{(k)})` over its sorted affinities, c =
    ``num_candidates``, with the nearest of its neighbors. All sums are exact and in float64. Where no affinity is left
    (parts of the graph that nothing joins), the clusters whose merge adds the least to the sum of squares merge.

    Args:
        x: (..., N, D), floating, computed in fp32 at least.
        num_clusters: K, 1 <= K <= N.
        num_neighbors: m, 1 <= m <= N - 1, of the graph.
        num_candidates: c >= 1; 1 takes the largest affinity alone.
        metric: A metric of :func:`pairwise_distances`, for the graph.
        labels: (..., N) int64, clusters to start from instead of the connected parts.
        mask: (..., N) bool, True = valid.

    Returns:
        (..., N) int64 labels, numbered in the order of each cluster's first point; -1 for masked points. The order
        of the points plays no part, except where affinities tie. A problem with fewer valid points than K has one
        cluster for each. Time is O(N m log N) and that of the graph; on other devices the merges run on the host.

    Raises:
        TypeError: ``x`` is not floating, ``labels`` not integer, ``mask`` not bool.
        ValueError: A wrong shape, K or m out of range, fewer clusters in ``labels`` than K, a valid point that is NaN
            or infinite.

    Source: Zhang, Wang, Zhao and Tang, "Graph Degree Linkage", ECCV 2012; merge criterion as in Yang, Parikh and
    Batra, JULE, CVPR 2016 (jwyang/JULE.torch, MIT). **Differs from the authors' code**: the sums of the merged
    cluster are exact, theirs approximate; a priority queue instead of a search of all pairs; the criterion does not
    switch below 100 clusters.

    Example:
        >>> x = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.3]])
        >>> graph_degree_linkage(x, 2, num_neighbors=2).tolist()
        [0, 0, 0, 1, 1, 1]
    """
    check_points(x)
    check_num_clusters(num_clusters, x.shape[-2])
    check_count(num_candidates, 'num_candidates', 1)
    check_choice(metric, 'metric', ('euclidean', 'cosine'))
    check_mask(mask, x.shape[:-1], x.device)
    check_finite(x, mask=mask)
    num_points = x.shape[-2]
    if num_points > 1:
        check_count(num_neighbors, 'num_neighbors', 1)
        if num_neighbors > num_points - 1:
            raise ValueError(
                f'num_neighbors must be at most N - 1 = {num_points - 1}, got {num_neighbors}; ask for fewer neighbors'
            )
    batch = math.prod(x.shape[:-2])
    points = x.detach().to(working_dtype(x.dtype)).reshape(batch, num_points, x.shape[-1])
    masks = None if mask is None else mask.reshape(batch, num_points)
    starts = None if labels is None else _check_labels(labels, x).reshape(batch, num_points)
    found = torch.full((batch, num_points), -1, dtype=torch.int64, device='cpu')
    for number in range(batch):
        valid: slice | Tensor = slice(None) if masks is None else masks[number]
        start = None if starts is None else starts[number][valid]
        part = _cluster(points[number][valid], num_clusters, num_neighbors, num_candidates, metric, start)
        found[number, valid.cpu() if isinstance(valid, Tensor) else valid] = part
    return found.to(x.device).reshape(x.shape[:-1])


def _cluster(x: Tensor, num_clusters, num_neighbors, num_candidates, metric, start: Tensor | None) -> Tensor:
    if len(x) <= 1:
        return torch.zeros(len(x), dtype=torch.int64, device='cpu')
    graph = knn_graph(x, min(num_neighbors, len(x) - 1), mode='distance', metric=metric)
    # In units of the largest distance, so that no square leaves the range.
    distances = graph.weights.double().cpu()
    largest = distances.max()
    squared = (distances / largest if largest > 0 else distances).square()
    width = squared.mean()
    weights = (-squared / width).exp() if width > 0 else torch.ones_like(squared)
    indices = graph.indices.cpu()
    if start is None:
        first = chain_labels(indices[:, 0].tolist())
        if max(first) + 1 < num_clusters:
            first = list(range(len(x)))
    else:
        first = torch.unique(start.cpu(), return_inverse=True)[1].tolist()
        if max(first) + 1 < min(num_clusters, len(x)):
            raise ValueError(
                f'labels must hold at least num_clusters = {num_clusters} clusters to merge, got {max(first) + 1}'
            )
    merges = DegreeMerges(indices.tolist(), weights.tolist(), first, num_candidates)
    done = merges.run(min(num_clusters, len(x)))
    found = torch.tensor(merges.label, device='cpu')
    if not done:
        found = _join_parts(x.double().cpu(), found, num_clusters)
    return _in_order(found)


def _join_parts(x: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """Merge the clusters whose union adds the least to the sum of squares, until ``num_clusters`` are left."""
    labels = torch.unique(labels, return_inverse=True)[1]
    count = int(labels.max()) + 1
    sizes = torch.bincount(labels, minlength=count).double()
    spread = (x - x.mean(0)).abs().max()
    x = (x - x.mean(0)) / (spread if spread > 0 else 1.0)
    means = torch.zeros(count, x.shape[1], dtype=x.dtype, device='cpu').index_add_(0, labels, x) / sizes[:, None]
    cost = torch.cdist(means, means).square() * (sizes[:, None] * sizes / (sizes[:, None] + sizes))
    cost.fill_diagonal_(math.inf)
    for _ in range(count - num_clusters):
        kept, gone = divmod(int(cost.argmin()), len(cost))
        total = sizes[kept] + sizes[gone]
        means[kept] = (sizes[kept] * means[kept] + sizes[gone] * means[gone]) / total
        sizes[kept] = total
        cost[gone] = cost[:, gone] = math.inf
        row = (means - means[kept]).square().sum(1) * (sizes * total / (sizes + total))
        row[torch.isinf(cost[kept])] = math.inf  # itself, and those that are gone
        cost[kept] = cost[:, kept] = row
        labels[labels == gone] = kept
    return labels


def _in_order(labels: Tensor) -> Tensor:
    """Number the clusters in the order of their first points."""
    values, inverse = torch.unique(labels, return_inverse=True)
    first = torch.full((len(values),), len(labels), dtype=torch.int64, device='cpu')
    first.scatter_reduce_(0, inverse, torch.arange(len(labels), device='cpu'), 'amin')
    return first.argsort().argsort()[inverse]


def _check_labels(labels: Tensor, x: Tensor) -> Tensor:
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f'labels must be an integer tensor (..., N), got {got}; convert them with labels.long()')
    if labels.shape != x.shape[:-1]:
        raise ValueError(f'labels must have shape {tuple(x.shape[:-1])}, got {tuple(labels.shape)}')
    return labels


@torch.no_grad()
def co_association(labels: Tensor) -> Tensor:
    r"""Return in which share of several labelings two points have the same label.

    .. math:: M_{nm} = \frac{1}{|V_{nm}|} \sum_{v \in V_{nm}} [l_v(n) = l_v(m)], \qquad
              V_{nm} = \{v : l_v(n) \ge 0, \; l_v(m) \ge 0\}

    Args:
        labels: (..., V, N), integers; negative = this labeling says nothing of the point.

    Returns:
        (..., N, N) fp32, symmetric, diagonal 1. Two points of which no labeling says anything both have 0.

    Raises:
        TypeError: ``labels`` is not an integer tensor.
        ValueError: It has fewer than two dimensions or no labeling.

    Source: Fred and Jain, "Combining Multiple Clusterings Using Evidence Accumulation", 2005.

    Example:
        >>> co_association(torch.tensor([[0, 0, 1], [0, 1, 1]]))
        tensor([[1.0000, 0.5000, 0.0000],
                [0.5000, 1.0000, 0.5000],
                [0.0000, 0.5000, 1.0000]])
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f'labels must be an integer tensor (..., V, N), got {got}; stack them with torch.stack')
    if labels.dim() < 2 or labels.shape[-2] == 0:
        raise ValueError(f'labels must have shape (..., V, N) with V >= 1, got {tuple(labels.shape)}')
    num_points = labels.shape[-1]
    shape = (*labels.shape[:-2], num_points, num_points)
    same = torch.zeros(shape, device=labels.device)
    seen = torch.zeros(shape, device=labels.device)
    for view in labels.long().unbind(-2):  # one view at a time: no V x N x N tensor
        known = view >= 0
        both = known[..., :, None] & known[..., None, :]
        same += (view[..., :, None] == view[..., None, :]) & both
        seen += both
    matrix = same / seen.clamp_min(1)
    matrix.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return matrix
