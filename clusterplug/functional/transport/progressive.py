# SPDX-License-Identifier: Apache-2.0
"""Progressive partial transport: only the easiest part of the mass moves, cluster sizes are pulled to a prior."""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_device, check_finite, check_mask, check_number, check_points
from clusterplug.core.numerics import exact_products, host_checks_allowed, working_dtype
from clusterplug.functional.transport._progressive_solver import solve, virtual_scale

__all__ = ['ProgressivePlan', 'progressive_transport']

# Up to this many entries a matrix on the CPU is computed in float64: the caches hold it, and no digit is lost.
_WIDE_ENTRIES = 2**22
# What rounding leaves of a log scaling that has converged, by type.
_ROUNDING = {torch.float32: 3e-7, torch.float64: 1e-14}


class ProgressivePlan(NamedTuple):
    """What ``progressive_transport`` and ``semantic_transport`` return with ``full_output=True``."""

    plan: Tensor  # (..., N, K) rows <= 1, total mass x valid rows
    potentials: Tensor  # (..., K) float64 log scalings of the columns, for ``init``
    num_iters: Tensor  # (...,) int64 iterations used
    converged: Tensor  # (...,) bool
    objective: Tensor | None = None  # (outer iterations, ...) float64, semantic transport only


@torch.no_grad()
def progressive_transport(
    scores: Tensor,
    *,
    epsilon: float,
    mass: float | Tensor,
    penalty: float,
    tol: float = 1e-6,
    max_iters: int = 1000,
    prior: Tensor | None = None,
    mask: Tensor | None = None,
    init: Tensor | None = None,
    full_output: bool = False,
) -> Tensor | ProgressivePlan:
    r"""Return soft labels of the easiest share of the rows, with cluster sizes softly pulled to a prior (P2OT).

    With C = -scores, Q of total mass m and the rest :math:`\xi = 1/N - Q 1` of every row in a virtual column of
    cost 0:

    .. math:: \min_{Q \ge 0, \, \xi \ge 0} \langle Q, C \rangle + \gamma \, KL(Q^\top 1 \,\|\, m \pi)
              - \epsilon H(Q) - \epsilon H(\xi) \quad \text{s.t.} \quad Q 1 + \xi = 1/N, \; 1^\top Q 1 = m .

    In every iteration the scale of the virtual column is the root of one increasing function of one number, so the
    mass is exact after each iteration and their number does not depend on it; the K column scalings are then
    :math:`(m \pi / \text{column sums})^{\gamma / (\gamma + \epsilon)}`, accelerated by Anderson's method. The kernel
    is computed relative to the largest entry of each row and anew when scalings leave its range, which is the log
    domain at the price of two matrix-vector products an iteration. Weights of rows (their sums) grow with
    confidence.

    Args:
        scores: (..., N, K), floating: log-probabilities of K >= 2 clusters (``log_softmax`` of logits). fp16 and bf16
            are computed in fp32 at least.
        epsilon: Strength of the entropy term, > 0.
        mass: Share m of the rows that gets labels, in (0, 1]: a number, or a tensor (...) of one for each problem.
        penalty: Weight gamma of the size penalty, >= 0; 0: sizes follow the scores, ``math.inf``: sizes are met. The
            more uneven the true sizes, the smaller.
        tol: Bound on the remaining error of a log scaling, as far as the rounding of fp32 allows. 0: exactly
            ``max_iters`` iterations without reading anything on the host (capturable, for CUDA).
        max_iters: Maximum number of iterations.
        prior: (K,) or (..., K) expected share of each cluster, sum 1; None = uniform. A cluster of share 0 stays
            empty: that is how problems with other numbers of clusters share a batch.
        mask: (..., N) bool, True = valid row; the others are 0 in the plan.
        init: (..., K) ``potentials`` of an earlier, similar call to start from.
        full_output: Return a :class:`ProgressivePlan`.

    Returns:
        Plan (..., N, K) in the type of ``scores``: N Q, rows sum to at most 1, all to m x (valid rows). No gradient.

    Raises:
        TypeError: ``scores`` not floating, ``mask`` not bool.
        ValueError: A wrong shape or device, one cluster, ``mass`` outside (0, 1], a prior that does not sum to 1, NaN
            or inf in a valid row (tensors are read on the CPU, and wherever ``tol`` > 0).

    Warns:
        UserWarning: ``max_iters`` did not suffice (not with ``full_output``, which says so by itself).

    Source: Zhang, Ren and He, "P2OT", ICLR 2024, arXiv 2401.09266, and "SP2OT", arXiv 2404.03446; official code
    rhfeiyang/PPOT and rhfeiyang/SPPOT (CC BY-NC 4.0; reimplemented from the equations). **Differs from the authors'
    code**: the exact step for the virtual column (theirs scales it like the others and needs 1,891 iterations at
    m = 0.1 for 1e-8), Anderson's acceleration, fp32 for large problems instead of float64, a stop rule on the log
    scalings.

    Example:
        >>> p = torch.tensor([[0.98, 0.02], [0.9, 0.1], [0.55, 0.45], [0.1, 0.9]])
        >>> plan = progressive_transport(p.log(), epsilon=0.1, mass=0.5, penalty=1.0)
        >>> [round(row, 2) for row in plan.sum(-1).tolist()]  # the undecided row waits
        [0.66, 0.45, 0.01, 0.88]
        >>> round(float(plan.sum()), 4)
        2.0
    """
    tol, max_iters, epsilon, power = _check(scores, epsilon, penalty, tol, max_iters, mask)
    lead, (num_rows, num_cols) = scores.shape[:-2], scores.shape[-2:]
    batch, device = math.prod(lead), scores.device
    if tol > 0 or host_checks_allowed(scores):
        check_finite(scores, 'scores', mask)
    masses = _masses(mass, lead, device, tol)
    log_prior = _log_prior(prior, lead, num_cols, device, tol)
    dtype = working_dtype(scores.dtype)
    if device.type == 'cpu' and scores.numel() <= _WIDE_ENTRIES:
        dtype = torch.float64
    with exact_products(scores):
        logits = scores.detach().reshape(batch, num_rows, num_cols).to(dtype) / epsilon
        valid = torch.ones(batch, num_rows, dtype=torch.bool, device=device)
        if mask is not None:
            valid = mask.reshape(batch, num_rows)
            logits = logits.masked_fill(~valid.unsqueeze(-1), -math.inf)
        weight = valid / valid.sum(-1, keepdim=True).clamp_min(1).double()
        start = _start(init, lead, num_cols, device).reshape(batch, num_cols)
        log_target = log_prior + masses.log().unsqueeze(-1)
        stop = 0.0 if tol == 0 else max(tol * max(1 - power, 0.01), _ROUNDING[dtype])
        scaling, virtual, used, done = solve(logits, weight, log_target, masses, power, start, stop, max_iters)
        plan = _plan(logits, scaling, virtual, log_target, weight, masses, stop > 0 or host_checks_allowed(scores))
    result = ProgressivePlan(
        plan.to(scores.dtype).view(scores.shape), scaling.view(*lead, num_cols), used.view(lead), done.view(lead)
    )
    if full_output:
        return result
    if tol > 0 and not bool(done.all()):
        warnings.warn(
            f'max_iters={max_iters} did not suffice in {int((~done).sum())} of {batch} problems, so cluster sizes are '
            f'not exact (the mass is); raise max_iters or epsilon',
            stacklevel=3,
        )
    return result.plan


