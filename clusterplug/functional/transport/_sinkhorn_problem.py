# SPDX-License-Identifier: Apache-2.0
"""A batch of transport problems as both forms of Sinkhorn's iteration see it."""

from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.distributed import sum_over_ranks


class Problem(NamedTuple):
    """Scores (..., N, K) in the working type, and what is known of the two marginals (None = all, uniform).

    ``rows`` and ``cols`` are given together or not at all (``resolve_masks``).
    """

    scores: Tensor
    rows: Tensor | None = None  # (..., N) bool, True = takes part
    cols: Tensor | None = None  # (..., K) bool, True = takes part
    row_mass: Tensor | None = None  # (..., N) >= 0, sums to 1 (over ranks); None = uniform over ``rows``
    col_mass: Tensor | None = None  # (..., K) >= 0, sums to 1; None = uniform over ``cols``
    group: object = None  # torch.distributed group that the rows are spread over


def largest_score(epsilon: float) -> float:
    """Return the bound that scores are held within, so that no difference divided by epsilon leaves fp32."""
    return min(1e30, 1e37 * epsilon)


def resolve_masks(scores: Tensor, rows: Tensor | None, cols: Tensor | None, group) -> tuple[Tensor, Tensor]:
    """Return full row and column masks; without a column no row takes part, without a row (anywhere) no column."""
    if cols is None:
        cols = scores.new_ones(scores.shape[:-2] + scores.shape[-1:], dtype=torch.bool)
        rows = scores.new_ones(scores.shape[:-1], dtype=torch.bool) if rows is None else rows
    elif rows is None:
        rows = cols.any(-1, keepdim=True).expand(scores.shape[:-1])
    else:
        rows = rows & cols.any(-1, keepdim=True)
    anyone = rows.any(-1, keepdim=True)
    if group is not None:
        anyone = sum_over_ranks(anyone.to(torch.float32), group) > 0
    return rows, cols & anyone


def row_masses(problem: Problem) -> Tensor | float:
    """Return the row marginal as (..., N, 1), zero for rows that are ignored, or as one number for all rows."""
    if problem.row_mass is not None:
        return problem.row_mass.unsqueeze(-1)
    if problem.rows is None:
        return 1.0 / problem.scores.shape[-2]
    members = problem.rows.unsqueeze(-1).to(problem.scores.dtype)
    return members / sum_over_ranks(members.sum(-2, keepdim=True), problem.group).clamp(min=1.0)


def col_masses(problem: Problem) -> Tensor | float:
    """Return the column marginal as (..., 1, K), zero for columns that are ignored, or as one number for all."""
    if problem.col_mass is not None:
        return problem.col_mass.unsqueeze(-2)
    if problem.cols is None:
        return 1.0 / problem.scores.shape[-1]
    members = problem.cols.unsqueeze(-2).to(problem.scores.dtype)
    return members / members.sum(-1, keepdim=True).clamp(min=1.0)


def finite_log(mass: Tensor) -> Tensor:
    """Return log(mass), and 0 where the mass is 0."""
    return torch.where(mass > 0, mass, 1.0).log()
