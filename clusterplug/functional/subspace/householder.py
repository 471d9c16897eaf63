# SPDX-License-Identifier: Apache-2.0
"""Products of Householder reflections in compact form, and the reflectors of a given frame."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_points
from clusterplug.core.numerics import host_checks_allowed, no_autocast, working_dtype

__all__ = ['HouseholderReflectors', 'householder_product', 'householder_reflectors']

# squared lengths between this and its inverse are far from the ends of fp32
_SAFE_SQUARE = 1e-24


class HouseholderReflectors(NamedTuple):
    """Reflectors and signs of an orthonormal frame.

    Attributes:
        v: (..., D, n) unit reflectors, for :func:`householder_product`.
        signs: (..., n), 1 or -1: the frame is ``householder_product(v) * signs[..., None, :]``.
    """

    v: Tensor
    signs: Tensor


def householder_product(v: Tensor, rank: int | None = None) -> Tensor:
    r"""Return the first columns of the product of the reflections whose normals are the columns of ``v``.

    .. math:: Q = H(v_1) \cdots H(v_m), \quad H(v) = I - 2 v v^\top / \lVert v \rVert^2, \qquad
              Q = I - U T U^\top, \quad T^{-1} = \mathrm{striu}(U^\top U) + I / 2

    with the unit columns U: forward and backward are products and one triangular solve each, instead of m rank-1
    updates. The columns are orthonormal to rounding whatever ``v`` is, so no penalty is needed to keep them so, and the
    gradient of each ``v_i`` is orthogonal to it (its length does not matter). Differentiable any number of times.

    Args:
        v: (..., D, m) normals, m >= 1, of any length and sign. D need not be a power of two. A column of zeros stands
            for the identity (as tau = 0 does in LAPACK) and gets no gradient.
        rank: Columns of Q that are returned, 1 .. D; None = m (at most D), as ``torch.linalg.householder_product``
            returns. ``rank=D`` is the whole of Q, of determinant (-1)^m.

    Returns:
        (..., D, rank) in the type of ``v``; computed in fp32 at least. A matrix with NaN or inf gives NaN; those of
        other problems of the batch are not touched.

    Raises:
        TypeError: ``v`` is not floating, ``rank`` no int.
        ValueError: ``v`` without a column, or a rank above D.

    Source: compact WY form, Schreiber and Van Loan, SIAM J. Sci. Stat. Comput. 1989; as projector: Song et al.,
    "Householder Projector for Unsupervised Latent Semantics Discovery", ICCV 2023 (arXiv 2307.08012), section 3.2;
    official code KingJamesSong/HouseholderGAN (no license of its own).

    **Differs from the authors' code**: any D (theirs merges halves of a power of two), a backward pass (theirs raises
    an in-place error), and the first columns alone where only they matter.

    Example:
        >>> v = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
        >>> q = householder_product(v)
        >>> q.shape, bool(torch.allclose(q.mT @ q, torch.eye(2), atol=1e-6))
        (torch.Size([6, 2]), True)
        >>> round(float(torch.linalg.det(householder_product(v, rank=6))))
        1
    """
    check_points(v, 'v')
    size, count = v.shape[-2:]
    columns = min(size, count) if rank is None else check_count(rank, 'rank', 1, size)
    # the operations of the formula where something looks inside: torch.func, torch.compile
    inside = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    with no_autocast(v):
        return (_recorded_product if inside else _Product.apply)(v.to(working_dtype(v.dtype)), columns).to(v.dtype)


def householder_reflectors(frame: Tensor) -> HouseholderReflectors:
    r"""Return reflectors whose product is the given frame, up to the sign of each column.

    n reflections reach every orthonormal frame (D, n) up to signs: the k-th maps what the earlier ones made of column
    k to -+e_k. None of them is degenerate. A loop over n in float64, for the start of a parametrization; no gradient.

    Args:
        frame: (..., D, n), n <= D, with orthonormal columns. Others give the reflectors of their QR frame.

    Returns:
        :class:`HouseholderReflectors` in the type of ``frame``.

    Raises:
        TypeError: ``frame`` is not floating.
        ValueError: more columns than rows.

    Source: Golub and Van Loan, "Matrix Computations", algorithm 5.2.1. **Differs from the authors' code**: theirs
    stores LAPACK's packed output as if it were the reflectors, which gives another matrix, and drops the signs.

    Example:
        >>> frame = torch.linalg.qr(torch.randn(5, 3, generator=torch.Generator().manual_seed(0))).Q
        >>> v, signs = householder_reflectors(frame)
        >>> bool(torch.allclose(householder_product(v) * signs, frame, atol=1e-6))
        True
    """
    check_points(frame, 'frame')
    size, count = frame.shape[-2:]
    if count > size:
        raise ValueError(
            f'frame must have at most as many columns as rows, got {count} columns of {size}; transpose it'
        )
    with no_autocast(frame), torch.no_grad():
        rest = frame.detach().double().clone()  # once at the start of a model: exact, also of nearly parallel columns
        normals, signs = torch.zeros_like(rest), rest.new_ones(*rest.shape[:-2], count)
        for k in range(count):
            column = rest[..., k:, k]
            sign = torch.where(column[..., 0] < 0, -1.0, 1.0).double()
            normal = column.clone()
            # away from the axis, so that nothing cancels; a column of zeros becomes a reflection of the axis itself
            length = torch.linalg.vector_norm(column, dim=-1)
            normal[..., 0] += sign * torch.where(length > 0, length, 1.0)
            normal = torch.nn.functional.normalize(normal, dim=-1, eps=0.0)[..., None]
            rest[..., k:, k:] -= 2 * normal @ (normal.mT @ rest[..., k:, k:])
            normals[..., k:, k] = normal[..., 0]
            signs[..., k] = -sign
        return HouseholderReflectors(normals.to(frame.dtype), signs.to(frame.dtype))


def _scaled(v: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """``v``, divided by the largest entry of each column where squares would leave the range; that; the Gram matrix."""
    gram = v.mT @ v
    if host_checks_allowed(v):
        squares = gram.diagonal(dim1=-2, dim2=-1)
        if not squares.numel() or (squares.amin().item() >= _SAFE_SQUARE and squares.amax().item() <= 1 / _SAFE_SQUARE):
            return v, None, gram
    largest = torch.linalg.vector_norm(v, torch.inf, dim=-2, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    v = v / largest
    gram = v.mT @ v
    squares = gram.diagonal(dim1=-2, dim2=-1)
    squares += squares == 0  # a column of zeros: any square will do
    return v, largest, gram


class _Product(torch.autograd.Function):
    """Q = I - V W, W = T V_r^T, T^-1 = triu(V^T V) with half its diagonal: no unit columns are needed.

    With P = T^-T V^T G and S = triu(P W^T) with half its diagonal the gradient of V is V (S + S^T) - G W^T - P^T.
    """

    @staticmethod
    def forward(ctx, v: Tensor, rank: int) -> Tensor:
        scaled, largest, inverse = _scaled(v)
        inverse.triu_().diagonal(dim1=-2, dim2=-1).mul_(0.5)
        weights = torch.linalg.solve_triangular(inverse, scaled[..., :rank, :].mT, upper=True)
        product = scaled @ weights.neg()
        product.diagonal(dim1=-2, dim2=-1).add_(1.0)
        ctx.save_for_backward(v, scaled, largest, weights, inverse)
        ctx.rank = rank
        return product

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        v, scaled, largest, weights, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of the gradient is asked for: through operations that record it
            return torch.autograd.grad(_recorded_product(v, ctx.rank), v, grad, create_graph=True)[0], None
        solved = torch.linalg.solve_triangular(inverse.mT, scaled.mT @ grad, upper=False)
        pairs = (solved @ weights.mT).triu_()
        pairs.diagonal(dim1=-2, dim2=-1).mul_(0.5)
        found = (scaled @ (pairs + pairs.mT)).sub_(grad @ weights.mT)
        found[..., : ctx.rank, :] -= solved.mT
        return found if largest is None else found / largest, None


def _recorded_product(v: Tensor, rank: int) -> Tensor:
    """As :func:`_product`, of operations with gradients."""
    length = torch.linalg.vector_norm(v, dim=-2, keepdim=True)
    unit = v / torch.where(length > 0, length, 1.0)
    eye = partial(torch.eye, dtype=v.dtype, device=v.device)
    inverse = torch.triu(unit.mT @ unit, 1) + eye(v.shape[-1]) / 2
    weights = torch.linalg.solve_triangular(inverse, unit[..., :rank, :].mT, upper=True)
    return eye(v.shape[-2], rank) - unit @ weights
