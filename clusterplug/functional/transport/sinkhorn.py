# SPDX-License-Identifier: Apache-2.0
"""Entropic optimal transport by Sinkhorn's iteration: batched, masked, over ranks, safe for any finite scores."""

import math

import torch
from torch import Tensor

from clusterplug.core.checks import check_choice, check_mask
from clusterplug.core.distributed import sum_over_ranks
from clusterplug.core.numerics import host_checks_allowed, no_autocast, working_dtype
from clusterplug.functional.transport._sinkhorn_checks import check_equal_mass, check_options, expand_marginals
from clusterplug.functional.transport._sinkhorn_log import solve_log
from clusterplug.functional.transport._sinkhorn_problem import Problem, finite_log, resolve_masks, row_masses
from clusterplug.functional.transport._sinkhorn_scaling import (
    pays_in_blocks,
    safe_peak,
    solve_scaling,
    solve_scaling_in_blocks,
)

__all__ = ['sinkhorn', 'sinkhorn_log_plan']

_FORMS = ('auto', 'scaling', 'log')


def sinkhorn(
    scores: Tensor,
    *,
    epsilon: float,
    num_iters: int,
    row_marginals: Tensor | None = None,
    col_marginals: Tensor | None = None,
    mask: Tensor | None = None,
    group=None,
    form: str = 'auto',
) -> Tensor:
    r"""Return the transport plan of the kernel exp(scores / epsilon) with given marginals.

    .. math:: P = \mathrm{diag}(u)\, e^{S / \epsilon}\, \mathrm{diag}(v), \qquad
              v \leftarrow c / (E^\top u), \quad u \leftarrow r / (E v), \quad u_0 = 1.

    An iteration is a column step, then a row step, so the row marginals of the result hold to rounding and the column
    marginals to the accuracy reached. The plan of every problem has mass 1. There is no host synchronization.

    Args:
        scores: (..., N, K), floating, larger = better. fp16 and bf16 are computed in fp32 (float64 stays). -inf means
            'avoid at any price': such a pair gets mass only where the marginals leave no other way (scores are held
            within +-min(1e30, 1e37 epsilon)). NaN in a
            row that takes part makes the plan of that problem NaN. N = 0 is allowed with ``group`` only.
        epsilon: Strength of the entropy term, > 0, in units of the scores.
        num_iters: Number of iterations, >= 1.
        row_marginals: (..., N), non-negative, broadcast against the scores; None = 1 / (valid rows) each. Rows of
            marginal 0 are 0 in the plan. Only proportions matter: each marginal is divided by its sum.
        col_marginals: (..., K), non-negative, likewise; None = 1 / K each. A column of marginal 0 stays 0 and out of
            everything: that is how another K for each problem is written. A **bool** tensor means uniform over its
            True entries, and costs nothing in an iteration.
        mask: (..., N) bool, True = valid row. Masked rows are 0 in the plan; their scores may be anything, NaN too.
        group: torch.distributed group that the rows are spread over, any number on each rank, also 0. Every rank
            must call with the same K and batch shape. Sums run over all ranks, and so do the counts of valid rows.
            No gradient passes through it.
        form: 'log' never over- or underflows and launches two operations an iteration when the marginals are uniform
            (masked or not). 'scaling' reads the matrix less often; it is exact while (max - min) / epsilon of each
            row is below 60, and finite beyond. 'auto' takes 'scaling' on the CPU for scores of 16,384 entries and
            more whose range (max - min) / epsilon <= 60, and 'log' everywhere else: on other devices, over ranks,
            and while compiling, where knowing the range would cost a synchronization.

    Returns:
        Plan (..., N, K) in the type of ``scores``. A problem without a valid row, or without a column, is all
        zeros. One row gets the column marginals (exactly one iteration's worth: K = 1 or N = 1 need no more). Entries
        are about 1 / (N K): in fp16 they underflow for large N K, so pass fp32 scores there.

    Raises:
        TypeError: ``scores`` is not floating, ``mask`` not bool.
        ValueError: A wrong shape, device or option; on the CPU also marginals that are negative, not finite, or of
            different sums (elsewhere looking would be a synchronization; there each is divided by its sum).

    Source: Cuturi, "Sinkhorn Distances", NeurIPS 2013; scaling form with one pass per step as in Peyre and Cuturi,
    "Computational Optimal Transport", 2019, section 4.2. **Differs from the SwAV / self-label loops**: the same
    numbers after the same number of iterations, but no pass that normalizes the matrix, and no overflow.

    Example:
        >>> scores = torch.tensor([[1.0, 0.0], [0.9, 0.0], [0.8, 0.1], [0.0, 0.1]])
        >>> plan = sinkhorn(scores, epsilon=0.05, num_iters=50)
        >>> plan.argmax(-1)  # balanced, so the third row has to leave the better column
        tensor([0, 0, 1, 1])
        >>> plan.sum(0)
        tensor([0.5000, 0.5000])
    """
    epsilon, num_iters = check_options(scores, epsilon, num_iters, group)
    check_choice(form, 'form', _FORMS)
    problem = _problem(scores, row_marginals, col_marginals, mask, group)
    with no_autocast(scores):
        recorded = torch.is_grad_enabled() and problem.scores.requires_grad
        peak = None if form == 'log' else safe_peak(problem, epsilon)
        if peak is not None and not recorded and pays_in_blocks(problem):
            plan = solve_scaling_in_blocks(problem, peak, epsilon, num_iters)
        elif peak is not None or form == 'scaling':
            plan = solve_scaling(problem, epsilon, num_iters)
        else:
            plan = solve_log(problem, epsilon, num_iters).exp() * row_masses(problem)
    return plan.to(scores.dtype)


