# SPDX-License-Identifier: Apache-2.0
"""Feature clustering of points in space: each point joins the most similar of the cells around it."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_points
from clusterplug.core.numerics import no_autocast, working_dtype
from clusterplug.functional.features._feature_members import lengths, unit
from clusterplug.functional.features.feature_clustering import FeatureClusters
from clusterplug.functional.features.point_cells import PointCells, cell_means


def cluster_points(
    x: Tensor,
    values: Tensor,
    cells: PointCells,
    *,
    scale: float | Tensor = 1.0,
    straight_through: bool = False,
) -> FeatureClusters:
    r"""Group points around the means of the cells that they lie in and beside.

    As :func:`~clusterplug.functional.cluster_pool` with the cells' means as centers, but a point may join its own
    cell or one of the eight around it in the plan alone: the cost is linear in the number of points.

    Args:
        x: (N, E, D) what points are compared by, in E heads.
        values: (N, E, D') what is averaged.
        cells: As :func:`~clusterplug.functional.point_cells` returns them.
        scale: Factor of the cosine; where it is negative, the least similar wins.
        straight_through: Whether gradients also take points for members of weight 1 + cos - const.

    Returns:
        ``representatives`` (M, E, D'), ``labels`` (N, E) cells, ``similarity`` (N, E): scale times cosine, with
        gradients, and ``counts`` (M, E). Ties go to the own cell, then to the first.

    Raises:
        TypeError: ``x`` or ``values`` are not floating, ``cells`` no :class:`PointCells`.
        ValueError: Their numbers of points or heads differ.

    Source:
        Own; for images Chen et al., "Neural Clustering based Visual Representation Learning", CVPR 2024.

    Example:
        >>> from clusterplug.functional import point_cells
        >>> cells = point_cells(torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0]]))
        >>> values = torch.tensor([[[1.0]], [[3.0]], [[5.0]]])
        >>> cluster_points(torch.ones(3, 1, 2), values, cells).representatives.flatten()
        tensor([2., 5.])
    """
    check_points(x)
    check_points(values, 'values')
    if not isinstance(cells, PointCells):
        raise TypeError(f'cells must be what point_cells returns, got {type(cells).__name__}')
    if x.dim() != 3 or values.dim() != 3 or x.shape[:2] != values.shape[:2] or len(cells.home) != len(x):
        raise ValueError(
            f"x, values and cells must hold (N, E, D), (N, E, D') and N points, got {tuple(x.shape)}, "
            f'{tuple(values.shape)} and {len(cells.home)}'
        )
    dtype = working_dtype(values.dtype)
    with no_autocast(x):
        points, wide = x.to(dtype), values.to(dtype)
        directions = unit(cell_means(points, cells)) * scale
        length = lengths(points)
        with torch.no_grad():
            labels = _most_similar(points, directions, cells)
        flat = labels * x.shape[1] + torch.arange(x.shape[1], device=x.device)
        rows = flat.flatten()
        chosen = directions.flatten(0, 1).index_select(0, rows).view_as(points)
        similarity = (chosen * points).sum(-1) / length
        weights = torch.ones_like(similarity)
        if straight_through and torch.is_grad_enabled():
            weights = weights + (similarity - similarity.detach())
        total = directions.shape[0] * directions.shape[1]
        counts = wide.new_zeros(total).index_add_(0, rows, weights.flatten()).view(directions.shape[:2])
        weighted = wide * weights[..., None] if straight_through else wide
        sums = wide.new_zeros(total, values.shape[-1]).index_add_(0, rows, weighted.flatten(0, 1))
        groups = (cell_means(wide, cells) + sums.view(*counts.shape, wide.shape[-1])) / (1 + counts)[..., None]
    return FeatureClusters(groups.to(values.dtype), labels, similarity, counts.detach())


def spread_clusters(clusters: FeatureClusters) -> Tensor:
    """Give every point (N, E, D') what its clusters stand for."""
    number, heads = clusters.labels.shape
    rows = clusters.labels * heads + torch.arange(heads, device=clusters.labels.device)
    return (
        clusters.representatives.flatten(0, 1)
        .index_select(0, rows.flatten())
        .view(number, heads, clusters.representatives.shape[-1])
    )


def _most_similar(points: Tensor, directions: Tensor, cells: PointCells) -> Tensor:
    """Cell (N, E) with the largest product, candidate by candidate, so that no N x 9 x E x D tensor is needed."""
    labels, best = None, None
    for near in cells.around[cells.home].unbind(1):
        score = (directions.index_select(0, near) * points).sum(-1)
        here = near[:, None].expand_as(score)
        if labels is None or best is None:
            labels, best = here, score
        else:
            better = score > best
            labels, best = torch.where(better, here, labels), torch.where(better, score, best)
    assert labels is not None, 'a cell is around itself'
    return labels
