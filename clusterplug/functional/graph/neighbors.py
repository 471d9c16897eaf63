# SPDX-License-Identifier: Apache-2.0
"""Exact nearest-neighbor graphs that store only their edges."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_choice, check_count, check_finite, check_mask, check_number, check_points
from clusterplug.core.numerics import no_autocast, working_dtype
from clusterplug.functional.distance import pairwise_distances

__all__ = ['KNNGraph', 'affinity', 'knn_graph']

MODES = ('connectivity', 'distance', 'heat')
# The neighbor whose distance is the local width (Zelnik-Manor and Perona, 2004).
_LOCAL_NEIGHBOR = 7
# Neighbors that are found faster one by one than by topk on a CPU.
_FEW = 2
# Bytes of the distances that are looked at together on a CPU: they stay in its cache.
_CACHED = 2**20


class KNNGraph(NamedTuple):
    """Directed edges of a sparse graph: row n lists the neighbors of point n, nearest first."""

    indices: Tensor  # (..., N, m) int64
    weights: Tensor  # (..., N, m), 0 = no edge


@torch.no_grad()
def knn_graph(
    x: Tensor,
    num_neighbors: int,
    *,
    mode: str = 'connectivity',
    sigma: float | str = 'local',
    metric: str = 'euclidean',
    mask: Tensor | None = None,
    max_bytes: int = 256 * 2**20,
) -> KNNGraph:
    r"""Return the ``num_neighbors`` nearest other points of every point, exactly, in O(N m) memory.

    .. math:: w_{nm} = 1, \quad d_{nm}, \quad \exp(-d_{nm}^2 / (2 \sigma^2)) \quad \text{or} \quad
              \exp(-d_{nm}^2 / (s_n s_m)) .

    A point is never its own neighbor, also not where points repeat. The graph is directed: m may be a neighbor of n
    without n being one of m.

    Args:
        x: (..., N, D), floating; fp16 and bf16 are computed in fp32.
        num_neighbors: m, 1 <= m <= N - 1.
        mode: Weights: ``'connectivity'`` (1), ``'distance'`` or ``'heat'``.
        sigma: Width of the heat kernel in the unit of ``x``, or ``'local'``: s is the distance of a point to its
            seventh neighbor (the last one in a smaller graph).
        metric: A metric of :func:`pairwise_distances`.
        mask: (..., N) bool, True = valid. Others are nobody's neighbors, and their own edges have weight 0.
        max_bytes: Memory that a block of distances may take.

    Returns:
        ``KNNGraph(indices, weights)``: (..., N, m) int64 and (..., N, m) in fp32 (float64 for float64). Where a
        problem has fewer than m other valid points, the edges that are missing have weight 0.

    Raises:
        TypeError: ``x`` not floating, ``mask`` not bool.
        ValueError: Wrong shape, m outside 1 ... N - 1, an unknown option, NaN or inf in a valid point.

    Source: textbook; local width as in Zelnik-Manor and Perona, "Self-tuning spectral clustering", NeurIPS 2004.
    **Differs from ``sklearn.neighbors.kneighbors_graph``**: batched, masked, on any device, lists instead of a CSR
    matrix.

    Example:
        >>> graph = knn_graph(torch.tensor([[0.0], [1.0], [3.0]]), 1)
        >>> graph.indices.squeeze(-1), graph.weights.squeeze(-1)
        (tensor([1, 0, 1]), tensor([1., 1., 1.]))
    """
    check_points(x, allow_empty=False)
    check_choice(mode, 'mode', MODES)
    check_mask(mask, x.shape[:-1], x.device)
    count = check_count(num_neighbors, 'num_neighbors', 1)
    if count > x.shape[-2] - 1:
        raise ValueError(
            f'num_neighbors must be at most N - 1 = {x.shape[-2] - 1}, got {count}; ask for fewer or give more points'
        )
    width = _check_sigma(sigma) if mode == 'heat' else None
    check_finite(x, mask=mask)
    flat = x.detach().reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
    flat = flat.to(working_dtype(x.dtype))
    valid = None if mask is None else mask.reshape(flat.shape[:2])
    wanted = count if width != 'local' else min(max(count, _LOCAL_NEIGHBOR), x.shape[-2] - 1)
    with no_autocast(x):
        indices, distances = _nearest(flat, wanted, metric, valid, max_bytes)
        weights = _weights(indices[..., :count], distances, mode, width)
    shape = (*x.shape[:-1], count)
    return KNNGraph(indices[..., :count].reshape(shape), weights.reshape(shape))


@torch.no_grad()
def affinity(x: Tensor, *, sigma: float | str = 'local', mask: Tensor | None = None) -> Tensor:
    r"""Return the heat kernel between all pairs of points, with a zero diagonal.

    .. math:: A_{nm} = \exp(-\|x_n - x_m\|^2 / (2 \sigma^2)), \quad A_{nn} = 0 .

    Args:
        x: (..., N, D), floating; computed in fp32 at least.
        sigma: Width in the unit of ``x``, > 0 (:func:`minimum_spanning_scale` finds one), or ``'local'``:
            exp(-d^2 / (s_n s_m)) with s the distance of a point to its seventh neighbor.
        mask: (..., N) bool, True = valid; the others have no edges.

    Returns:
        (..., N, N) in fp32 (float64 for float64), symmetric. For sets whose matrix is too large see
        :func:`knn_graph`.

    Raises:
        TypeError: ``x`` not floating, ``mask`` not bool.
        ValueError: Wrong shape, ``sigma`` not > 0, NaN or inf in a valid point.

    Source: textbook; local width as in :func:`knn_graph`.

    Example:
        >>> affinity(torch.tensor([[0.0], [2.0]]), sigma=1.0)
        tensor([[0.0000, 0.1353],
                [0.1353, 0.0000]])
    """
    check_points(x)
    check_mask(mask, x.shape[:-1], x.device)
    width = _check_sigma(sigma)
    check_finite(x, mask=mask)
    points = x.detach().to(working_dtype(x.dtype))
    if mask is not None:
        points = points.masked_fill(~mask.unsqueeze(-1), 0.0)
    with no_autocast(x):
        distances = pairwise_distances(points)
        if mask is not None:
            distances = distances.masked_fill(~(mask.unsqueeze(-1) & mask.unsqueeze(-2)), math.inf)
        if isinstance(width, str):  # 'local'
            place = min(_LOCAL_NEIGHBOR, x.shape[-2] - 1) + 1  # the point itself comes first
            local = distances.topk(place, -1, largest=False).values
            local = _floored(local.masked_fill(local.isinf(), 0.0).amax(-1))
            scaled = distances / local.unsqueeze(-1)
            weights = (-(scaled * scaled.mT)).exp()
        else:
            weights = (-0.5 * (distances / width).square()).exp()
    weights.diagonal(dim1=-2, dim2=-1).zero_()
    return weights


def _check_sigma(sigma: float | str) -> float | str:
    if isinstance(sigma, str):
        return check_choice(sigma, 'sigma', ('local',), ' or a positive number')
    return check_number(sigma, 'sigma', above=0)


def _nearest(x: Tensor, count: int, metric: str, valid: Tensor | None, max_bytes: int) -> tuple[Tensor, Tensor]:
    """Return indices (B, N, count) of the nearest other points, and their distances (inf where there are too few)."""
    batch, num_points = x.shape[:2]
    indices = torch.empty(batch, num_points, count, dtype=torch.int64, device=x.device)
    distances = torch.empty(batch, num_points, count, dtype=x.dtype, device=x.device)
    if valid is not None:
        x = x.masked_fill(~valid.unsqueeze(-1), 0.0)
    row_bytes = max(1, num_points * x.element_size() * 3)
    rows_at_once = max(1, min(num_points, max_bytes // row_bytes))
    sets_at_once = max(
        1, min(max_bytes, 3 * _CACHED if x.device.type == 'cpu' else max_bytes) // (row_bytes * num_points)
    )
    for first in range(0, batch, sets_at_once):
        part = x[first : first + sets_at_once]
        for start in range(0, num_points, rows_at_once):
            stop = min(start + rows_at_once, num_points)
            whole = stop - start == num_points
            block = pairwise_distances(part[:, start:stop], None if whole else part, metric=metric)
            block.diagonal(start, -2, -1).fill_(math.inf)
            if valid is not None:
                mine = valid[first : first + sets_at_once]
                block.masked_fill_(~(mine[:, start:stop, None] & mine[:, None, :]), math.inf)
            here = slice(first, first + sets_at_once), slice(start, stop)
            _write_smallest(block, distances[here], indices[here])
    return indices, distances


def _write_smallest(block: Tensor, distances: Tensor, indices: Tensor) -> None:
    """Write the smallest numbers of each row of ``block``, which is overwritten, and where they are."""
    count = distances.shape[-1]
    if count > _FEW or block.is_cuda:
        found = block.topk(count, -1, largest=False)
        distances.copy_(found.values)
        indices.copy_(found.indices)
        return
    for column in range(count):
        least = block.min(-1)
        distances[..., column], indices[..., column] = least.values, least.indices
        if column + 1 < count:
            block.scatter_(-1, least.indices.unsqueeze(-1), math.inf)


def _weights(indices: Tensor, distances: Tensor, mode: str, width: float | str | None) -> Tensor:
    count = indices.shape[-1]
    kept = distances[..., :count]
    missing = kept.isinf()
    if mode == 'connectivity':
        weights = torch.ones_like(kept)
    elif mode == 'distance':
        weights = kept
    elif isinstance(width, str):  # 'local'
        local = distances[..., :_LOCAL_NEIGHBOR]
        local = _floored(local.masked_fill(local.isinf(), 0.0).amax(-1))
        of_neighbor = local.gather(-1, indices.flatten(1)).view(indices.shape)
        weights = (-(kept / local.unsqueeze(-1)) * (kept / of_neighbor)).exp()
    else:
        assert width is not None, "mode is 'gaussian'"
        weights = (-0.5 * (kept / width).square()).exp()
    return weights.masked_fill(missing, 0.0)


def _floored(width: Tensor) -> Tensor:
    # points with seven duplicates have width 0: they keep to their duplicates
    return width.clamp_min(torch.finfo(width.dtype).tiny ** 0.5)
