# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn in the log domain: safe for every finite score, two launches an iteration."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.distributed import max_over_ranks
from clusterplug.functional.transport._alternate_log_softmax import alternate_log_softmax, normalize_columns
from clusterplug.functional.transport._sinkhorn_problem import Problem, finite_log, largest_score


def solve_log(problem: Problem, epsilon: float, num_iters: int) -> Tensor:
    """Return log(plan / row mass) (..., N, K) after ``num_iters`` column-then-row steps.

    -inf where only one of row and column takes part, any finite number where neither does.

    A step over one dimension with a uniform marginal is one ``log_softmax``: the constant of the marginal is undone
    by the step that follows. So an iteration is two launches, with any mask.
    """
    logits, start, peak = _padded_logits(problem, epsilon)
    log_rows, log_cols = _log_masses(problem)
    logits = logits - _first_column_sums(logits, start, peak, epsilon, problem.group)
    if log_cols is not None:
        logits = logits + log_cols
    logits = F.log_softmax(logits, -1)
    if log_rows is None and log_cols is None and problem.group is None:
        logits, num_iters = alternate_log_softmax(logits, num_iters - 1), 1
    for _ in range(num_iters - 1):
        if log_rows is not None:
            logits = logits + log_rows
        logits = _column_step(logits, problem.group)
        if log_cols is not None:
            logits = logits + log_cols
        logits = F.log_softmax(logits, -1)
    return logits if problem.rows is None else logits[..., :-1, :-1]


def _padded_logits(problem: Problem, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits with row maxima 0, what was subtracted below the largest row maximum, and that maximum.

    Rows and columns that are ignored form a block of their own together with one added row and column: 0 inside
    the block, -inf between the blocks. So the blocks never mix, every row and column has a finite entry, and the
    iteration itself needs no mask. Without mask and marginals nothing is added.
    """
    bound = largest_score(epsilon)
    scores = problem.scores.clamp(-bound, bound)
    if problem.rows is not None and problem.cols is not None:  # given together
        rows, cols = F.pad(problem.rows, (0, 1)).unsqueeze(-1), F.pad(problem.cols, (0, 1)).unsqueeze(-2)
        # where, not arithmetic: what lies in masked rows may be NaN
        scores = torch.where(rows & cols, F.pad(scores, (0, 1, 0, 1)), -bound)
    maxima = scores.detach().amax(-1, keepdim=True)
    peak = maxima.amax(-2, keepdim=True)
    logits = (scores - maxima) / epsilon
    if problem.rows is not None:
        logits = logits.masked_fill(rows != cols, -torch.inf)
    return logits, (maxima - peak) / epsilon, peak


def _first_column_sums(logits: Tensor, start: Tensor, peak: Tensor, epsilon: float, group) -> Tensor:
    """Return the log column sums of the raw kernel, in which each row weighs exp(its maximum / epsilon).

    Row maxima are kept apart from the logits up to here and are undone by the row step that follows: adding them
    would cost the small differences inside a row their digits.
    """
    sums = torch.logsumexp(logits + start, -2, keepdim=True)
    if group is None:
        return sums
    return _logsumexp_over_ranks(sums + (peak - max_over_ranks(peak, group)) / epsilon, group)


def _column_step(logits: Tensor, group) -> Tensor:
    """Return logits whose columns (over all ranks) sum to 1 after exponentiation."""
    if group is not None:
        return logits - _logsumexp_over_ranks(torch.logsumexp(logits, -2, keepdim=True), group)
    return normalize_columns(logits)


def _logsumexp_over_ranks(values: Tensor, group) -> Tensor:
    """Return log(sum over ranks of exp(values)): one collective, no overflow."""
    parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, values.contiguous(), group=group)
    return torch.logsumexp(torch.stack(parts), 0)


def _log_masses(problem: Problem) -> tuple[Tensor | None, Tensor | None]:
    """Return log marginals shaped to be added to padded logits, 0 where a row or column is ignored."""
    log_rows, log_cols = None, None
    if problem.row_mass is not None:
        log_rows = F.pad(finite_log(problem.row_mass), (0, 1)).unsqueeze(-1)
    if problem.col_mass is not None:
        log_cols = F.pad(finite_log(problem.col_mass), (0, 1)).unsqueeze(-2)
    return log_rows, log_cols
