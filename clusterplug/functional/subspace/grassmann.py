# SPDX-License-Identifier: Apache-2.0
"""Classes as linear subspaces: logits by projection, and steps on the Grassmann manifold by n x n matrices."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_choice, check_count, check_device, check_finite, check_number, check_points
from clusterplug.core.numerics import exact_products, working_dtype

__all__ = ['class_overlap', 'grassmann_logits', 'grassmann_step', 'orthonormalize_bases']

_RETRACTIONS = ('geodesic', 'qr')
# entries of the projections (rows, K, n) that are held at once; above it they are recomputed in backward
_MAX_PROJECTIONS = 1 << 22


def grassmann_logits(x: Tensor, bases: Tensor, scale: float = 25.0) -> Tensor:
    r"""Return how much of each feature lies in each class's subspace.

    .. math:: l_k = s \, \lVert S_k^\top x \rVert / \lVert x \rVert, \qquad 0 \le l_k \le s.

    One matrix product and a norm. Where the projections of all rows on all bases (rows, K, n) would be large (dense
    prediction), they are made in blocks and recomputed in backward, so that memory grows with rows x K alone.

    Args:
        x: (..., D) features of any length. Their length has no effect, nor has their sign.
        bases: (K, D, n) orthonormal columns S_k, 1 <= n <= D (not checked: that would be a synchronization; see
            :func:`orthonormalize_bases`).
        scale: s > 0, the inverse temperature of the softmax that follows.

    Returns:
        (..., K) in the type of ``x``, computed in fp32 at least. A row of zeros has logits 0 and no gradient, as has a
        logit of 0. A row with NaN or inf has logits NaN, and neither it nor its gradient reaches anything else.

    Raises:
        TypeError: No floating tensors.
        ValueError: Shapes that do not fit, n > D, another device, a scale that is not positive.

    Source: Wang, Li, Zhang, "Get the Best of Both Worlds: Improving Accuracy and Transferability by Grassmann Class
    Representation", ICCV 2023 (arXiv 2308.01547), section 3.2; official code innerlee/GCR (Apache-2.0),
    ``gcr/grassmann_fc.py``. **Differs from the authors' code**: memory for dense features; any dtype; odd rows.

    Example:
        >>> bases = torch.eye(4)[None, :, :2]  # one class: the plane of the first two axes
        >>> grassmann_logits(torch.tensor([[3.0, 4.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]]), bases, scale=1.0)
        tensor([[1.0000],
                [0.7071]])
    """
    _check_bases(bases)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f'x must be a floating tensor (..., D), got {getattr(x, "dtype", type(x).__name__)}')
    if x.dim() < 1 or x.shape[-1] != bases.shape[-2]:
        raise ValueError(f'x must have {bases.shape[-2]} channels, as the bases, in its last dimension, got '
                         f'{tuple(x.shape)}; move the channels there')  # fmt: skip
    check_device(bases, x.device, 'bases')
    scale = check_number(scale, 'scale', above=0)
    dtype = working_dtype(x.dtype)
    with exact_products(x):
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        flat = bases.mT.reshape(-1, bases.shape[-2]).to(dtype)
        largest = torch.linalg.vector_norm(rows.detach(), torch.inf, dim=1, keepdim=True)
        finite = largest < torch.inf
        # by the largest entry first, whose square may be more than the type holds
        rows = torch.where(finite, rows, 0.0) / torch.where(finite & (largest > 0), largest, 1.0)
        rows = torch.nn.functional.normalize(rows, dim=1)
        if rows.shape[0] * flat.shape[0] <= _MAX_PROJECTIONS:
            lengths = torch.linalg.vector_norm((rows @ flat.T).unflatten(1, bases.shape[::2]), dim=-1)
        else:
            lengths = _Lengths.apply(rows, flat, bases.shape[-1])
        logits = (lengths * scale).masked_fill(~finite, torch.nan)
    return logits.view(*x.shape[:-1], bases.shape[0]).to(x.dtype)


class _Lengths(torch.autograd.Function):
    """Norms of the projections, block of rows by block; what it keeps is rows, bases and norms."""

    @staticmethod
    def forward(ctx, rows: Tensor, flat: Tensor, dim: int) -> Tensor:
        lengths = rows.new_empty(rows.shape[0], flat.shape[0] // dim)
        for block, part in zip(_blocks(rows, flat), _blocks(lengths, flat), strict=True):
            torch.linalg.vector_norm((block @ flat.T).unflatten(1, (-1, dim)), dim=-1, out=part)
        ctx.save_for_backward(rows, flat, lengths)
        ctx.dim = dim
        return lengths

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, flat, lengths = ctx.saved_tensors
        to_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        to_flat = torch.zeros_like(flat) if ctx.needs_input_grad[1] else None
        grad = torch.where(lengths > 0, grad / lengths, 0.0)  # the sub-gradient 0 of a norm of 0
        for start, block in zip(_starts(rows, flat), _blocks(rows, flat), strict=True):
            factor = grad[start : start + len(block), :, None]
            along = (block @ flat.T).unflatten(1, (-1, ctx.dim)).mul_(factor).flatten(1)
            if to_rows is not None:
                torch.mm(along, flat, out=to_rows[start : start + len(block)])
            if to_flat is not None:
                to_flat.addmm_(along.T, block)
        return to_rows, to_flat, None


def _starts(rows: Tensor, flat: Tensor) -> range:
    return range(0, rows.shape[0], max(1, _MAX_PROJECTIONS // flat.shape[0]))


def _blocks(rows: Tensor, flat: Tensor) -> tuple[Tensor, ...]:
    return rows.split(max(1, _MAX_PROJECTIONS // flat.shape[0]))


def grassmann_step(
    bases: Tensor,
    direction: Tensor,
    step: float | Tensor,
    *,
    retraction: str = 'geodesic',
    orthonormalize: bool = False,
) -> Tensor:
    r"""Walk from each subspace along a direction, and return an orthonormal basis of where one arrives.

    The direction D is projected on the tangent space, G = D - S S^T D. With the n x n matrix
    :math:`G^\top G = V \mathrm{diag}(\sigma^2) V^\top` and the step t, the geodesic is

    .. math:: S' = S \, V \cos(t \sigma) V^\top + G \, V \frac{\sin(t \sigma)}{\sigma} V^\top ,

    the same basis as from the singular vectors of G (D x n), which are never made. The principal angles between old
    and new subspace are t sigma. The new basis is the old one carried along, so momentum stays meaningful.

    Args:
        bases: (..., D, n) orthonormal columns, n <= D.
        direction: (..., D, n), any matrix: a gradient, or a momentum buffer from another point. **Along** it, so a
            descent passes its negative, or a negative step.
        step: t, a number or a 0-dim tensor (then without a synchronization).
        retraction: 'geodesic', or 'qr': the QR frame of S + t G with a positive diagonal, by Cholesky of an n x n
            matrix; equal to first order.
        orthonormalize: Remove what rounding has added to the basis over many steps (1e-5 after some hundred), by the
            Cholesky factor of an n x n matrix, which turns no column around.

    Returns:
        (..., D, n) in the type of ``bases``, computed in fp32 at least, without gradient. Direction 0 returns the
        bases. A direction that is not finite, or whose square is not, makes that subspace alone NaN.

    Raises:
        TypeError: No floating tensors.
        ValueError: Shapes that do not fit, n > D, another device, an unknown retraction.

    Source: Wang, Li, Zhang, ICCV 2023 (arXiv 2308.01547), algorithm 1; Edelman, Arias, Smith, "The Geometry of
    Algorithms with Orthogonality Constraints", SIAM J. Matrix Anal. Appl. 1998, theorem 2.3; official code innerlee/GCR
    (Apache-2.0), ``gcr/rsgd.py``. **Differs from the authors' code**: n x n eigenvectors instead of a D x n SVD whose
    driver exists on CUDA alone.

    Example:
        >>> line = torch.tensor([[1.0], [0.0]])
        >>> turned = grassmann_step(line, torch.tensor([[0.0], [1.0]]), torch.pi / 6)
        >>> turned.flatten()
        tensor([0.8660, 0.5000])
    """
    _check_bases(bases)
    check_choice(retraction, 'retraction', _RETRACTIONS)
    if not isinstance(direction, Tensor) or not direction.is_floating_point():
        raise TypeError(
            f'direction must be a floating tensor, got {getattr(direction, "dtype", type(direction).__name__)}'
        )
    if direction.shape != bases.shape:
        raise ValueError(
            f'direction must have the shape of the bases, {tuple(bases.shape)}, got {tuple(direction.shape)}'
        )
    check_device(direction, bases.device, 'direction')
    if not isinstance(step, Tensor):
        step = check_number(step, 'step')
    elif step.dim():
        raise ValueError(f'step must be one number, got a tensor {tuple(step.shape)}; scale the direction instead')
    dtype = working_dtype(bases.dtype, direction.dtype)
    with torch.no_grad(), exact_products(bases):
        # as rows (K, n, D), the layout of a checkpoint: no copies where the bases are a view of it
        rows, direction = (each.mT.to(dtype).reshape(-1, *bases.mT.shape[-2:]) for each in (bases, direction))
        rows = _step_rows(rows, direction, step, retraction)
        if orthonormalize and retraction != 'qr':
            rows = _orthonormal_rows(rows)
    return rows.view(bases.mT.shape).mT.to(bases.dtype)


def _step_rows(rows: Tensor, direction: Tensor, step: float | Tensor, retraction: str) -> Tensor:
    tangent = torch.baddbmm(direction, direction @ rows.mT, rows, alpha=-1)
    if retraction == 'qr':
        return _orthonormal_rows(torch.add(rows, tangent * step))
    gram = tangent @ tangent.mT
    finite = torch.isfinite(gram).flatten(1).all(1)[:, None, None]
    squares, vectors = torch.linalg.eigh(torch.where(finite, gram, 0.0))
    sigma = squares.clamp_min_(0).sqrt_()
    angle = sigma * step
    # sinc is 1 where the angle is 0; eigh of NaN would raise, and a step of 0 in place of it would hide it
    along = vectors * (torch.sinc(angle / torch.pi) * step)[:, None, :] @ vectors.mT
    stay = torch.where(finite, (vectors * angle.cos()[:, None, :]) @ vectors.mT, torch.nan)
    return torch.baddbmm(stay @ rows, along, tangent)


def orthonormalize_bases(bases: Tensor) -> Tensor:
    r"""Return the orthonormal basis next to each basis: the QR frame whose R has a positive diagonal.

    The positive diagonal keeps every column's sign, so that a momentum buffer stays aligned with the basis, which a
    plain QR flips. Cholesky of an n x n matrix, twice and in float64, so that bases far from orthonormal come out well
    too: for the start and for checkpoints. In training :func:`grassmann_step` does it.

    Args:
        bases: (..., D, n), n <= D, of full rank.

    Returns:
        (..., D, n) in the type of ``bases``, computed in float64, without gradient. NaN where the columns are
        dependent, or not finite.

    Raises:
        TypeError: ``bases`` is not floating.
        ValueError: A shape that does not fit, n > D.

    Source: Wang, Li, Zhang, ICCV 2023 (arXiv 2308.01547), official code innerlee/GCR (Apache-2.0), ``gcr/rsgd.py``.
    **Differs from the authors' code**: theirs keeps the signs of LAPACK's QR: its momentum then points the wrong way.

    Example:
        >>> orthonormalize_bases(torch.tensor([[2.0, 1.0], [0.0, -3.0], [0.0, 0.0]])).abs().sum(0)
        tensor([1., 1.])
    """
    _check_bases(bases)
    with torch.no_grad(), exact_products(bases):
        rows = bases.detach().mT.double()
        largest = torch.linalg.vector_norm(rows, torch.inf, dim=-1, keepdim=True)
        rows = torch.nn.functional.normalize(rows / torch.where(largest > 0, largest, 1.0), dim=-1)
        return _orthonormal_rows(_orthonormal_rows(rows)).mT.to(bases.dtype)


def _orthonormal_rows(rows: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(rows @ rows.mT)
    found = torch.linalg.solve_triangular(factor, rows, upper=False)
    return torch.where((failed > 0)[..., None, None], torch.nan, found)


def class_overlap(bases: Tensor, *, chunk_size: int = 64) -> Tensor:
    r"""Return how much of each class's subspace lies in each other one's: which classes are easily confused.

    .. math:: o_{ij} = \lVert S_i^\top S_j \rVert_F^2 / n = \text{mean of } \cos^2 \text{ of the principal angles}.

    Args:
        bases: (K, D, n) orthonormal columns.
        chunk_size: Classes whose projections on all others (n, K n) are made at once.

    Returns:
        (K, K) in the type of ``bases``, symmetric, from 0 (orthogonal) to 1 (the same subspace). Random subspaces
        overlap by n / D.

    Raises:
        TypeError: ``bases`` is not floating, ``chunk_size`` no int.
        ValueError: A shape that does not fit, n > D, bases that are not finite.

    Source: the projection metric, Edelman, Arias, Smith, SIAM J. Matrix Anal. Appl. 1998, section 4.3.

    Example:
        >>> class_overlap(torch.eye(3)[torch.tensor([[0, 1], [1, 2]])].mT)
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]])
    """
    _check_bases(bases)
    if bases.dim() != 3:
        raise ValueError(f'bases must have shape (K, D, n), got {tuple(bases.shape)}')
    check_finite(bases, 'bases')
    chunk_size = check_count(chunk_size, 'chunk_size', 1)
    with exact_products(bases):
        rows = bases.mT.to(working_dtype(bases.dtype))
        count, dim, _ = rows.shape
        flat = rows.flatten(0, 1)
        found = [
            (part.flatten(0, 1) @ flat.T).square().view(len(part), dim, count, dim).sum((1, 3))
            for part in rows.split(chunk_size)
        ]
        return (torch.cat(found) / dim).to(bases.dtype)


def _check_bases(bases: Tensor) -> None:
    check_points(bases, 'bases')
    if bases.shape[-1] > bases.shape[-2]:
        raise ValueError(
            f'bases must have at most as many columns (n) as rows (D), got shape {tuple(bases.shape)}; a subspace of '
            f'{bases.shape[-2]} dimensions has at most {bases.shape[-2]}'
        )