def sinkhorn_log_plan(
    scores: Tensor,
    *,
    epsilon: float,
    num_iters: int,
    row_marginals: Tensor | None = None,
    col_marginals: Tensor | None = None,
    mask: Tensor | None = None,
    group=None,
) -> Tensor:
    """Return the logarithm of ``sinkhorn``'s plan, always by the log form; -inf where the plan is 0.

    It keeps the digits of entries that the plan itself would round to 0 (small epsilon), and its argmax over the last
    dimension is the cluster of a row without an exponential. Arguments, errors and cost are those of ``sinkhorn``.

    Returns:
        (..., N, K) in the type of ``scores``; rows and columns that are ignored are -inf.

    Source: as ``sinkhorn``.

    Example:
        >>> scores = torch.tensor([[1.0, 0.0], [0.9, 0.0], [0.8, 0.1], [0.0, 0.1]])
        >>> sinkhorn_log_plan(scores, epsilon=0.001, num_iters=50).argmax(-1)
        tensor([0, 0, 1, 1])
    """
    epsilon, num_iters = check_options(scores, epsilon, num_iters, group)
    problem = _problem(scores, row_marginals, col_marginals, mask, group)
    with no_autocast(scores):
        masses = row_masses(problem)
        log_plan = solve_log(problem, epsilon, num_iters)
        if isinstance(masses, float):
            log_plan = log_plan + math.log(masses)
        else:  # where, not log(0): its gradient would be NaN
            log_plan = torch.where(masses > 0, log_plan + finite_log(masses), -torch.inf)
        return log_plan.to(scores.dtype)


def _problem(scores, row_marginals, col_marginals, mask, group) -> Problem:
    """Return the checked problem in the working type."""
    lead, (num_rows, num_cols) = scores.shape[:-2], scores.shape[-2:]
    check_mask(mask, (*lead, num_rows), scores.device)
    row_mass = expand_marginals(row_marginals, (*lead, num_rows), scores, 'row_marginals')
    col_mass = expand_marginals(col_marginals, (*lead, num_cols), scores, 'col_marginals')
    rows, cols = mask, None
    if col_mass is not None:
        cols = col_mass > 0
        col_mass = None if col_marginals.dtype == torch.bool else col_mass
    if row_mass is not None:
        row_mass = row_mass if mask is None else torch.where(mask, row_mass, 0.0)
        rows = row_mass > 0
        if row_marginals.dtype == torch.bool:
            row_mass = None
    if group is not None and rows is None:
        rows = scores.new_ones(scores.shape[:-1], dtype=torch.bool)  # the number of rows on other ranks is unknown
    if rows is not None or cols is not None:
        rows, cols = resolve_masks(scores, rows, cols, group)
    if host_checks_allowed(scores) and group is None and row_mass is not None and col_mass is not None:
        check_equal_mass(row_mass, col_mass)
    if row_mass is not None:
        row_mass = _proportions(torch.where(rows, row_mass, 0.0), group)
    if col_mass is not None:
        col_mass = _proportions(col_mass, None)
    return Problem(scores.to(working_dtype(scores.dtype)), rows, cols, row_mass, col_mass, group)


def _proportions(mass: Tensor, group) -> Tensor:
    """Return mass divided by its sum (over ranks), 0 where the sum is 0."""
    total = sum_over_ranks(mass.sum(-1, keepdim=True), group)
    return mass / torch.where(total > 0, total, 1.0)
