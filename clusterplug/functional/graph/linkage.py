# SPDX-License-Identifier: Apache-2.0
"""Batched agglomerative clustering for small N: the tree of merges, and cuts through it."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_finite, check_mask, check_num_clusters, check_points
from clusterplug.core.numerics import exact_products, host_checks_allowed
from clusterplug.core.origin import power_of_two
from clusterplug.functional.distance import check_metric, check_square, self_distances
from clusterplug.functional.graph._linkage_host import scipy_installed, scipy_trees
from clusterplug.functional.graph._merges import reciprocal_merges, spanning_tree
from clusterplug.functional.kmedoids import problems_at_once

METHODS = ('single', 'complete', 'average', 'ward')


class LinkageTree(NamedTuple):
    """The N - 1 merges of each problem, lowest first.

    Attributes:
        children: (..., N - 1, 2) int64, the two nodes of a merge: points are 0 .. N - 1, merge t makes node N + t.
        heights: (..., N - 1) distance at which they merge, never falling.
        sizes: (..., N - 1) int64, points below the new node.
        mask: (..., N) bool, the valid points. A problem with n of them has n - 1 merges; the rest of ``children``
            is -1, of ``heights`` inf, of ``sizes`` 0.
    """

    children: Tensor
    heights: Tensor
    sizes: Tensor
    mask: Tensor


@torch.no_grad()
def linkage(
    x: Tensor, *, method: str = 'average', metric: str = 'euclidean', mask: Tensor | None = None
) -> LinkageTree:
    """Merge the two nearest clusters of each set of points, again and again, until one is left.

    The distance between clusters is the smallest (``'single'``), the largest (``'complete'``) or the mean
    (``'average'``) of the distances between their points, or the growth of the sum of squares,
    sqrt(2 |a| |b| / (|a| + |b|)) times the distance of the means (``'ward'``). Single linkage is a minimum spanning
    tree; the others merge all pairs of mutual nearest neighbors at once, which gives the same tree as one merge
    after the other in about log N rounds. On the CPU scipy builds the tree where it is installed, from float64
    differences in up to 32 dimensions. Equal distances are legal; which of them merges first is not defined.

    Args:
        x: (..., N, D) points of any floating type, computed in fp32 at least, or (..., N, N) distances.
        method: ``'single'``, ``'complete'``, ``'average'`` or ``'ward'``.
        metric: ``'euclidean'``, ``'cosine'`` or ``'precomputed'``; ``'ward'`` needs Euclidean distances.
        mask: (..., N) bool, True = valid.

    Returns:
        LinkageTree(children, heights, sizes, mask), as the matrix of ``scipy.cluster.hierarchy.linkage`` in parts.
        Heights are fp32, or fp64 for fp64 input. Memory: about four N x N matrices per problem, for as many
        problems at once as fit in 64 MB (CPU) or 1 GB a matrix; with scipy in up to 32 dimensions N² / 2 numbers of
        one problem.

    Raises:
        TypeError: If ``x`` is not floating or ``mask`` not bool.
        ValueError: If an option is unknown, ``'ward'`` meets ``'cosine'``, or a valid point is NaN or infinite.

    Source:
        Müllner, "Modern hierarchical, agglomerative clustering algorithms", 2011, section 2 (update rules); Murtagh,
        "A survey of recent advances in hierarchical clustering algorithms", 1983 (mutual nearest neighbors).
        **Differs** from scipy only where distances tie.

    Example:
        >>> import torch
        >>> tree = linkage(torch.tensor([[0.0], [1.0], [5.0], [7.0]]), method='single')
        >>> tree.children.tolist(), tree.heights.tolist(), tree.sizes.tolist()
        ([[0, 1], [2, 3], [4, 5]], [1.0, 2.0, 4.0], [2, 2, 4])
    """
    if method not in METHODS:
        raise ValueError(f'method must be one of {", ".join(METHODS)}, got {method!r}')
    check_metric(metric)
    if method == 'ward' and metric == 'cosine':
        raise ValueError(
            "method='ward' needs Euclidean distances, got metric='cosine'; normalize x and use 'euclidean'"
        )
    check_points(x)
    check_square(x, metric)
    check_mask(mask, x.shape[:-1], x.device)
    check_finite(x, mask=mask)
    batch_shape, num_points = x.shape[:-2], x.shape[-2]
    points = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
    flat_mask = None if mask is None else mask.reshape(len(points), num_points)
    if mask is None:
        mask = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
    step = problems_at_once(len(points), num_points, x.device)
    chunks = []
    with exact_products(x):
        for start in range(0, max(1, len(points)), step):  # an empty batch, too, is one part
            part = slice(start, start + step)
            part_mask = None if flat_mask is None else flat_mask[part]
            if num_points > 1 and host_checks_allowed(x) and scipy_installed():
                chunks.append(scipy_trees(points[part], method, metric, part_mask))
            else:
                distances = self_distances(points[part], metric, part_mask)
                pairs, heights = _merges(distances, method, part_mask)
                chunks.append(_number(pairs, heights, mask.reshape(-1, num_points)[part]))
    parts = [torch.cat(values) for values in zip(*chunks)]
    return LinkageTree._make((*(part.reshape((*batch_shape, *part.shape[1:])) for part in parts), mask))


def _merges(distances: Tensor, method: str, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if distances.shape[-1] == 1:
        return distances.new_zeros((len(distances), 0, 2)).long(), distances.new_zeros((len(distances), 0))
    if method == 'single':
        return spanning_tree(distances, mask)
    if method == 'complete':
        return reciprocal_merges(distances, method, mask)
    unit = power_of_two(distances.amax((-2, -1)))[:, None]  # sums and squares stay in range
    distances.div_(unit[..., None])
    if method == 'average':
        pairs, heights = reciprocal_merges(distances, method, mask)
    else:
        pairs, heights = reciprocal_merges(distances.square_(), method, mask)
        heights = heights.sqrt()
    return pairs, heights * unit


def _number(pairs: Tensor, heights: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the merges by height and replace their points by nodes."""
    num_problems, num_points = mask.shape
    heights, order = heights.sort(dim=-1, stable=True)  # merges at one height stay in the order of the chain
    pairs = pairs.gather(1, order[..., None].expand(-1, -1, 2))
    node = torch.arange(num_points, device=mask.device).expand(num_problems, -1)
    children, sizes = torch.full_like(pairs, -1), torch.zeros_like(order)
    exists = torch.arange(num_points - 1, device=mask.device) < mask.sum(-1, keepdim=True) - 1
    for step in range(num_points - 1):
        pair = node.gather(-1, pairs[:, step].clamp_max(num_points - 1)).sort(-1).values
        inside = ((node == pair[:, :1]) | (node == pair[:, 1:])) & exists[:, step, None]
        node = node.masked_fill(inside, num_points + step)
        children[:, step] = torch.where(exists[:, step, None], pair, -1)
        sizes[:, step] = inside.sum(-1)
    return children, heights.masked_fill(~exists, torch.inf), sizes