def _check(scores, epsilon, penalty, tol, max_iters, mask) -> tuple[float, int, float, float]:
    check_points(scores, 'scores')
    if scores.shape[-1] < 2:
        raise ValueError(f'scores must be of at least 2 clusters (..., N, K), got shape {tuple(scores.shape)}')
    check_mask(mask, scores.shape[:-1], scores.device)
    epsilon = check_number(epsilon, 'epsilon', above=0)
    penalty = check_number(penalty, 'penalty', 0, finite=False, hint='math.inf means that the sizes are met')
    tol = check_number(tol, 'tol', 0, hint='0 runs all iterations')
    power = 1.0 if math.isinf(penalty) else penalty / (penalty + epsilon)
    return tol, check_count(max_iters, 'max_iters', 1), epsilon, power


def _masses(mass, lead: tuple, device: torch.device, tol: float) -> Tensor:
    """Return the mass of each problem, (B,) float64."""
    if not isinstance(mass, Tensor):
        mass = check_number(mass, 'mass', above=0, most=1, hint='it is the share of rows that gets labels')
        return torch.full((math.prod(lead),), mass, dtype=torch.float64, device=device)
    check_device(mass, device, 'mass')
    try:
        found = mass.detach().double().expand(lead).reshape(-1)
    except RuntimeError as error:
        raise ValueError(f'mass must be a number or of shape {tuple(lead)}, got {tuple(mass.shape)}') from error
    if (tol > 0 or host_checks_allowed(mass)) and not bool(((found > 0) & (found <= 1)).all()):
        raise ValueError(f'mass must be in (0, 1], got {found.min().item()} .. {found.max().item()}')
    return found


