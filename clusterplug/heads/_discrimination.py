# SPDX-License-Identifier: Apache-2.0
"""Multi-label discrimination in blocks of classes: two passes over them, and nothing of rows x classes kept."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.distributed import max_over_ranks, sum_over_ranks
from clusterplug.functional.contrast import cosine_margin


class Draw(NamedTuple):
    """Classes that are scored.

    Attributes:
        rows: (S,) ascending rows of the centers, or None: ``number`` rows from ``offset``.
        used: (S,) bool, or None: all.
        position: (N, l) which of the S each label is; S for labels that are not here.
    """

    rows: Tensor | None
    used: Tensor | None
    position: Tensor
    offset: int
    number: int


def discriminate(
    x: Tensor, weight: Tensor, draw: Draw, scale: float, margin: float, block: int, group, sparse: bool
) -> Tensor:
    """Return the loss (N,) of unit rows ``x`` (N, D) against the drawn rows of ``weight`` (K, D)."""
    return _Discriminate.apply(x, weight, draw, scale, margin, block, group, sparse)


class _Discriminate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, draw, scale, margin, block, group, sparse):
        own = x.new_zeros(draw.position.shape)  # cosines with positives of this rank
        peak, total = x.new_zeros(len(x)), x.new_zeros(len(x))
        for start, _, unit in _blocks(weight, draw, block):
            cosines = x @ unit.mT  # the last column is a dummy
            column, inside = _columns(draw.position, start, len(unit) - 1)
            own += torch.where(inside, cosines.gather(1, column), 0.0)
            logits = _negatives(cosines, column, draw, start, scale)
            higher = torch.maximum(peak, logits.amax(1))
            total = total * (peak - higher).exp() + (logits - higher[:, None]).exp().sum(1)
            peak = higher
        here = draw.position < draw.number
        pulls = torch.where(here, -scale * (cosine_margin(own, margin) if margin else own), -torch.inf)
        pull_peak = pulls.amax(1).clamp(min=0)
        peaks = torch.stack([peak, pull_peak])
        totals = torch.stack([total, (pulls - pull_peak[:, None]).exp().sum(1)])
        highest = max_over_ranks(peaks, group)
        totals = sum_over_ranks(totals * (peaks - highest).exp(), group)
        sums = highest + ((-highest).exp() + totals).log()
        ctx.save_for_backward(x, weight, own, sums)
        ctx.options = draw, scale, margin, block, sparse
        return sums.sum(0)

    @staticmethod
    def backward(ctx, grad):
        x, weight, own, sums = ctx.saved_tensors
        draw, scale, margin, block, sparse = ctx.options
        here = draw.position < draw.number
        with torch.enable_grad():
            cosine = own.detach().requires_grad_()
            moved = cosine_margin(cosine, margin) if margin else cosine * 1
            (slope,) = torch.autograd.grad(moved.sum(), cosine)
        pulls = (-scale * moved.detach() - sums[1][:, None]).exp() * (-scale * slope) * grad[:, None]
        pulls = torch.where(here, pulls, 0.0)
        grad_x = torch.zeros_like(x)
        values = weight.new_empty(draw.number, weight.shape[1])
        for start, rows, unit in _blocks(weight, draw, block):
            column, inside = _columns(draw.position, start, len(unit) - 1)
            logits = _negatives(x @ unit.mT, column, draw, start, scale)
            slopes = (logits - sums[0][:, None]).exp_().mul_(scale * grad[:, None])
            slopes.scatter_(1, column, torch.where(inside, pulls, 0.0))
            slopes, unit = slopes[:, :-1], unit[:-1]
            grad_x.addmm_(slopes, unit)
            turned = slopes.mT @ x
            turned -= unit * (unit * turned).sum(1, keepdim=True)
            lengths = rows.norm(dim=1, keepdim=True)
            values[start : start + len(rows)] = turned / torch.where(lengths > 1e-12, lengths, 1.0)  # zeros may turn
        if sparse:
            rows = draw.rows
            if rows is None:
                rows = torch.arange(draw.offset, draw.offset + draw.number, device=x.device)
            grad_weight = torch.sparse_coo_tensor(
                rows[None], values, weight.shape, is_coalesced=True, check_invariants=False
            )
        else:
            grad_weight = torch.zeros_like(weight)
            if draw.rows is None:
                grad_weight[draw.offset : draw.offset + draw.number] = values
            else:
                grad_weight.index_copy_(0, draw.rows, values)
        return grad_x, grad_weight, None, None, None, None, None, None


def _blocks(weight: Tensor, draw: Draw, block: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the start, the drawn centers, and the same with length 1 and one row of zeros after the last."""
    for start in range(0, draw.number, block):
        stop = min(start + block, draw.number)
        if draw.rows is None:
            rows = weight[draw.offset + start : draw.offset + stop]
        else:
            rows = weight[draw.rows[start:stop]]
        yield start, rows, F.pad(F.normalize(rows, dim=1), (0, 0, 0, 1))


def _columns(position: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the column in this block of each label, the dummy for those elsewhere, and which are inside."""
    column = position - start
    inside = (column >= 0) & (column < width)
    return torch.where(inside, column, width), inside


def _negatives(cosines: Tensor, column: Tensor, draw: Draw, start: int, scale: float) -> Tensor:
    """Return the scaled scores (N, C + 1) in the place of ``cosines``; -inf for positives, unused and the dummy."""
    logits = cosines.mul_(scale).scatter_(1, column, -torch.inf)
    logits[:, -1] = -torch.inf
    if draw.used is not None:
        width = logits.shape[1] - 1
        logits[:, :-1].masked_fill_(~draw.used[start : start + width], -torch.inf)
    return logits
