"""Membership of points in clusters: as a 0/1 matrix where centers are few, as indices where they are many."""

from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.functional._numerics import working_dtype

# Up to so many centers, products with a 0/1 matrix cost less than picking rows (measured on one CPU thread at 24 to 64
# channels), and on accelerators they are deterministic.
MOST_DENSE_CENTERS = 36
# Length below which a vector counts as 0; as torch.nn.functional.normalize.
LEAST_LENGTH = 1e-12
# Sizes of groups in which the largest score is looked for first, and the number of centers from which that pays.
GROUPS = (16, 14, 12, 10, 8, 7, 6, 5)
LEAST_GROUPED = 256


class Chosen(NamedTuple):
    """The center that each of (B, N) points has joined.

    Attributes:
        labels: (B, N) int64.
        score: (B, N) scale times cosine, fp32 or fp64.
        members: (B, M, N) 0/1 in the type of the score, or None where indices are to be used.
        num_centers: M.
    """

    labels: Tensor
    score: Tensor
    members: Tensor | None
    num_centers: int


def exporting() -> bool:
    """Whether a graph without scatter operations is wanted."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def lengths(x: Tensor) -> Tensor:
    """Euclidean lengths (...) of (..., D), at least 1e-12. A sum of squares is ten times faster than a norm here."""
    return x.square().sum(-1).clamp_min(LEAST_LENGTH**2).sqrt()


def unit(x: Tensor) -> Tensor:
    """Rows (..., D) scaled to length 1; zeros stay zeros."""
    return x / lengths(x)[..., None]


def assign(
    x: Tensor, centers: Tensor, scale: float | Tensor, center_mask: Tensor | None, chunk_size: int | None = None
) -> Chosen:
    """Return the center with the largest scale * cosine for each point; gradients reach the score.

    Args:
        x: (B, N, D).
        centers: (B, M, D).
        scale: One number.
        center_mask: (B, M) bool, True = may be joined.
        chunk_size: Largest number of similarities to hold at a time (no gradient then); None: all.
    """
    dtype = working_dtype(x.dtype)
    x = x.to(dtype)
    directions = unit(centers.to(dtype)) * scale
    batch, number, _ = x.shape
    most = number if chunk_size is None else max(1, chunk_size // max(1, batch * centers.shape[1]))
    parts = []
    for part in x.split(max(1, most), 1) if number else [x]:
        scores = directions @ part.mT
        if center_mask is not None:
            scores = scores.masked_fill(~center_mask[..., None], -torch.inf)
        parts.append(first_largest(scores))
    best, labels = parts[0] if len(parts) == 1 else (torch.cat(each, 1) for each in zip(*parts))
    if center_mask is not None:
        best = torch.where(center_mask.any(1, keepdim=True), best, 0)  # -inf where no center may be joined
    members = None
    if centers.shape[1] <= MOST_DENSE_CENTERS or exporting():
        members = one_hot(labels, centers.shape[1], dtype)
    return Chosen(labels, best / lengths(x), members, centers.shape[1])


def first_largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest of (B, M, N) over M and its index, the lowest of equals, both (B, N).

    Looking for an index costs much more than looking for a value, so where M is large the value is looked for in
    groups first, and the index in the best group.
    """
    number = scores.shape[1]
    group = next((group for group in GROUPS if number % group == 0), None)
    if number < LEAST_GROUPED or group is None or scores.requires_grad or exporting():
        return tuple(scores.max(1))
    grouped = scores.unflatten(1, (number // group, group))
    best, place = grouped.amax(2).max(1)
    inside = grouped.gather(1, place[:, None, None].expand(-1, 1, group, -1))[:, 0].max(1).indices
    return best, place * group + inside


def one_hot(labels: Tensor, num_centers: int, dtype: torch.dtype) -> Tensor:
    """(B, M, N) 0/1."""
    if exporting():
        return (labels[:, None] == torch.arange(num_centers, device=labels.device)[:, None]).to(dtype)
    members = torch.zeros(len(labels), num_centers, labels.shape[1], dtype=dtype, device=labels.device)
    return members.scatter_(1, labels[:, None], 1)


def counts_and_sums(
    chosen: Chosen, values: Tensor, weights: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return members (B, M), weight (B, M) and weighted sum of values (B, M, D') of each cluster.

    Args:
        chosen: Of M centers and N points.
        values: (B, N, D'), 0 outside the mask.
        weights: (B, N), 0 outside the mask, or None for 1.
        mask: (B, N) bool or None.
    """
    dtype = working_dtype(values.dtype)
    values = values.to(dtype)
    if chosen.members is not None:
        members = chosen.members.to(dtype) if mask is None else chosen.members.to(dtype) * mask[:, None]
        weighted = members if weights is None else members * weights.to(dtype)[:, None]
        counts = members.sum(-1)
        return counts, counts if weights is None else weighted.sum(-1), weighted @ values
    rows = _rows(chosen).flatten()
    total = len(values) * chosen.num_centers
    ones = values.new_ones(rows.shape) if mask is None else mask.flatten().to(dtype)
    counts = values.new_zeros(total).index_add_(0, rows, ones).view(-1, chosen.num_centers)
    mass = counts
    if weights is not None:
        values = values * weights.to(dtype)[..., None]
        mass = values.new_zeros(total).index_add_(0, rows, weights.to(dtype).flatten()).view(counts.shape)
    sums = values.new_zeros(total, values.shape[-1]).index_add_(0, rows, values.flatten(0, 1))
    return counts, mass, sums.view(*counts.shape, values.shape[-1])


def spread_to_members(groups: Tensor, chosen: Chosen, similarity: Tensor) -> Tensor:
    """Return (B, N, D'): the group (B, M, D') of each point times its similarity (B, N)."""
    if chosen.members is not None:
        shares = chosen.members.to(groups.dtype) * similarity.to(groups.dtype)[:, None]
        return (groups.mT @ shares).mT
    picked = groups.flatten(0, 1).index_select(0, _rows(chosen).flatten()).view(*chosen.labels.shape, groups.shape[-1])
    return picked * similarity.to(groups.dtype)[..., None]


def _rows(chosen: Chosen) -> Tensor:
    """Row (B, N) of each point's cluster among all B M."""
    batch = torch.arange(len(chosen.labels), device=chosen.labels.device)[:, None]
    return chosen.labels + batch * chosen.num_centers
