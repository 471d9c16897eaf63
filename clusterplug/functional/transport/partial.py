# SPDX-License-Identifier: Apache-2.0
"""Transport that need not meet both marginals: partial (only some mass moves) and unbalanced (marginals are soft)."""

import math

import torch
from torch import Tensor

from clusterplug.core.checks import check_mask, check_number
from clusterplug.core.numerics import host_checks_allowed, no_autocast, working_dtype
from clusterplug.functional.transport._sinkhorn_checks import check_options, expand_marginals
from clusterplug.functional.transport._sinkhorn_problem import finite_log, largest_score

__all__ = ['partial_transport', 'unbalanced_transport']

# Finite penalties let the mass of a row grow as exp(scores); it is held here, inside fp32.
LARGEST_LOG_MASS = 80.0


def partial_transport(
    scores: Tensor,
    *,
    epsilon: float,
    num_iters: int,
    mass: float | Tensor,
    row_marginals: Tensor | None = None,
    col_marginals: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Return the best plan that moves only ``mass``, with rows and columns bounded by their marginals.

    .. math:: \max_{P \ge 0} \langle P, S \rangle + \epsilon H(P) \quad \text{s.t.} \quad
              P 1 \le r, \; P^\top 1 \le c, \; 1^\top P 1 = m .

    The plan is w diag(u) exp(S / epsilon) diag(v); an iteration sets u = min(1, r / row sums), v = min(1, c / column
    sums), w = m / total, each for the other two fixed (Dykstra's projections written as scalings), in the log domain.

    Args:
        scores: (..., N, K), floating, larger = better; computed in fp32 at least.
        epsilon: Strength of the entropy term, > 0, in units of the scores.
        num_iters: Number of iterations, >= 1. The total mass is exact after each; the bounds hold in the limit.
        mass: Mass to move, > 0: a number, or a tensor (...). At most the smaller sum of the two marginals: checked on
            the CPU, held to that sum elsewhere.
        row_marginals: (..., N), non-negative upper bounds, used as they are; None = 1 / (valid rows). bool = uniform.
        col_marginals: (..., K), likewise; None = 1 / K.
        mask: (..., N) bool, True = valid row; the others are 0 in the plan.

    Returns:
        Plan (..., N, K) in the type of ``scores``. Without a valid row or column it is all zeros.

    Raises:
        TypeError: ``scores`` is not floating, ``mask`` not bool.
        ValueError: A wrong shape, device or option, negative marginals, ``mass`` not > 0 or above what can move.

    Source: Benamou et al., "Iterative Bregman projections for regularized transportation problems", 2015, prop. 5.

    Example:
        >>> scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
        >>> plan = partial_transport(scores, epsilon=0.05, num_iters=100, mass=0.5)
        >>> [round(row, 3) for row in plan.sum(-1).tolist()]  # the undecided row stays
        [0.25, 0.25, 0.0]
    """
    epsilon, num_iters = check_options(scores, epsilon, num_iters, None)
    logits, log_rows, log_cols = _logits_and_masses(scores, epsilon, row_marginals, col_marginals, mask)
    with no_autocast(scores):
        log_mass = _log_mass(mass, log_rows, log_cols)
        # The largest score is made 0 for the digits. The mass of the kernel then undoes any constant, after 1
        # iteration as after 1,000, so the derivative needs no term for it.
        logits = logits - logits.detach().amax((-2, -1), keepdim=True)
        right = _neutral(log_cols)
        total = log_mass - _logsumexp(logits + (_neutral(log_rows) + right), (-2, -1))
        for _ in range(num_iters):
            left = (log_rows - _logsumexp(logits + (right + total), -1)).clamp(max=0.0)
            right = (log_cols - _logsumexp(logits + (left + total), -2)).clamp(max=0.0)
            moved = logits + (left + right)
            total = log_mass - _logsumexp(moved, (-2, -1))
        return (moved + total).exp().to(scores.dtype)


def unbalanced_transport(
    scores: Tensor,
    *,
    epsilon: float,
    num_iters: int,
    row_penalty: float = math.inf,
    col_penalty: float = 1.0,
    row_marginals: Tensor | None = None,
    col_marginals: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Return the plan whose marginals are pulled towards given ones by a Kullback-Leibler penalty each.

    .. math:: \max_{P \ge 0} \langle P, S \rangle + \epsilon H(P)
              - \rho_r KL(P 1 \| r) - \rho_c KL(P^\top 1 \| c), \qquad
              H(P) = - \textstyle\sum_{ij} P_{ij} (\log P_{ij} - 1).

    An iteration is the column step v = (c / column sums)^(rho_c / (rho_c + epsilon)), then the same for rows, in the
    log domain. An infinite penalty means the marginal is met; both infinite is ``sinkhorn``.

    Args:
        scores: (..., N, K), floating, larger = better; computed in fp32 at least.
        epsilon: Strength of the entropy term, > 0, in units of the scores.
        num_iters: Number of iterations, >= 1.
        row_penalty: Weight of the row penalty in units of the scores, > 0 or ``math.inf`` (rows are met).
        col_penalty: Weight of the column penalty, likewise. Small = column sums follow the scores.
        row_marginals: (..., N), non-negative, used as they are; None = 1 / (valid rows). bool = uniform over True.
        col_marginals: (..., K), likewise; None = 1 / K. The two sums may differ unless both penalties are infinite.
        mask: (..., N) bool, True = valid row; the others are 0 in the plan.

    Returns:
        Plan (..., N, K) in the type of ``scores``. Its mass follows from the penalties (held below
        exp(80) for each row). Without a valid row or
        column it is all zeros.

    Raises:
        TypeError: ``scores`` is not floating, ``mask`` not bool.
        ValueError: A wrong shape, device or option, negative marginals.

    Source: Chizat et al., "Scaling algorithms for unbalanced transport problems", 2018.

    Example:
        >>> scores = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> for penalty in (0.001, 1.0, 1000.0):
        ...     print(unbalanced_transport(scores, epsilon=0.1, num_iters=500, col_penalty=penalty).sum(0))
        tensor([0.7500, 0.2500])
        tensor([0.6830, 0.3170])
        tensor([0.5002, 0.4998])
    """
    epsilon, num_iters = check_options(scores, epsilon, num_iters, None)
    logits, log_rows, log_cols = _logits_and_masses(scores, epsilon, row_marginals, col_marginals, mask)
    row_power, col_power = _power(row_penalty, epsilon, 'row_penalty'), _power(col_penalty, epsilon, 'col_penalty')
    with no_autocast(scores):
        # Each row less its largest score: next to a score of 1e6 potentials of its size would keep no digits.
        top = logits.detach().amax(-1, keepdim=True)
        logits = logits - top
        left = _neutral(log_rows) + top
        for _ in range(num_iters):
            right = col_power * (log_cols - _logsumexp(logits + left, -2))
            shifted = logits + right
            sums = _logsumexp(shifted, -1)
            left = row_power * (log_rows - sums) + (1.0 - row_power) * top
        # the row sums are taken out first: scores may be too large for a sum of potentials to keep its digits
        log_row_sums = row_power * log_rows + (1.0 - row_power) * (sums + top)
        return ((shifted - sums) + log_row_sums.clamp(max=LARGEST_LOG_MASS)).exp().to(scores.dtype)


def _logits_and_masses(scores, epsilon, row_marginals, col_marginals, mask):
    """Return scores / epsilon (..., N, K), log row masses (..., N, 1) and log column masses (..., 1, K)."""
    lead, (num_rows, num_cols) = scores.shape[:-2], scores.shape[-2:]
    check_mask(mask, (*lead, num_rows), scores.device)
    dtype = working_dtype(scores.dtype)
    rows = _masses(row_marginals, (*lead, num_rows), scores, 'row_marginals', mask)
    cols = _masses(col_marginals, (*lead, num_cols), scores, 'col_marginals', None)
    bound = largest_score(epsilon)
    with no_autocast(scores):
        logits = scores.to(dtype).clamp(-bound, bound) / epsilon
        # where, not arithmetic: what lies in rows without mass may be NaN
        logits = torch.where((rows > 0).unsqueeze(-1), logits, 0.0)
    return logits, _log(rows).unsqueeze(-1), _log(cols).unsqueeze(-2)


def _masses(marginals: Tensor | None, shape: tuple, scores: Tensor, name: str, mask: Tensor | None) -> Tensor:
    """Return the masses of rows or columns in the working type: as given, or uniform over the members."""
    given = expand_marginals(marginals, shape, scores, name)
    if given is not None and marginals is not None and marginals.dtype != torch.bool:
        return given if mask is None else torch.where(mask, given, 0.0)
    members = scores.new_ones(shape, dtype=working_dtype(scores.dtype)) if given is None else given
    members = members if mask is None else members * mask
    return members / members.sum(-1, keepdim=True).clamp(min=1.0)


def _log_mass(mass: float | Tensor, log_rows: Tensor, log_cols: Tensor) -> Tensor:
    """Return log(mass) as (..., 1, 1), held to what the marginals can move."""
    available = torch.minimum(log_rows.exp().sum((-2, -1), True), log_cols.exp().sum((-2, -1), True))
    if not isinstance(mass, Tensor):
        mass = check_number(mass, 'mass', above=0)
    mass = torch.as_tensor(mass, dtype=log_rows.dtype, device=log_rows.device)
    mass = mass.reshape(*mass.shape, 1, 1)
    if host_checks_allowed(log_rows):
        if not bool((torch.isfinite(mass) & (mass > 0)).all()):
            raise ValueError(f'mass must be finite and > 0, got {mass.min().item()}')
        excess = (mass > available * (1 + 1e-5)) & (available > 0)
        if excess.any():
            raise ValueError(
                f'mass must not exceed the smaller sum of the marginals, got {mass.max().item():.6g} for '
                f'{available.min().item():.6g}; lower it, or raise the marginals'
            )
    return torch.minimum(mass, available).log()


def _log(masses: Tensor) -> Tensor:
    """Return log(masses), -inf where there is none, with a gradient of 0 there."""
    return torch.where(masses > 0, finite_log(masses), -torch.inf)


def _neutral(log_masses: Tensor) -> Tensor:
    """Return potentials to start from: 0, and -inf where there is no mass."""
    return torch.where(torch.isfinite(log_masses), 0.0, log_masses)


def _power(penalty: float, epsilon: float, name: str) -> float:
    penalty = check_number(penalty, name, above=0, finite=False, hint='math.inf means that the marginal is met')
    return 1.0 if math.isinf(penalty) else penalty / (penalty + epsilon)


def _logsumexp(values: Tensor, dim) -> Tensor:
    """Return the log-sum-exp with kept dimensions, finite where there is nothing to sum."""
    return torch.logsumexp(values, dim, keepdim=True).clamp(min=-1e30)
