# SPDX-License-Identifier: Apache-2.0
"""Orthonormal frames of subspaces, the angles between them and the energy that lies in them."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clusterplug.core.checks import check_choice, check_device, check_finite, check_points
from clusterplug.core.numerics import exact_products, host_checks_allowed, working_dtype

__all__ = ['orthonormal_frame', 'principal_angles', 'projection_energy']

_METHODS = ('qr', 'polar')


def orthonormal_frame(x: Tensor, method: str = 'qr') -> Tensor:
    r"""Return matrices with orthonormal columns that span what the columns of ``x`` span.

    .. math:: \text{qr: } x = Q R,\ \operatorname{diag} R \ge 0; \qquad
              \text{polar: } Q = x (x^\top x)^{-1/2} = U V^\top,\ x = U S V^\top.

    ``'qr'`` keeps the span of the first 1, 2, ... columns (Gram-Schmidt), ``'polar'`` is the frame nearest to ``x`` in
    the Frobenius norm and turns with it on both sides. Columns that depend on others are completed by some direction.

    Args:
        x: (..., D, n) floating, n <= D. Computed in float64: rows of very unlike length make columns nearly
            dependent.
        method: ``'qr'`` or ``'polar'``.

    Returns:
        (..., D, n) in the type of ``x``. The gradient exists where the columns are independent; that of ``'polar'``
        also at repeated singular values (at ``x`` orthonormal, say), where the one through an SVD does not.

    Raises:
        TypeError: If ``x`` is not a floating tensor.
        ValueError: If n > D, a side is 0, ``method`` is unknown or (looked at on the CPU) ``x`` is not finite.

    Source: Golub and Van Loan, "Matrix Computations", 2013, sections 5.2 and 9.4.3.

    Example:
        >>> x = torch.tensor([[3.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
        >>> bool(torch.allclose(orthonormal_frame(x), torch.eye(3)[:, :2]))
        True
    """
    check_choice(method, 'method', _METHODS)
    _check_frame(x, 'x')
    with exact_products(x):
        values = x.double()
        return (_qr(values) if method == 'qr' else _Polar.apply(values)).to(x.dtype)


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    r"""Return the angles between two subspaces, the smallest first.

    .. math:: \cos\theta_i = \sigma_i(Q_a^\top Q_b), \qquad \sin\theta_i = \sigma_i((I - Q_a Q_a^\top) Q_b)

    from both of which the angle is read, so that angles near 0 and near pi / 2 are both exact to rounding.

    Args:
        a: (..., D, n) floating; columns that span the first subspace, not necessarily orthonormal, but independent.
        b: (..., D, m) likewise; batch dimensions broadcast.

    Returns:
        (..., min(n, m)) radians in 0 .. pi / 2, ascending, in the wider type of the two.

    Raises:
        TypeError: If one is not a floating tensor.
        ValueError: If n or m > D, D differs or (looked at on the CPU) the columns of one are dependent or not finite.

    Source: Bjorck and Golub, "Numerical methods for computing angles between linear subspaces", 1973; equal to
    ``scipy.linalg.subspace_angles`` in the other order.

    Example:
        >>> a, b = torch.eye(3)[:, :1], torch.tensor([[1.0], [1.0], [0.0]])
        >>> principal_angles(a, b).rad2deg()
        tensor([45.])
    """
    _check_frame(a, 'a')
    _check_frame(b, 'b')
    check_device(b, a.device, 'b')
    if a.shape[-2] != b.shape[-2]:
        raise ValueError(f'b must have the {a.shape[-2]} rows of a, got {tuple(b.shape)}; both lie in one space')
    dtype = torch.promote_types(a.dtype, b.dtype)
    with exact_products(a):
        first, second = _span(a.double(), 'a'), _span(b.double(), 'b')
        if first.shape[-1] < second.shape[-1]:
            first, second = second, first
        cross = first.mT @ second
        cosines = torch.linalg.svdvals(cross)
        sines = torch.linalg.svdvals(second - first @ cross).flip(-1)
        return torch.atan2(sines, cosines).to(dtype)


def projection_energy(x: Tensor, frames: Tensor) -> Tensor:
    r"""Return the squared length of the projection of each point on each subspace.

    .. math:: e_{ik} = \| U_k^\top x_i \|^2

    Args:
        x: (..., N, D) floating points.
        frames: (..., K, D, n) with orthonormal columns (see :func:`orthonormal_frame`; they are not made so here), on
            the device of ``x``.

    Returns:
        (..., N, K) in the type of ``x``; ``x.square().sum(-1) - e`` is the squared distance to the subspace.

    Raises:
        TypeError: If one is not a floating tensor.
        ValueError: If the shapes do not fit or the device differs.

    Example:
        >>> projection_energy(torch.tensor([[3.0, 4.0]]), torch.eye(2)[:, :, None])
        tensor([[ 9., 16.]])
    """
    check_points(x)
    _check_frame(frames, 'frames', finite=False)
    check_device(frames, x.device, 'frames')
    if frames.dim() < 3 or frames.shape[-2] != x.shape[-1]:
        raise ValueError(f'frames must have shape (..., K, {x.shape[-1]}, n), got {tuple(frames.shape)}')
    with exact_products(x):
        dtype = working_dtype(x.dtype, frames.dtype)
        return energies(x.to(dtype), frames.to(dtype)).to(x.dtype)


def energies(x: Tensor, frames: Tensor) -> Tensor:
    """(..., N, K) of points (..., N, D) and frames (..., K, D, n): one product for all subspaces."""
    num_clusters, width, dim = frames.shape[-3:]
    joined = frames.transpose(-3, -2).reshape(*frames.shape[:-3], width, num_clusters * dim)
    return (x @ joined).unflatten(-1, (num_clusters, dim)).square().sum(-1)


def _qr(x: Tensor) -> Tensor:
    q, r = torch.linalg.qr(x)
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(x.dtype)
    return q * signs.unsqueeze(-2)


def _span(x: Tensor, name: str) -> Tensor:
    """Orthonormal frame of the columns; raise on the CPU where they are dependent."""
    q, r = torch.linalg.qr(x / x.detach().abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny))
    if host_checks_allowed(x):
        size = torch.linalg.svdvals(r.detach())
        least = size.amax(-1) * torch.finfo(x.dtype).eps * max(x.shape[-2:])
        if bool((size.amin(-1) <= least).any()):
            raise ValueError(
                f'{name} must have independent columns, got a matrix of lower rank; remove the columns that depend on '
                f'others'
            )
    return q


class _Polar(torch.autograd.Function):
    """U V^T, with the gradient that exists wherever no singular value is 0."""

    @staticmethod
    def forward(ctx, x):
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        ctx.save_for_backward(u, s, vh)
        return u @ vh

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        u, s, vh = ctx.saved_tensors
        inner = u.mT @ grad @ vh.mT
        turning = (inner - inner.mT) / (s.unsqueeze(-1) + s.unsqueeze(-2))
        outside = (grad - u @ (u.mT @ grad)) @ vh.mT / s.unsqueeze(-2)
        return (u @ turning + outside) @ vh


def _check_frame(x: Tensor, name: str, *, finite: bool = True) -> None:
    check_points(x, name)
    if x.shape[-1] > x.shape[-2]:
        raise ValueError(
            f'{name} must have shape (..., D, n) with n <= D, got {tuple(x.shape)}; the columns are the vectors, '
            f'transpose it with .mT if they are its rows'
        )
    if finite and host_checks_allowed(x):
        check_finite(x.detach(), name)
