# SPDX-License-Identifier: Apache-2.0
"""Coding rate of all points less that of the parts of a soft partition: the objective of MCR2 and MLC."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_device, check_number, check_points
from clusterplug.core.numerics import exact_products, host_checks_allowed, working_dtype
from clusterplug.functional.subspace._part_rates import part_rates
from clusterplug.functional.subspace.coding import coding_rate

__all__ = ['conditional_coding_rate', 'rate_reduction']


def rate_reduction(
    z: Tensor, membership: Tensor, *, eps2: float, num_neighbors: int | None = None, mass: float = 0.99
) -> Tensor:
    r"""Return by how much coding each part by itself is shorter than coding all points at once.

    .. math:: \Delta R = R(Z) - R_c(Z, \Gamma)

    with :func:`coding_rate` and :func:`conditional_coding_rate`. Never negative where the rows of the membership sum to
    1; 0 where all parts are alike.

    Args:
        z: (..., n, d) floating, of unit length as a rule.
        membership: (..., n, k), non-negative: one-hot or soft labels, or a doubly stochastic (n, n).
        eps2: Squared distortion, > 0.
        num_neighbors: See :func:`conditional_coding_rate`.
        mass: See :func:`conditional_coding_rate`.

    Returns:
        (...) in the type of ``z``, to be maximized.

    Raises:
        TypeError, ValueError: As :func:`conditional_coding_rate`.

    Source: Yu et al., "Learning diverse and discriminative representations via the principle of maximal coding rate
    reduction", NeurIPS 2020, arXiv 2006.08558; with a doubly stochastic membership Ding et al., "Unsupervised manifold
    linearizing and clustering", ICCV 2023, arXiv 2301.01805 (its official repository is empty).

    Example:
        >>> z = torch.eye(4).repeat_interleave(8, 0)
        >>> round(float(rate_reduction(z, z, eps2=0.5)), 3)  # 4 parts on 4 axes: 4 log 3 - log 9
        2.197
    """
    _check(z, membership)
    wide = z.to(working_dtype(z.dtype))  # the difference of two rounded rates would carry both roundings
    parts = conditional_coding_rate(wide, membership, eps2=eps2, num_neighbors=num_neighbors, mass=mass)
    return (coding_rate(wide, eps2=eps2) - parts).to(z.dtype)


def conditional_coding_rate(
    z: Tensor, membership: Tensor, *, eps2: float, num_neighbors: int | None = None, mass: float = 0.99
) -> Tensor:
    r"""Return the mean rate at which points are coded when each part has its own code.

    .. math:: R_c(Z, \Gamma) = \frac{1}{n} \sum_j s_j \log\det\Bigl(I + \frac{d}{s_j \epsilon^2}
              Z^\top \mathrm{diag}(\Gamma_j) Z\Bigr), \qquad s_j = \sum_i \Gamma_{ij}.

    Value and gradient come from one pass over blocks of columns, with Cholesky factors and without a recorded graph:
    all d x d matrices of a block are one product of the membership with the outer products of the points (upper
    triangles). Memory beyond the inputs is about 2 n d (d + 1) / 2 numbers, whatever the number of parts. With fewer
    points than dimensions the n x n form is taken instead (Sylvester).

    Args:
        z: (..., n, d) floating. Computed in fp32 (float64 for float64, and on the CPU for rows so long that fp32 cannot
            carry them).
        membership: (..., n, k), non-negative. Parts without a member count nothing.
        eps2: Squared distortion, > 0.
        num_neighbors: Of each column use only that many largest entries, on their Gram matrix (Sylvester), wherever
            they hold the share ``mass`` of the column, which is rescaled; the other columns use all. An approximation
            to within the dropped mass, and exact for columns with at most that many entries that are not 0; dropped
            entries get no gradient. Reads on the host which columns qualify.
        mass: Share, in (0, 1].

    Returns:
        (...) in the type of ``z``. A problem with NaN or inf in a point gives NaN, alone.

    Raises:
        TypeError: If an argument is not a floating tensor.
        ValueError: If shapes, devices or options do not fit or (looked at on the CPU) a membership is negative or not
            finite.

    Source: as :func:`rate_reduction`. **Differs from the loss of the follow-up** LeslieTrue/CPP: no factor 1/2, blocks
    instead of an (n, d, n) tensor, a gradient by hand; equal to twice its value.

    Example:
        >>> z = torch.nn.functional.normalize(torch.randn(6, 3), dim=1)
        >>> rate = conditional_coding_rate(z, torch.eye(6), eps2=0.5)  # each by itself: log(1 + d / eps2)
        >>> round(float(rate), 3)
        1.946
    """
    _check(z, membership)
    eps2 = check_number(eps2, 'eps2', above=0)
    mass = check_number(mass, 'mass', most=1, above=0)
    if num_neighbors is not None:
        num_neighbors = min(check_count(num_neighbors, 'num_neighbors', 1), z.shape[-2])
    with exact_products(z):
        dtype = _precise(z, eps2)
        points = z.to(dtype).reshape(-1, *z.shape[-2:])
        members = membership.to(dtype).reshape(-1, *membership.shape[-2:])
        if len(points) == 0:
            return z.new_zeros(z.shape[:-2])
        rates = [part_rates(*pair, eps2, num_neighbors, mass) for pair in zip(points, members)]
        return torch.stack(rates).reshape(z.shape[:-2]).to(z.dtype)


def _precise(z: Tensor, eps2: float) -> torch.dtype:
    """fp32 resolves I + d / eps2 z z^T while its second term is below some 1e5."""
    if z.dtype == torch.float64:
        return torch.float64
    if host_checks_allowed(z):
        longest = torch.linalg.vector_norm(z.detach().float(), dim=-1).double().square()
        longest = torch.where(longest.isfinite(), longest, 0.0).max() if longest.numel() else 0.0
        if float(longest) * z.shape[-1] / eps2 > 1e5:
            return torch.float64
    return torch.float32


def _check(z: Tensor, membership: Tensor) -> None:
    check_points(z, 'z')
    check_points(membership, 'membership')
    check_device(membership, z.device, 'membership')
    if membership.shape[:-1] != z.shape[:-1]:
        raise ValueError(
            f'membership must have shape {(*z.shape[:-1], "k")}, one row a point of z, got {tuple(membership.shape)}; '
            f'for labels pass torch.nn.functional.one_hot(labels).float()'
        )
    if host_checks_allowed(membership):
        values = membership.detach()
        if not bool(((values >= 0) & (values < torch.inf)).all()):
            raise ValueError('membership must be finite and not negative, got others; normalize it with softmax, say')
