# SPDX-License-Identifier: Apache-2.0
"""Input validation of every transport kernel."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_device, check_number
from clusterplug.core.numerics import host_checks_allowed, working_dtype

# Relative difference of two marginal sums that is taken for rounding.
MASS_TOLERANCE = 1e-3


def check_options(scores: Tensor, epsilon: float, num_iters: int, group) -> tuple[float, int]:
    """Return ``epsilon`` and ``num_iters`` as Python numbers; raise unless all four are what the kernels take."""
    if not isinstance(scores, Tensor):
        raise TypeError(f'scores must be a torch.Tensor, got {type(scores).__name__}; convert it with torch.as_tensor')
    if not scores.is_floating_point():
        raise TypeError(f'scores must have a floating dtype, got {scores.dtype}; convert it with scores.float()')
    if scores.dim() < 2 or scores.shape[-1] == 0 or (scores.shape[-2] == 0 and group is None):
        raise ValueError(f'scores must have shape (..., N, K) with N, K >= 1, got {tuple(scores.shape)}')
    epsilon = check_number(epsilon, 'epsilon', above=0, hint='usual values are 0.01 to 0.1')
    num_iters = check_count(num_iters, 'num_iters', 1)
    if group is not None and scores.requires_grad and torch.is_grad_enabled():
        raise ValueError('scores must not require a gradient when group is given; call sinkhorn under torch.no_grad()')
    return epsilon, num_iters


def expand_marginals(marginals: Tensor | None, shape: tuple, scores: Tensor, name: str) -> Tensor | None:
    """Return marginals expanded to ``shape`` in the working type."""
    if marginals is None:
        return None
    if not isinstance(marginals, Tensor):
        raise TypeError(f'{name} must be a torch.Tensor, got {type(marginals).__name__}')
    check_device(marginals, scores.device, name)
    if marginals.dim() == 0 or marginals.shape[-1] != shape[-1]:
        raise ValueError(f'{name} must have shape {tuple(shape)}, got {tuple(marginals.shape)}')
    try:
        marginals = marginals.expand(shape)
    except RuntimeError:
        raise ValueError(f'{name} must broadcast to shape {tuple(shape)}, got {tuple(marginals.shape)}') from None
    if marginals.dtype != torch.bool and host_checks_allowed(scores):
        bad = ~(torch.isfinite(marginals) & (marginals >= 0))
        if bad.any():
            raise ValueError(f'{name} must be finite and non-negative, got {int(bad.sum())} entries that are not')
    return marginals.to(working_dtype(scores.dtype))


def check_equal_mass(row_mass: Tensor, col_mass: Tensor) -> None:
    rows, cols = row_mass.sum(-1), col_mass.sum(-1)
    unequal = (rows - cols).abs() > MASS_TOLERANCE * torch.maximum(rows, cols)
    if unequal.any():
        where = int(unequal.reshape(-1).nonzero()[0])
        raise ValueError(
            f'row_marginals and col_marginals must have equal sums, got {rows.reshape(-1)[where].item():.6g} and '
            f'{cols.reshape(-1)[where].item():.6g} in problem {where}; divide each by its sum, or use '
            f'unbalanced_transport'
        )
