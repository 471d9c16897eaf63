# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn with scaling vectors: plan = diag(u) E diag(v), two reads of the kernel matrix E an iteration."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.distributed import max_over_ranks, sum_over_ranks
from clusterplug.core.numerics import host_checks_allowed
from clusterplug.functional.transport._sinkhorn_problem import Problem, col_masses, largest_score, row_masses

# With max(L) - min(L) <= 60 all entries of v lie within exp(+-60) of each other (and so those of u) whatever the
# number of iterations, because each sum of the kernel lies between exp(-60) and 1 times the sum of the factors.
# That is far inside fp32's exp(+-87).
SAFE_RANGE = 60.0
# Below this many entries of all problems the log form is as fast, and it needs no look at the scores.
MIN_ENTRIES = 1 << 14
# From this many entries of one problem on, its passes over memory cost more than launching them block by block.
MIN_ENTRIES_IN_BLOCKS = 1 << 16
# Sums are held above this: finite for every input, reached only outside the safe range.
SMALLEST_SUM = 1e-30
# Bytes of the kernel matrix per thread that an iteration works on at a time: they stay near the second-level cache.
BLOCK_BYTES = 1 << 20


def safe_peak(problem: Problem, epsilon: float) -> float | None:
    """Return the largest score if the scaling form is known to be exact and large enough to pay, else None.

    Only on the CPU does a look at the scores cost no synchronization. Over ranks all must take the same form,
    whatever their own scores, so the answer is None there.
    """
    scores = problem.scores
    if problem.group is not None or not host_checks_allowed(scores):
        return None
    if scores.numel() < MIN_ENTRIES:
        return None
    low, high = (float(bound) for bound in torch.aminmax(scores.detach()))
    return high if high - low <= SAFE_RANGE * epsilon else None  # NaN and inf fail the comparison


def pays_in_blocks(problem: Problem) -> bool:
    """Tell whether one problem is large enough to be iterated block by block."""
    return problem.scores.shape[-2] * problem.scores.shape[-1] >= MIN_ENTRIES_IN_BLOCKS


def solve_scaling(problem: Problem, epsilon: float, num_iters: int) -> Tensor:
    """Return the plan (..., N, K); finite for any finite scores, exact within a safe range of each row."""
    row_mass, col_mass = row_masses(problem), col_masses(problem)
    bound = largest_score(epsilon)
    scores = problem.scores.clamp(-bound, bound)
    if problem.rows is not None and problem.cols is not None:  # given together
        scores = torch.where(problem.rows.unsqueeze(-1) & problem.cols.unsqueeze(-2), scores, -bound)
    maxima = scores.detach().amax(-1, keepdim=True)
    peak = F.pad(maxima, (0, 0, 0, 1), value=-bound).amax(-2, keepdim=True)
    peak = max_over_ranks(peak, problem.group)
    kernel = ((scores - maxima) / epsilon).exp()
    # in the first column step every row has its own weight exp(row maximum / epsilon)
    left = ((maxima - peak) / epsilon).exp()
    if problem.rows is not None:
        left = left * problem.rows.unsqueeze(-1)
    for _ in range(num_iters):
        sums = sum_over_ranks(left.mT @ kernel, problem.group)
        right = col_mass / sums.clamp(min=SMALLEST_SUM)
        left = row_mass / (kernel @ right.mT).clamp(min=SMALLEST_SUM)
    return (kernel * left) * right


def solve_scaling_in_blocks(problem: Problem, peak: float, epsilon: float, num_iters: int) -> Tensor:
    """Return the plan of problems whose range is safe, without autograd: ONE read of the kernel an iteration.

    The row step of a block of rows needs only that block, and so does its part of the next column sum. Both are
    done while the block is in cache, and the plan is made in place of the kernel.
    """
    scores = problem.scores
    flat = scores.reshape(-1, *scores.shape[-2:])
    plans = torch.empty_like(flat, memory_format=torch.contiguous_format)
    lead = scores.shape[:-2]
    row_mass = torch.as_tensor(row_masses(problem), dtype=flat.dtype, device=flat.device).expand(
        *lead, flat.shape[-2], 1
    )
    col_mass = torch.as_tensor(col_masses(problem), dtype=flat.dtype, device=flat.device).expand(
        *lead, 1, flat.shape[-1]
    )
    row_mass, col_mass = row_mass.reshape(len(flat), -1), col_mass.reshape(len(flat), -1)
    for plan, part, rows, cols in zip(plans, flat, row_mass, col_mass):
        _solve_one(plan, part, rows, cols, peak, epsilon, num_iters)
    return plans.view(scores.shape)


def _solve_one(
    plan: Tensor, scores: Tensor, row_mass: Tensor, col_mass: Tensor, peak: float, epsilon: float, num_iters: int
) -> None:
    """Fill ``plan`` (N, K) for kernel exp((scores - peak) / epsilon), scores (N, K), marginals (N,) and (K,)."""
    block_rows = max(1, BLOCK_BYTES * torch.get_num_threads() // (plan.element_size() * plan.shape[1]))
    blocks = list(zip(plan.split(block_rows), scores.split(block_rows), row_mass.split(block_rows)))
    small_peak = abs(peak) <= SAFE_RANGE * epsilon
    shift = plan.new_tensor(-peak / epsilon)
    members = (row_mass > 0).to(plan.dtype).split(block_rows)
    sums = torch.zeros_like(col_mass)
    for (kernel, part, _), present in zip(blocks, members):
        if small_peak:
            torch.add(shift, part, alpha=1.0 / epsilon, out=kernel).exp_()
        else:  # subtracting first keeps the digits of scores with a large offset
            torch.sub(part, peak, out=kernel).mul_(1.0 / epsilon).exp_()
        sums.addmv_(kernel.mT, present)
    for iteration in range(num_iters):
        right = col_mass / sums.clamp_(min=SMALLEST_SUM)
        sums = torch.zeros_like(col_mass)
        for kernel, _, mass in blocks:
            left = mass / torch.mv(kernel, right).clamp_(min=SMALLEST_SUM)
            if iteration < num_iters - 1:
                sums.addmv_(kernel.mT, left)
            else:
                kernel.mul_(left.unsqueeze(-1)).mul_(right)
