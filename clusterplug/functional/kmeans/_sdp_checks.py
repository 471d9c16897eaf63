# SPDX-License-Identifier: Apache-2.0
"""Input validation of the semidefinite programs, their memory, and whether they converged."""

import warnings

import torch
from torch import Tensor

from clusterplug.core.checks import (
    check_choice,
    check_count,
    check_device,
    check_finite,
    check_num_clusters,
    check_number,
    check_points,
)

SOLVERS = ('admm', 'factorized')


def check_problem(x: Tensor, solver: str, tol: float, num_iters: int) -> Tensor:
    check_points(x)
    if x.dim() != 2:
        raise ValueError(f'x must have shape (n, D), got {tuple(x.shape)}; solve each problem by itself')
    check_choice(solver, 'solver', SOLVERS)
    check_number(tol, 'tol', above=0)
    check_count(num_iters, 'num_iters', 1)
    check_finite(x)
    return x.double()


def check_covariances(covariances: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors and log determinants."""
    check_points(covariances, 'covariances')
    check_device(covariances, x.device, 'covariances')
    if covariances.dim() != 3 or covariances.shape[1:] != (x.shape[1], x.shape[1]):
        raise ValueError(f'covariances must have shape (K, {x.shape[1]}, {x.shape[1]}), got {tuple(covariances.shape)}')
    check_num_clusters(len(covariances), len(x) - 1)
    check_finite(covariances, 'covariances')
    values = covariances.double()
    size = values.abs().amax((-2, -1))
    least = torch.linalg.eigvalsh((values + values.mT) / 2)[:, 0]
    uneven = (values - values.mT).abs().amax((-2, -1)) > 1e-4 * size
    if bool((uneven | (least <= 1e-12 * size)).any()):
        raise ValueError(
            f'covariances must be symmetric and positive definite, got smallest eigenvalues {least.tolist()}; add a '
            f'share of the mean variance to the diagonals'
        )
    factors = torch.linalg.cholesky((values + values.mT) / 2)
    return factors, 2 * factors.diagonal(dim1=1, dim2=2).log().sum(1)


def check_memory(n: int, num_clusters: int) -> None:
    needed = 10 * 8 * num_clusters * n * n  # matrices that ADMM holds at once
    if needed > 8 << 30:
        raise ValueError(
            f"x must be smaller for solver='admm': {n} points and {num_clusters} blocks need {needed:,} bytes; use "
            f"solver='factorized', or solve a sample and label the rest (LikelihoodSDP(sketch_size=...))"
        )


def warn_unless_converged(residual: float, tol: float, num_iters: int) -> None:
    if residual > 100 * tol:
        warnings.warn(
            f'the solver stopped after {num_iters} iterations at an accuracy of {residual:.1e}, tol is {tol:.1e}; '
            f'raise num_iters or tol',
            stacklevel=3,
        )
