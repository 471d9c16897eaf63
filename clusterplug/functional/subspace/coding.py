# SPDX-License-Identifier: Apache-2.0
"""How many bits the directions of points take: coding rate, and the entropy of their spectrum."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from clusterplug.core.checks import check_device, check_number, check_points
from clusterplug.core.distributed import max_over_ranks, sum_ranks, world_size
from clusterplug.core.numerics import exact_products, host_checks_allowed

__all__ = ['coding_rate', 'spectral_entropy']


def coding_rate(z: Tensor, *, eps2: float, weights: Tensor | None = None) -> Tensor:
    r"""Return the rate (in nats) at which points are coded up to a squared distortion.

    .. math:: R(Z) = \log\det\Bigl(I + \frac{d}{\epsilon^2 \sum_i w_i} Z^\top \mathrm{diag}(w) Z\Bigr),

    which is :math:`\log\det(I + \frac{d}{n \epsilon^2} Z^\top Z)` for equal weights. Computed in float64, on the
    smaller of the two sides (d x d or n x n), as twice the logarithm of a Cholesky diagonal.

    Args:
        z: (..., n, d) floating; the rows are the points.
        eps2: Squared distortion, > 0, in squared units of ``z``.
        weights: (..., n) non-negative; only their proportions matter. A point of weight 0 is ignored.

    Returns:
        (...) in the type of ``z``. 0 where all weights are 0. A problem with NaN or inf in a point gives NaN, alone,
        and so does one that float64 cannot resolve next to I (squared lengths above some 1e14 eps2). At most
        ``d log(1 + 1 / eps2)`` for points of unit length.

    Raises:
        TypeError: If ``z`` is not a floating tensor.
        ValueError: If ``eps2`` <= 0, shapes or devices do not fit or (looked at on the CPU) a weight is negative or not
            finite.

    Source: Ma, Derksen, Hong and Wright, "Segmentation of multivariate mixed data via lossy coding and compression",
    2007; Yu, Chan, You, Song and Ma, "Learning diverse and discriminative representations via the principle of maximal
    coding rate reduction", NeurIPS 2020, arXiv 2006.08558, official code Ma-Lab-Berkeley/MCR2 (MIT).
    **Differs from the authors' code**: no factor 1/2, ``eps2`` is the square itself, Cholesky instead of LU, float64.

    Example:
        >>> coding_rate(torch.eye(4), eps2=0.5)  # 4 directions, each log(1 + 1 / 0.5)
        tensor(4.3944)
    """
    check_points(z, 'z')
    eps2 = check_number(eps2, 'eps2', above=0)
    with exact_products(z):
        points = z.double()
        if weights is None:
            scale = points.shape[-1] / (eps2 * points.shape[-2])
            return _half_log_det(points, scale).to(z.dtype)
        weights = check_weights(weights, z.shape[:-1], z.device)
        total = weights.sum(-1, keepdim=True)
        share = weights / torch.where(total > 0, total, 1.0)
        # where, not the plain root: its gradient at 0 is infinite, and 0 * NaN is NaN
        used = (weights > 0).unsqueeze(-1)
        root = torch.where(weights > 0, share, 1.0).sqrt().unsqueeze(-1)
        return _half_log_det(torch.where(used, points, 0.0) * root, points.shape[-1] / eps2).to(z.dtype)


def check_weights(weights: Tensor, shape: torch.Size, device: torch.device, name: str = 'weights') -> Tensor:
    """Return non-negative ``weights`` of ``shape`` in float64."""
    if not isinstance(weights, Tensor) or weights.is_complex():
        raise TypeError(f'{name} must be a real torch.Tensor, got {getattr(weights, "dtype", type(weights).__name__)}')
    check_device(weights, device, name)
    if weights.shape != shape:
        raise ValueError(f'{name} must have shape {tuple(shape)}, got {tuple(weights.shape)}')
    if host_checks_allowed(weights) and not bool(((weights >= 0) & (weights < torch.inf)).all()):
        raise ValueError(f'{name} must be finite and not negative, got others; clamp or drop them')
    return weights.double()


def log_det(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of the determinant of positive definite matrices, and their Cholesky factors; NaN where they are not.

    Never raises: a matrix with NaN, or one that rounding made indefinite, gives NaN for itself alone.
    """
    factor, info = torch.linalg.cholesky_ex(matrices)
    value = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    bad = (info > 0) | ~matrices.diagonal(dim1=-2, dim2=-1).sum(-1).isfinite()
    return torch.where(bad, torch.nan, value), factor


def _half_log_det(points: Tensor, scale: float) -> Tensor:
    """logdet(I + scale Z^T Z) on the smaller side."""
    return _LogDetGram.apply(points, scale)


