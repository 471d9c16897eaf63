# SPDX-License-Identifier: Apache-2.0
"""Membership of points in clusters: as a 0/1 matrix where centers are few, as indices where they are many."""

from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.numerics import exporting, host_checks_allowed, working_dtype

# Up to so many centers, products with a 0/1 matrix cost less than picking rows (measured on one CPU thread at 24 to 64
# channels), and on accelerators they are deterministic.
MOST_DENSE_CENTERS = 36
# Length below which a vector counts as 0; as torch.nn.functional.normalize.
LEAST_LENGTH = 1e-12
# Sizes of groups in which the largest score is looked for first, and the number of centers from which that pays.
GROUPS = (16, 14, 12, 10, 8, 7, 6, 5)
LEAST_GROUPED = 256
# Number of scores from which a comparison with the largest costs less than a search for its index.
LEAST_COMPARED = 32_768


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


def lengths(x: Tensor) -> Tensor:
    """Euclidean lengths (...) of (..., D), at least 1e-12. A sum of squares is ten times faster than a norm here."""
    return x.square().sum(-1).clamp_min(LEAST_LENGTH**2).sqrt()


def unit(x: Tensor) -> Tensor:
    """Rows (..., D) scaled to length 1; zeros stay zeros."""
    return x / lengths(x)[..., None]


def assign(
    x: Tensor,
    centers: Tensor,
    scale: float | Tensor,
    center_mask: Tensor | None,
    chunk_size: int | None = None,
    source: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Chosen:
    """Return the center with the largest scale * cosine for each point; gradients reach the score.

    Args:
        x: (B, N, D).
        centers: (B, M, D).
        scale: One number.
        center_mask: (B, M) bool, True = may be joined.
        chunk_size: Largest number of similarities to hold at a time (no gradient then); None: all.
        source: y (B, N, D'), weight (D, D') and bias (D,) with x = y @ weight.T + bias: centers are compared with y.
    """
    dtype = working_dtype(x.dtype)
    size = lengths(x.to(dtype))
    directions = unit(centers.to(dtype)) * scale
    if source is None:
        x = x.to(dtype)
    else:  # c (W y + b) = (c W) y + c b
        y, weight, bias = (each.to(dtype) for each in source)
        directions = directions @ torch.cat([weight, bias[:, None]], 1)
        x = torch.nn.functional.pad(y, (0, 1), value=1.0)
    batch, number, _ = x.shape
    most = number if chunk_size is None else max(1, chunk_size // max(1, batch * centers.shape[1]))
    dense = centers.shape[1] <= MOST_DENSE_CENTERS or exporting()
    parts: list[tuple[Tensor, Tensor, Tensor | None]] = []
    for part in x.split(max(1, most), 1) if number else [x]:
        scores = directions @ part.mT
        if center_mask is not None:
            scores = scores.masked_fill(~center_mask[..., None], -torch.inf)
        parts.append(largest_members(scores) if dense else (*first_largest(scores), None))
    best, labels, members = parts[0]
    if len(parts) > 1:
        best, labels = torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts], 1)
        members = torch.cat([part[2] for part in parts if part[2] is not None], 2) if dense else None
    if center_mask is not None:
        best = torch.where(center_mask.any(1, keepdim=True), best, 0)  # -inf where no center may be joined
    return Chosen(labels, best / size, members, centers.shape[1])


def first_largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest of (B, M, N) over M and its index, the lowest of equals, both (B, N).

    Looking for an index costs much more than looking for a value, so where M is large the value is looked for in
    groups first, and the index in the best group.
    """
    number = scores.shape[1]
    group = next((group for group in GROUPS if number % group == 0), None)
    if number < LEAST_GROUPED or group is None or scores.requires_grad or exporting():
        largest = scores.max(1)
        return largest.values, largest.indices
    grouped = scores.unflatten(1, (number // group, group))
    best, place = grouped.amax(2).max(1)
    # rows of one matrix, as picking them is five times faster than gathering along a dimension
    batch, points = best.shape
    first = (torch.arange(batch, device=best.device)[:, None] * number + place * group) * points
    first = first + torch.arange(points, device=best.device)
    rows = first[:, None] + torch.arange(group, device=best.device)[:, None] * points
    inside = scores.flatten().index_select(0, rows.flatten()).view(rows.shape).max(1).indices
    return best, place * group + inside


class _Compare(torch.autograd.Function):
    """Largest (B, N) of (B, M, N) over M, and where it stands (B, M, N), 1 or 0, several times among equals."""

    @staticmethod
    def forward(scores: Tensor) -> tuple[Tensor, Tensor]:
        best = scores.amax(1)
        return best, torch.eq(scores, best[:, None], out=torch.empty_like(scores))

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, gradient: Tensor, _: Tensor | None) -> Tensor:
        return ctx.saved_tensors[0] * gradient[:, None]


def largest_members(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`first_largest`, with the members (B, M, N): 1 at the index, else 0.

    On a CPU, the largest value and a comparison with it cost a third of a search for the index. Where the comparison
    finds several equals or, beside NaN, none, the index is searched for after all.
    """
    eager = host_checks_allowed(scores) and not torch.jit.is_tracing() and not exporting()
    if eager and scores.numel() >= LEAST_COMPARED:
        best, members = _Compare.apply(scores)
        numbers = torch.arange(scores.shape[1], dtype=scores.dtype, device=scores.device)
        counts, sums = (torch.stack([torch.ones_like(numbers), numbers]) @ members).unbind(1)
        if bool((counts == 1).all()):
            return best, sums.long(), members
    best, labels = first_largest(scores)
    return best, labels, one_hot(labels, scores.shape[1], scores.dtype)


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
