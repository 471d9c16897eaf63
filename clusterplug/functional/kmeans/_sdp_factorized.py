# SPDX-License-Identifier: Apache-2.0
"""Memberships as products of non-negative factors: no n x n matrix, for tens of thousands of points."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """Non-negative factors, Z_k = U_k U_k', and how it went."""

    factors: Tensor  # (B, n, r)
    num_iters: int
    infeasible: float  # root mean square of the row sums less 1


def spectral_norm(times: Callable[[Tensor], Tensor], start: Tensor, num_iters: int = 30) -> Tensor:
    """Largest |eigenvalue| over the blocks, by power iteration from ``start`` (B, n, 1)."""
    vector, norm = start, start.new_ones(())
    for _ in range(num_iters):
        vector = times(vector)
        lengths = vector.norm(dim=1, keepdim=True)
        norm = lengths.max()
        vector = vector / torch.where(lengths > 0, lengths, 1.0)
    return norm * 1.05  # power iteration comes from below


def solve(times: Callable[[Tensor], Tensor], start: Tensor, trace: float, tol: float, num_iters: int) -> Factors:
    """Maximize the sum of <A_k, U_k U_k'> over U >= 0 with |U_k|^2 = trace and (sum U_k U_k') 1 = 1.

    Augmented Lagrangian with accelerated projected gradient steps; the step and the penalty follow from the spectral
    norm of A, so neither depends on the unit of the points.

    Args:
        times: ``U -> A_k U_k`` for U (B, n, r).
        start: (B, n, r) factors, made feasible in sign and norm here.
        trace: Of each block.
        tol: On the relative change of the factors and on the root mean square of the row sums less 1.
        num_iters: At most so many gradient steps.
    """
    count, n = start.shape[:2]
    u = _onto(start, trace)
    norm = spectral_norm(times, torch.ones_like(start[..., :1]) + start[..., :1])
    norm = torch.where(norm > 0, norm, 1.0)
    beta = 2.0 / n
    step = 1.0 / (2.0 + 4.0 * beta * count * trace * n)
    y = start.new_zeros(n)
    momentum_u, t = u, 1.0
    iteration = 0
    while iteration < num_iters:
        iteration += 1
        excess = _row_sums(momentum_u) - 1
        price = (y + beta * excess)[None, :, None]
        gradient = price * momentum_u.sum(1, keepdim=True) + (price * momentum_u).sum(1, keepdim=True)
        gradient = gradient - 2 * times(momentum_u) / norm
        fresh = _onto(momentum_u - step * gradient, trace)
        change = float((fresh - u).norm() / u.norm())
        if float(((fresh - u) * (momentum_u - fresh)).sum()) > 0:  # the momentum points back: restart it
            t = 1.0
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        momentum_u = fresh + (t - 1) / following * (fresh - u)
        u, t = fresh, following
        if change < max(1e-3, tol):
            rows = _row_sums(u) - 1
            y = y + beta * rows
            momentum_u, t = u, 1.0  # another function from here on
            infeasible = float(rows.square().mean().sqrt())
            if change < tol and infeasible < tol:
                break
    rows = _row_sums(u) - 1
    return Factors(u, iteration, float(rows.square().mean().sqrt()))


def _row_sums(u: Tensor) -> Tensor:
    """(sum_k U_k U_k') 1 of factors (B, n, r)."""
    return (u * u.sum(1, keepdim=True)).sum((0, 2))


def _onto(u: Tensor, trace: float) -> Tensor:
    """Non-negative factors of the norm; a block that would vanish becomes uniform."""
    u = u.clamp_min(0)
    norms = u.flatten(1).norm(dim=1)[:, None, None]
    uniform = torch.full_like(u, 1.0)
    u = torch.where(norms > 0, u, uniform)
    return u * (trace**0.5 / u.flatten(1).norm(dim=1)[:, None, None])