def _log_prior(prior: Tensor | None, lead: tuple, num_cols: int, device: torch.device, tol: float) -> Tensor:
    """Return the log of the prior, (B, K) float64."""
    batch = math.prod(lead)
    if prior is None:
        return torch.full((batch, num_cols), -math.log(num_cols), dtype=torch.float64, device=device)
    if not isinstance(prior, Tensor) or not prior.is_floating_point():
        got = prior.dtype if isinstance(prior, Tensor) else type(prior).__name__
        raise TypeError(f'prior must be a floating tensor (K,) or (..., K), got {got}')
    check_device(prior, device, 'prior')
    if prior.shape not in ((num_cols,), (*lead, num_cols)):
        raise ValueError(f'prior must have shape {(num_cols,)} or {(*lead, num_cols)}, got {tuple(prior.shape)}')
    found = prior.detach().double().expand(*lead, num_cols).reshape(batch, num_cols)
    if tol > 0 or host_checks_allowed(prior):
        total = found.sum(-1)
        if not bool(((found >= 0).all(-1) & ((total - 1).abs() < 1e-3)).all()):
            raise ValueError(
                f'prior must be non-negative and sum to 1, got sums {total.min().item():.4g} .. '
                f'{total.max().item():.4g}; divide it by its sum'
            )
    return (found / found.sum(-1, keepdim=True)).log()


def _start(init: Tensor | None, lead: tuple, num_cols: int, device: torch.device) -> Tensor:
    if init is None:
        return torch.zeros(*lead, num_cols, dtype=torch.float64, device=device)
    if not isinstance(init, Tensor):
        raise TypeError(f'init must be a tensor, the potentials of an earlier call, got {type(init).__name__}')
    if tuple(init.shape) != (*lead, num_cols):
        raise ValueError(f'init must have shape {(*lead, num_cols)}, got {tuple(init.shape)}; pass potentials')
    check_device(init, device, 'init')
    return torch.nan_to_num(init.detach().double(), 0.0, 0.0, 0.0)


def _plan(logits, scaling, virtual, log_target, weight, masses, host: bool) -> Tensor:
    """Return the plan of these scalings, with the virtual column solved once more for the sums as they are here."""
    moved = logits + torch.where(log_target.isfinite(), scaling, -math.inf).to(logits.dtype).unsqueeze(-2)
    log_rows = torch.logsumexp(moved, -1, keepdim=True).double()
    virtual = virtual_scale(log_rows.squeeze(-1), weight, masses, virtual, host)
    both = torch.logaddexp(log_rows, virtual[:, None, None]).to(logits.dtype)
    return moved.sub_(both).exp_().masked_fill_((weight == 0).unsqueeze(-1), 0.0)
