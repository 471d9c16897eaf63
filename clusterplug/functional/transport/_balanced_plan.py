# SPDX-License-Identifier: Apache-2.0
"""Balanced transport solved to its limit in a fixed number of steps: Newton's method on the column potentials."""

import torch
from torch import Tensor

from clusterplug.core.constants import constant, scaled_eye
from clusterplug.functional.transport._alternate_log_softmax import normalize_columns

# Sinkhorn steps that bring the potentials near enough, and Newton steps from there. On tight rows (six modes of unequal
# weight, noise 0.02 to 0.1 around them, 5 to 1,000 rows, 8 to 40 centers) these give the labels of the limit; Sinkhorn
# alone needs some hundreds of iterations for that.
_SINKHORN_STEPS = 3
_NEWTON_STEPS = 8
# Shares of the columns' mass that are added to the curvature in the first steps, far from the solution.
_DAMPING = (0.1, 0.03, 0.01, 0.003)
_LONGEST_STEP = 3.0
_FLOOR = 1e-4


def balanced_log_plan(logits: Tensor, column_mass: Tensor) -> Tensor:
    r"""Return the log of a plan (up to a constant in each row) whose columns have the given mass, each row mass 1.

    With column potentials :math:`g` the rows of :math:`P = \mathrm{softmax}(L + g)` have mass 1, and the columns have
    it where the concave dual :math:`g \cdot b - \sum_n \mathrm{logsumexp}(L_n + g)` is largest. Its gradient is
    :math:`b - P^\top 1`, its Hessian :math:`P^\top P - \mathrm{diag}(P^\top 1)`, of K x K: a Newton step costs about
    as much as two Sinkhorn iterations and converges quadratically. The first steps are damped
    (regularized Newton: Li, Fukushima, Qi, Yamashita, "Regularized Newton methods for convex minimization problems with
    singular solutions", 2004), by a part of the mass that shrinks from step to step, and all are cut to a length of 3.
    No host synchronization.

    Args:
        logits: (..., N, K) scores over epsilon, fp32 or fp64, finite.
        column_mass: (..., K), summing to N; equal for all columns that a row can reach (logits are not far below 0).

    Returns:
        (..., N, K).
    """
    for step in range(_SINKHORN_STEPS):
        # equal shares within a block of columns: their constant cancels in the rows
        logits = normalize_columns(logits)
        if step < _SINKHORN_STEPS - 1:  # the rows of the last are normalized below
            logits = logits.log_softmax(-1)
    # a little above 1, as the matrix is singular at the solution (a constant added to all potentials)
    identity = scaled_eye(logits.shape[-1], 1 + _FLOOR, logits.dtype, logits.device)
    target = column_mass.to(logits.dtype).unsqueeze(-1)
    full = identity * target
    ones = constant(1.0, logits.dtype, logits.device).expand(*logits.shape[:-1], 1)
    for step in range(_NEWTON_STEPS):
        plan = logits.softmax(-1)
        missing = _minus_product(target, plan, ones)
        # on the diagonal the mass of each column, which is its target less what is missing, and the damping
        damped = full * (1 + _DAMPING[step]) if step < len(_DAMPING) else full
        curvature = _minus_product(torch.addcmul(damped, identity, missing, value=-1), plan, plan)
        change, _ = torch.linalg.solve_ex(curvature, missing)
        logits = logits + change.mT.clamp_(-_LONGEST_STEP, _LONGEST_STEP)
    return logits


def _minus_product(matrix: Tensor, plan: Tensor, other: Tensor) -> Tensor:
    """``matrix - plan^T other`` for any number of leading dimensions."""
    if plan.dim() == 3:
        return torch.baddbmm(matrix, plan.mT, other, alpha=-1)
    return matrix - plan.mT @ other