@torch.no_grad()
def cut_linkage(tree: LinkageTree, num_clusters: int) -> Tensor:
    """Cut each tree into K clusters by leaving out its K - 1 highest merges.

    Args:
        tree: The result of :func:`linkage`.
        num_clusters: K, 1 <= K <= N. A problem with fewer valid points has one cluster for each.

    Returns:
        (..., N) int64 labels, numbered in the order of each cluster's first point; -1 for masked points.

    Raises:
        ValueError: If K is out of range.

    Example:
        >>> import torch
        >>> cut_linkage(linkage(torch.tensor([[7.0], [0.0], [1.0], [5.0]])), 2).tolist()
        [0, 1, 1, 0]
    """
    check_num_clusters(num_clusters, tree.mask.shape[-1])
    position = torch.arange(tree.heights.shape[-1], device=tree.heights.device)
    return label_parts(tree, position < tree.mask.sum(-1, keepdim=True) - num_clusters)


@torch.no_grad()
def cut_linkage_at(tree: LinkageTree, height: float) -> Tensor:
    """Cut each tree so that no merge is higher than ``height``.

    Args:
        tree: The result of :func:`linkage`.
        height: In the unit of ``tree.heights``; a merge at exactly this height is done.

    Returns:
        (..., N) int64 labels as of :func:`cut_linkage`; their number differs between problems.

    Raises:
        ValueError: If ``height`` is NaN.

    Example:
        >>> import torch
        >>> cut_linkage_at(linkage(torch.tensor([[0.0], [1.0], [5.0], [7.0]])), 1.5).tolist()
        [0, 0, 1, 2]
    """
    if height != height:
        raise ValueError('height must be a number, got NaN')
    return label_parts(tree, (tree.heights <= height) & (tree.sizes > 0))


def label_parts(tree: LinkageTree, done: Tensor) -> Tensor:
    """Label the parts that the merges with ``done`` (..., N - 1) leave."""
    batch_shape, num_points = tree.mask.shape[:-1], tree.mask.shape[-1]
    mask = tree.mask.reshape(math.prod(batch_shape), num_points)
    done = done.reshape(len(mask), num_points - 1)
    children = tree.children.reshape(len(mask), num_points - 1, 2)
    num_nodes = 2 * num_points - 1
    # Node `num_nodes` is a dump for the merges that are left out.
    parent = torch.arange(num_nodes + 1, device=mask.device).repeat(len(mask), 1)
    target = torch.where(done[..., None], children, num_nodes)
    new_node = torch.arange(num_points, num_nodes, device=mask.device).expand_as(done)
    parent.scatter_(-1, target.flatten(1), new_node[..., None].expand(-1, -1, 2).flatten(1))
    parent[:, num_nodes] = num_nodes
    for _ in range(max(1, num_points - 1).bit_length()):
        parent = parent.gather(-1, parent)
    root = parent[:, :num_points]
    index = torch.arange(num_points, device=mask.device).expand_as(root)
    first = (
        torch.full_like(parent, num_points)
        .scatter_reduce(-1, root, index.masked_fill(~mask, num_points), 'amin')
        .gather(-1, root)
    )
    rank = ((first == index) & mask).to(torch.int64).cumsum(-1) - 1
    labels = rank.gather(-1, first.clamp_max(num_points - 1)).masked_fill(~mask, -1)
    return labels.reshape((*batch_shape, num_points))