class _LogDetGram(torch.autograd.Function):
    """The rate and its gradient 2 scale Z (I + scale Z^T Z)^-1 from one Cholesky factor."""

    @staticmethod
    def forward(ctx, points, scale):
        tall = points.shape[-2] >= points.shape[-1]
        gram = points.mT @ points if tall else points @ points.mT
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        value, factor = log_det(eye + scale * gram)
        ctx.save_for_backward(points, factor)
        ctx.scale, ctx.tall = scale, tall
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        points, factor = ctx.saved_tensors
        solved = torch.cholesky_solve(points.mT, factor).mT if ctx.tall else torch.cholesky_solve(points, factor)
        return 2 * ctx.scale * grad[..., None, None] * solved, None


def spectral_entropy(z: Tensor, *, center: bool = True, across_ranks: bool = False) -> Tensor:
    r"""Return the von Neumann entropy of the covariance of points; its exponential is their effective dimension.

    .. math:: \rho = \frac{C}{\operatorname{tr} C}, \qquad S = -\operatorname{tr} \rho \log \rho
              = -\sum_i \lambda_i \log \lambda_i

    with C the covariance of the rows. From 0 (all on a line) to log of the smaller side (equal spread in all
    directions); it changes with neither unit nor rotation, nor, centered, with a shift.

    Args:
        z: (..., n, d) floating. Computed in float64 on the smaller of d x d and n x n.
        center: Subtract the mean row first.
        across_ranks: Take the rows of all ranks of torch.distributed together, any number on each, 0 too; the rest of
            the shape must be the same, and all ranks must call it in the same step. They exchange d x d sums, no rows.
            Every rank gets the entropy of all, and the gradient that its rows have from the losses of all ranks: the
            mean over ranks, as DistributedDataParallel takes it, is that of one process with all rows.

    Returns:
        (...) in the type of ``z``. 0 where all rows are equal. A problem with NaN or inf gives NaN, alone. The gradient
        needs no derivative of eigenvectors and is finite also where eigenvalues repeat or vanish.

    Raises:
        TypeError: If ``z`` is not a floating tensor.
        ValueError: If a side of ``z`` is 0 (with ``across_ranks`` the number of rows may be).

    Source: von Neumann entropy of a covariance as in Skean et al., "DiME", 2023, and the latent regularization of
    Koopman auto-encoders. **Differs from common code**: no 1e-8 added to the covariance, no derivative of eigenvectors.

    Example:
        >>> spectral_entropy(torch.cat([torch.eye(3), -torch.eye(3)])).exp().round()
        tensor(3.)
    """
    ranks = across_ranks and world_size() > 1
    check_points(z, 'z', allow_empty=ranks and z.shape[-1] > 0)
    group = dist.group.WORLD if ranks else None
    with exact_products(z):
        points = z.double()
        if center and not ranks:
            points = points - points.mean(-2, keepdim=True)
        elif center:
            # without a gradient: that of the covariance with respect to the mean is 0
            number = sum_ranks(points.new_full((), points.shape[-2]))
            points = points - sum_ranks(points.detach().sum(-2, keepdim=True)) / number
        # a sum of squares beyond 1e308 is no matter here
        largest = torch.stack([_largest(points), _largest(z.double())])
        scale, before = max_over_ranks(largest, group)
        rounding = torch.finfo(torch.float64).eps * before * 8
        points = torch.where(scale > rounding, points / torch.where(scale > 0, scale, 1.0), points * 0.0)
        tall = ranks or points.shape[-2] >= points.shape[-1]
        gram = points.mT @ points if tall else points @ points.mT
        return _Entropy.apply(sum_ranks(gram) if ranks else gram).to(z.dtype)


def _largest(z: Tensor) -> Tensor:
    """(..., 1, 1) largest modulus of each problem; 0 without rows."""
    if z.shape[-2] == 0:
        return z.new_zeros(*z.shape[:-2], 1, 1)
    return z.detach().abs().amax((-2, -1), keepdim=True)


class _Entropy(torch.autograd.Function):
    """-sum l log l of the eigenvalues of symmetric matrices, each divided by their sum."""

    @staticmethod
    def forward(ctx, gram):
        good = gram.isfinite().flatten(-2).all(-1)
        values, vectors = torch.linalg.eigh(torch.where(good[..., None, None], gram, 0.0))
        values = values.clamp_min(0)
        total = values.sum(-1, keepdim=True)
        share = values / torch.where(total > 0, total, 1.0)
        floor = torch.finfo(share.dtype).eps
        logs = share.clamp_min(floor).log()
        entropy = -(share * logs).sum(-1).clamp_max(0)
        ctx.save_for_backward(vectors, logs, entropy, total, good)
        return torch.where(good, entropy, torch.nan)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        vectors, logs, entropy, total, good = ctx.saved_tensors
        slope = -(logs + entropy.unsqueeze(-1)) / torch.where(total > 0, total, 1.0) * (total > 0)
        result = grad[..., None, None] * ((vectors * slope.unsqueeze(-2)) @ vectors.mT)
        return torch.where(good[..., None, None], result, torch.nan)
