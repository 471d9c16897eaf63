# SPDX-License-Identifier: Apache-2.0
"""All merges of an agglomerative clustering, found many at a time and for many problems at once."""

import torch
from torch import Tensor

from clusterplug.functional.kmedoids import rows

OVERFLOW = 'distances between clusters overflow; divide x by its largest entry'


def spanning_tree(distances: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the edges of each problem's minimum spanning tree (Prim): the merges of single linkage.

    Args:
        distances: (B, N, N), symmetric.
        mask: (B, N) bool or None.

    Returns:
        Pairs of points (B, N - 1, 2) and heights (B, N - 1), inf for edges that a masked problem does not have.
    """
    num_problems, num_points, _ = distances.shape
    near = distances.new_full((num_problems, num_points), torch.inf)
    outside = torch.ones_like(near, dtype=torch.bool) if mask is None else mask.clone()
    source = torch.zeros_like(near, dtype=torch.int64)
    newest = outside.to(torch.uint8).argmax(-1, keepdim=True)
    pairs, heights = [], []
    for _ in range(num_points - 1):
        outside = outside.scatter(-1, newest, False)
        row = rows(distances, newest).squeeze(1)
        closer = row < near
        near, source = torch.where(closer, row, near), torch.where(closer, newest, source)
        height, newest = near.masked_fill(~outside, torch.inf).min(-1, keepdim=True)
        pairs.append(torch.cat([source.gather(-1, newest), newest], -1))
        heights.append(height)
    return torch.stack(pairs, 1), torch.cat(heights, -1)


def reciprocal_merges(distances: Tensor, method: str, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the merges of each problem, all pairs of mutual nearest neighbors at a time.

    Under complete, average and Ward linkage a union is never nearer to a third cluster than its nearer part was, so
    merging one mutual pair leaves every other mutual pair one, and the tree does not depend on the order. A round
    merges about a third of the clusters, then drops the empty rows: together a few passes over the N x N matrix.
    (Data in which only one pair is mutual in each round, such as gaps that double, need N rounds.)

    Args:
        distances: (B, N, N), symmetric bit for bit, finite; squared for ``'ward'``.
        method: ``'complete'``, ``'average'`` or ``'ward'``.
        mask: (B, N) bool or None.

    Returns:
        Pairs of points (B, N - 1, 2), one from each merged cluster, and heights (B, N - 1), inf for merges that a
        problem with masked points does not have. Each round waits for the device once.
    """
    num_problems, num_points, _ = distances.shape
    device = distances.device
    pairs = torch.zeros((num_problems, num_points, 2), dtype=torch.int64, device=device)
    heights = distances.new_full((num_problems, num_points), torch.inf)
    done = torch.zeros((num_problems, 1), dtype=torch.int64, device=device)
    alive = torch.ones((num_problems, num_points), dtype=torch.bool, device=device) if mask is None else mask
    point = torch.arange(num_points, device=device).expand(num_problems, -1)
    sizes = alive.to(distances.dtype)
    distances = _open(distances, alive)
    while distances.shape[-1] > 1:
        nearest, neighbor = distances.min(-1)
        index = torch.arange(distances.shape[-1], device=device)
        # Of equal neighbors the lowest index counts. That orders all pairs, so the lowest pair is always mutual.
        mutual = (neighbor.gather(-1, neighbor) == index) & (nearest < torch.inf)
        first = mutual & (index < neighbor)
        place = torch.where(first, done + first.cumsum(-1) - 1, num_points - 1)
        heights.scatter_(-1, place, nearest)
        pair = torch.stack([point, point.gather(-1, neighbor)], -1)
        pairs.scatter_(1, place[..., None].expand(-1, -1, 2), pair)
        merges = first.sum(-1, keepdim=True)
        done = done + merges
        alive = alive & ~(mutual & (index > neighbor))
        left, fewest = torch.stack(
            [alive.sum(-1).amax(), ((merges == 0) & (alive.sum(-1, keepdim=True) > 1)).sum()]
        ).tolist()
        if fewest:
            raise ValueError(OVERFLOW)
        kept = alive.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, : max(left, 1)]
        partner = torch.where(first, neighbor, index).gather(-1, kept)
        distances = _unite(distances, kept, partner, nearest, sizes, method)
        sizes = sizes.gather(-1, kept) + torch.where(partner != kept, sizes.gather(-1, partner), 0)
        alive, point = alive.gather(-1, kept), point.gather(-1, kept)
        distances = _open(distances, alive)
    return pairs[:, :-1], heights[:, :-1].masked_fill_(torch.arange(num_points - 1, device=device) >= done, torch.inf)


def _open(distances: Tensor, alive: Tensor) -> Tensor:
    """Put infinity on the diagonal and between clusters that no longer exist."""
    distances = distances.masked_fill(~(alive[:, :, None] & alive[:, None, :]), torch.inf)
    distances.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    return distances


def _unite(distances: Tensor, kept: Tensor, partner: Tensor, height: Tensor, sizes: Tensor, method: str) -> Tensor:
    """Return the distances (B, M', M') between the unions of clusters ``kept`` and ``partner`` (B, M')."""
    first_size, second_size = sizes.gather(-1, kept), sizes.gather(-1, partner)
    between = height.gather(-1, kept)
    united = _union(distances, kept, partner, between, first_size, second_size, sizes, method)
    new_sizes = torch.where(partner == kept, first_size, first_size + second_size)
    united = _union(united.mT.contiguous(), kept, partner, between, first_size, second_size, new_sizes, method)
    return torch.maximum(united, united.mT)


def _union(
    distances: Tensor,
    kept: Tensor,
    partner: Tensor,
    between: Tensor,
    first_size: Tensor,
    second_size: Tensor,
    other_size: Tensor,
    method: str,
) -> Tensor:
    """Return (B, M', C), the distances of unions of rows of ``distances`` (B, M, C), by Lance and Williams' rule."""
    num_columns = distances.shape[-1]
    offset = torch.arange(len(distances), device=kept.device)[:, None] * distances.shape[1]
    flat = distances.flatten(0, 1)
    first = flat.index_select(0, (kept + offset).flatten()).view(*kept.shape, num_columns)
    second = flat.index_select(0, (partner + offset).flatten()).view(*kept.shape, num_columns)
    if method == 'complete':
        return torch.maximum(first, second)
    first_size, second_size = first_size[..., None], second_size[..., None]
    if method == 'average':
        united = (first_size * first + second_size * second) / (first_size + second_size)
    else:
        other_size = other_size[:, None]
        united = (first_size + other_size) * first + (second_size + other_size) * second
        united = (united - other_size * between[..., None]) / (first_size + second_size + other_size)
    # Rounding must not bring a union nearer than its parts; a cluster without a partner stays as it is.
    united = torch.maximum(united, torch.minimum(first, second))
    return torch.where((partner == kept)[..., None], first, united)
