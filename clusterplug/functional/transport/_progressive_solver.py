# SPDX-License-Identifier: Apache-2.0
"""The scaling loop of progressive transport: an exact step for the virtual column, Anderson's step for the others."""

import math

import torch
from torch import Tensor

from clusterplug.core.numerics import host_checks_allowed

# Scalings are kept inside exp(+-this) of what the kernel has taken in; beyond it the kernel is computed again.
_SHIFT = 30.0
# Column sums in fp32 are summed in blocks of so many rows, and over the blocks in float64.
_BLOCK = 1024
_FEW_ROWS = 4096
_MEMORY = 5
# Without reading on the host: kernels are computed again in these first iterations, then in every n-th.
_EARLY, _EVERY = 5, 10
_ROOT_STEPS = 60
_ROOT_STEPS_WARM = 8


def solve(
    logits: Tensor,
    weight: Tensor,
    log_target: Tensor,
    mass: Tensor,
    power: float,
    start: Tensor,
    stop: float,
    max_iters: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Iterate to the fixed point of the column scalings.

    Args:
        logits: (B, N, K) scores / epsilon, -inf where a row or column is ignored.
        weight: (B, N) float64, 1 / (valid rows), 0 for the others.
        log_target: (B, K) float64, log of mass x prior, -inf for columns that are ignored.
        mass: (B,) float64.
        power: penalty / (penalty + epsilon).
        start: (B, K) float64 log scalings to start from.
        stop: A problem is done when no log scaling would move by more; 0: all iterations, nothing read on the host.
        max_iters: Maximum number of iterations.

    Returns:
        log scalings (B, K) float64, log scale of the virtual column (B,) float64, iterations (B,), converged (B,).
    """
    host = host_checks_allowed(logits) or stop > 0
    columns = torch.isfinite(log_target)
    scaling = torch.where(columns, start, 0.0)
    virtual: Tensor | None = None
    taken, kernel = scaling, _Kernel(logits, scaling, columns)
    accelerate = _Anderson(scaling)
    active = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    used = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    for number in range(max_iters):
        shift = scaling - taken
        fresh = bool((shift.abs() > _SHIFT).any()) if host else (number < _EARLY or number % _EVERY == 0)
        if fresh and number:
            taken, shift = scaling, torch.zeros_like(shift)
            kernel = _Kernel(logits, scaling, columns)
        scale = torch.where(columns, shift.clamp(-2 * _SHIFT, 2 * _SHIFT).exp(), 0.0)
        log_rows = kernel.log_rows(scale)
        virtual = virtual_scale(kernel.top + log_rows, weight, mass, virtual, host)
        column_sums = kernel.column_sums(log_rows, virtual, weight)
        target = power * (log_target - column_sums + taken)
        target = torch.where(columns & active.unsqueeze(-1), target, scaling)
        used += active
        if stop > 0:
            # a problem that is done keeps its scalings: its virtual column and its mass belong to them
            active = active & ((target - scaling).abs().amax(-1) > stop)
            if not bool(active.any()):
                break
        if number + 1 < max_iters:
            scaling = torch.where(active.unsqueeze(-1), accelerate(scaling, target), scaling)
    assert virtual is not None, 'max_iters is at least 1'
    return scaling, virtual, used, ~active


class _Kernel:
    """exp(logits + taken scalings - largest of the row), its row sums and column sums."""

    def __init__(self, logits: Tensor, taken: Tensor, columns: Tensor):
        moved = logits + taken.to(logits.dtype).unsqueeze(-2)
        moved = moved.masked_fill_(~columns.unsqueeze(-2), -math.inf)
        top = moved.amax(-1, keepdim=True)
        top = torch.where(top.isfinite(), top, 0.0)
        self.top = top.squeeze(-1).double()
        self.values = moved.sub_(top).exp_()
        self.blocked = logits.dtype == torch.float32 and logits.shape[1] > _FEW_ROWS

    def log_rows(self, scale: Tensor) -> Tensor:
        """Return the log of the row sums (B, N) float64, less ``top``; -inf for rows that are ignored."""
        return (self.values @ scale.to(self.values.dtype).unsqueeze(-1)).squeeze(-1).double().log()

    def column_sums(self, log_rows: Tensor, virtual: Tensor, weight: Tensor) -> Tensor:
        """Return the log of the column masses (B, K) float64 without the scalings of the columns."""
        both = torch.logaddexp(log_rows, virtual.unsqueeze(-1) - self.top)
        left = torch.where(weight > 0, (-both).exp() * weight, 0.0).to(self.values.dtype).unsqueeze(-2)
        if not self.blocked:
            sums = (left @ self.values).squeeze(-2)
        else:
            batch, rows, cols = self.values.shape
            whole = rows - rows % _BLOCK
            some = left[..., :whole].reshape(-1, 1, _BLOCK) @ self.values[:, :whole].reshape(-1, _BLOCK, cols)
            sums = some.view(batch, -1, cols).sum(1, dtype=torch.float64)
            sums = sums + (left[..., whole:] @ self.values[:, whole:]).squeeze(-2)
        return sums.double().clamp_min(torch.finfo(self.values.dtype).tiny).log()


class _Anderson:
    """Anderson's acceleration of a fixed-point map on (B, K) numbers, each problem by itself."""

    def __init__(self, like: Tensor):
        batch, count = like.shape
        self.steps = like.new_zeros(batch, count, _MEMORY)
        self.changes = like.new_zeros(batch, count, _MEMORY)
        self.last: tuple[Tensor, Tensor] | None = None
        self.number = 0

    def __call__(self, point: Tensor, target: Tensor) -> Tensor:
        change = target - point
        if self.last is None:
            self.last = (target, change)
            return target
        before, change_before = self.last
        rising = change.abs().amax(-1) > 2 * change_before.abs().amax(-1)
        for table, difference in ((self.steps, target - before), (self.changes, change - change_before)):
            table[..., self.number % _MEMORY] = difference
            table.masked_fill_(rising[:, None, None], 0.0)  # a step that did harm: forget what led to it
        self.number, self.last = self.number + 1, (target, change)
        gram = self.changes.mT @ self.changes
        ridge = 1e-12 * gram.diagonal(dim1=-2, dim2=-1).sum(-1) + torch.finfo(gram.dtype).tiny
        gram = gram + ridge[:, None, None] * torch.eye(_MEMORY, dtype=gram.dtype, device=gram.device)
        weights = torch.linalg.solve_ex(gram, self.changes.mT @ change.unsqueeze(-1)).result
        found = target - (self.steps @ weights).squeeze(-1)
        usable = torch.isfinite(found).all(-1) & ((found - target).abs().amax(-1) < _SHIFT)
        return torch.where(usable.unsqueeze(-1), found, target)


def virtual_scale(log_rows: Tensor, weight: Tensor, mass: Tensor, start: Tensor | None, host: bool) -> Tensor:
    r"""Return t (B,) with :math:`\sum_i w_i \, \sigma(t - \log R_i) = 1 - m`: then the plan holds mass m exactly.

    Newton's step on the logit of the left side, which is exact where all rows are equal, inside a bracket that
    shrinks. ``-inf`` where the mass is 1: no virtual column.
    """
    part = weight > 0
    rest = torch.where(mass < 1, 1 - mass, 0.5)
    goal = rest.log() - (1 - rest).log()
    known = torch.where(part, log_rows, 0.0)
    low = torch.where(part, log_rows, math.inf).amin(-1)
    high = torch.where(part, log_rows, -math.inf).amax(-1)
    low, high = (torch.where(each.isfinite(), each, 0.0) + goal for each in (low, high))
    point = (known * weight).sum(-1) + goal if start is None else torch.where(start.isfinite(), start, 0.0)
    point = torch.minimum(torch.maximum(point, low), high)
    for _ in range(_ROOT_STEPS if start is None or host else _ROOT_STEPS_WARM):
        gap = point.unsqueeze(-1) - known
        above, below = torch.sigmoid(gap), torch.sigmoid(-gap)
        left, right, slope = ((each * weight).sum(-1) for each in (above, below, above * below))
        difference = goal - (left.log() - right.log())
        if host and bool(((left - rest).abs() <= 1e-14 + 1e-12 * torch.minimum(rest, 1 - rest)).all()):
            break
        low, high = torch.where(difference > 0, point, low), torch.where(difference < 0, point, high)
        step = point + difference * left * right / slope
        inside = (step > low) & (step < high)
        following = torch.where(inside, step, (low + high) / 2)
        if host and bool((following == point).all()):
            break
        point = following
    return torch.where(mass < 1, point, -math.inf)
