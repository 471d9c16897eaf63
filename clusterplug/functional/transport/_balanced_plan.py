# SPDX-License-Identifier: Apache-2.0
"""Balanced transport solved to its limit in a fixed number of steps: Newton's method on the column potentials."""

from functools import lru_cache

import torch
from torch import Tensor

from clusterplug.core.constants import constant

# Sinkhorn steps that bring the potentials near enough, and Newton steps from there. On tight rows (six modes of unequal
# weight, noise 0.02 to 0.1 around them, 5 to 1,000 rows, 8 to 40 centers) these give the labels of the limit; Sinkhorn
# alone needs some hundreds of iterations for that.
_SINKHORN_STEPS = 3
_NEWTON_STEPS = 8
# Shares of the columns' mass that are added to the curvature in the first steps, far from the solution.
_DAMPING = (0.1, 0.03, 0.01, 0.003)
_LONGEST_STEP = 3.0
_FLOOR = 1e-4


@lru_cache(maxsize=64)
def _diagonals(size: int, dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Identities, damped for each of the first steps and for all later ones; must not be written to."""
    # a little above 1, as the matrix is singular at the solution (a constant added to all potentials)
    with torch.inference_mode(False):  # kept for training steps as well
        scales = (1 + _FLOOR) * (1 + torch.tensor((*_DAMPING, 0.0), dtype=dtype, device=device))
        return scales.view(-1, *(1,) * dim) * torch.eye(size, dtype=dtype, device=device)


def balanced_log_plan(logits: Tensor, column_mass: Tensor) -> Tensor:
    r"""Return the log of a plan (up to a constant for each point) that gives points mass 1 and clusters the mass asked.

    With potentials :math:`g` of the clusters the points of :math:`P = \mathrm{softmax}_k(L_k + g_k)` have mass 1, and
    the clusters have theirs where the concave dual :math:`g \cdot b - \sum_n \mathrm{logsumexp}(L_n + g)` is largest.
    Its gradient is :math:`b - P 1`, its Hessian :math:`P P^\top - \mathrm{diag}(P 1)`, of K x K: a Newton step costs
    about as much as two Sinkhorn iterations and converges quadratically. The first steps are damped
    (regularized Newton: Li, Fukushima, Qi, Yamashita, "Regularized Newton methods for convex minimization problems with
    singular solutions", 2004), by a part of the mass that shrinks from step to step, and all are cut to a length of 3.
    No host synchronization.

    Points lie along the last dimension: there are more of them than clusters, and CPUs take a softmax over few entries
    next to each other at a twentieth of the speed of one over few entries far apart.

    Args:
        logits: (..., K, N) scores over epsilon, fp32 or fp64, finite.
        column_mass: (..., K), summing to N; equal for all clusters that a point can reach (logits not far below 0).

    Returns:
        (..., K, N).
    """
    for step in range(_SINKHORN_STEPS):
        # equal shares within a block of clusters: their constant cancels in the points
        logits = logits.log_softmax(-1)
        if step < _SINKHORN_STEPS - 1:  # the points of the last are normalized below
            logits = logits.log_softmax(-2)
    target = column_mass.to(logits.dtype).unsqueeze(-1)
    diagonals = _diagonals(logits.shape[-2], logits.dim(), logits.dtype, logits.device)
    identity, full = diagonals[-1], (diagonals * target).unbind()
    ones = constant(1.0, logits.dtype, logits.device).expand(*logits.shape[:-2], logits.shape[-1], 1)
    for step in range(_NEWTON_STEPS):
        plan = logits.softmax(-2)
        missing = _minus_product(target, plan, ones)
        # on the diagonal the mass of each cluster, which is its target less what is missing, and the damping
        mass = torch.addcmul(full[min(step, len(_DAMPING))], identity, missing, value=-1)
        curvature = _minus_product(mass, plan, plan.mT)
        change, _ = torch.linalg.solve_ex(curvature, missing)
        logits = logits + change.clamp_(-_LONGEST_STEP, _LONGEST_STEP)
    return logits


def _minus_product(matrix: Tensor, plan: Tensor, other: Tensor) -> Tensor:
    """``matrix - plan other`` for any number of leading dimensions."""
    if plan.dim() == 3:
        return torch.baddbmm(matrix, plan, other, alpha=-1)
    return matrix - plan @ other
