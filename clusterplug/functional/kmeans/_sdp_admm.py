# SPDX-License-Identifier: Apache-2.0
"""ADMM for semidefinite programs over memberships: affine, non-negative and positive semidefinite parts in turn."""

from typing import NamedTuple

import torch
from torch import Tensor

# Over-relaxation: a step beyond the projection, which needs about a third fewer iterations.
_RELAX = 1.7
# Penalty at the start, for affinities of the norm of a membership; from there it follows the residuals.
_RHO, _ADAPT_EVERY, _LARGEST_FACTOR = 0.3, 15, 5.0


class Solution(NamedTuple):
    """Blocks of the relaxed membership, the multipliers of their signs, and how it went."""

    blocks: Tensor  # (B, n, n), rows of their sum are 1 and traces as asked, exactly
    bound: Tensor  # no feasible membership has a larger value
    num_iters: int
    residual: float


def project(blocks: Tensor, trace: float) -> Tensor:
    """Nearest symmetric blocks (B, n, n) whose sum has rows of sum 1 and each of which has the trace."""
    count, n = blocks.shape[:2]
    blocks = (blocks + blocks.mT) / 2
    sums = blocks.sum((0, 2))
    traces = blocks.diagonal(dim1=1, dim2=2).sum(1)
    total = (n - sums.sum() - count * trace + traces.sum()) / (count * (n - 1))
    loops = (trace - traces - total) / n
    offsets = (1 - sums - loops.sum() - count * total / 2) / (count * n / 2)
    blocks = blocks + (offsets[:, None] + offsets[None]) / 2
    blocks.diagonal(dim1=1, dim2=2).add_(loops[:, None])
    return blocks


def dual_bound(affinity: Tensor, signs: Tensor, cone: Tensor, trace: float) -> Tensor:
    """Upper bound on the value of every feasible membership, true for any ``signs`` >= 0 and any ``cone``.

    With sym(y) = (y 1' + 1 y') / 2: for feasible Z, <A_k, Z_k> <= <A_k + S_k, Z_k>, and the sum over k of
    <A_k + S_k - sym(y), Z_k> is at most the sum of trace times the largest eigenvalue; what is left is 1' y. The
    multipliers of ADMM only choose y well.
    """
    n = affinity.shape[-1]
    target = (affinity + signs + cone).mean(0)
    rows = target.sum(1) - target.diagonal()
    y_sum = rows.sum() / (n - 1)
    y = (2 * rows - y_sum) / max(n - 2, 1)
    rest = affinity + signs - (y[:, None] + y[None]) / 2
    return trace * torch.linalg.eigvalsh(rest)[:, -1].sum() + y.sum()


def solve(affinity: Tensor, trace: float, tol: float, num_iters: int, start: Tensor | None = None) -> Solution:
    """Maximize the sum of <A_k, Z_k> over blocks Z_k >= 0, positive semidefinite, with :func:`project`'s constraints.

    Stops where the blocks differ from their projections by ``tol sqrt(number of clusters times n)``, in sum, and the
    blocks move as little. Affinities are scaled to the norm of a membership, and the penalty balances the two residuals
    relative to the memberships and to the multipliers, so neither the unit nor n decides how fast it ends.
    """
    count, n = affinity.shape[:2]
    scale = affinity.norm() / count**0.5
    scale = torch.where(scale > 0, scale, 1.0)
    cost = affinity / scale
    z = project(torch.zeros_like(cost), trace) if start is None else start.clone()
    y, w = z.clamp_min(0), z.clone()
    dual_y, dual_w = torch.zeros_like(z), torch.zeros_like(z)
    rho, size, changes = _RHO, (count * trace * n) ** 0.5, 0
    iteration, residual = 0, float('inf')
    for iteration in range(1, num_iters + 1):
        z = project((y - dual_y + w - dual_w + cost / rho) / 2, trace)
        y_before, w_before = y, w
        z_y, z_w = (_RELAX * z + (1 - _RELAX) * each for each in (y, w))
        y = (z_y + dual_y).clamp_min(0)
        w = _positive_part(z_w + dual_w)
        dual_y, dual_w = dual_y + z_y - y, dual_w + z_w - w
        primal = float((z - y).norm() + (z - w).norm())
        moved = float((y - y_before).norm() + (w - w_before).norm())
        residual = max(primal, moved) / size
        if residual <= tol:
            break
        if iteration % _ADAPT_EVERY == 0 and iteration < 0.7 * num_iters:
            factor = _balance(primal / float(z.norm()), moved / max(float(dual_y.norm() + dual_w.norm()), 1e-30))
            factor = factor ** (1 / (1 + changes / 10))  # less and less, so that it settles
            if not 1 / 1.3 < factor < 1.3:
                rho, dual_y, dual_w, changes = rho * factor, dual_y / factor, dual_w / factor, changes + 1
    bound = dual_bound(cost, (-rho * dual_y).clamp_min(0), -rho * dual_w, trace) * scale
    return Solution(z, bound, iteration, residual)


def _balance(primal: float, dual: float) -> float:
    """Factor of the penalty that would make two relative residuals equal, if they went with it."""
    return min(max((primal / max(dual, 1e-30)) ** 0.5, 1 / _LARGEST_FACTOR), _LARGEST_FACTOR)


def _positive_part(blocks: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((blocks + blocks.mT) / 2)
    n = values.shape[-1]
    # the product of the smaller of the two parts
    positive = int((values > 0).sum(-1).max())
    if positive <= n // 2:
        part = vectors[..., n - positive :] if positive else vectors[..., :0]
        return (part * values[..., n - positive :].clamp_min(0).unsqueeze(-2)) @ part.mT
    negative = int((values < 0).sum(-1).max())
    part = vectors[..., :negative]
    return blocks - (part * values[..., :negative].clamp_max(0).unsqueeze(-2)) @ part.mT
