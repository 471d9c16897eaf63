# SPDX-License-Identifier: Apache-2.0
"""Leading singular vectors of a network's Jacobian from products with it, and its numerical rank."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_choice, check_count, check_finite, check_number
from clusterplug.core.numerics import host_checks_allowed
from clusterplug.functional.subspace._jacobian_products import Jacobian

__all__ = ['JacobianSVD', 'jacobian_residual', 'jacobian_svd', 'numerical_rank']

_OVERSAMPLE = 10
_PROBES = 10  # of the energy that an adaptive rank has not found yet


class JacobianSVD(NamedTuple):
    """Leading part of a Jacobian J (m, n) = U S V^T, of flattened input and output."""

    u: Tensor  # (m, r) orthonormal columns, directions of the output
    s: Tensor  # (r,) descending
    v: Tensor  # (n, r) orthonormal columns, directions of the input; v.T.view(r, *x.shape) has their shape


@torch.inference_mode(False)  # which records no derivatives: all would be 0
@torch.no_grad()
def jacobian_svd(
    fn: Callable[[Tensor], Tensor],
    x: Tensor,
    rank: int | float,
    *,
    method: str = 'auto',
    num_iters: int = 10,
    tol: float = 1e-6,
    mask: Tensor | None = None,
    chunk_size: int | None = 64,
    generator: torch.Generator | None = None,
) -> JacobianSVD:
    r"""Return the leading singular values and vectors of the Jacobian of ``fn`` at ``x``.

    .. math:: J = \partial f / \partial x \approx U \operatorname{diag}(s) V^\top

    by block power iteration: :math:`U = \operatorname{qr}(J V)` of forward products, then the singular vectors of
    :math:`U^\top J` of backward products, all columns in one call of ``fn`` under ``vmap``. J is never formed: at most
    2 (r + 10) ``num_iters`` passes, where that is less than the min(m, n) passes of the full J.

    Args:
        fn: ``x -> tensor`` of any shape, differentiable, deterministic (``model.eval()``) and the same for each ``x``:
            for a network of batches ``lambda x: model(x[None])[0]``. Attention runs in its plain form meanwhile, which
            has forward derivatives.
        x: Where: a floating tensor of any shape, all of which is the input.
        rank: r, the number of singular values; or a share in (0, 1): as many as hold it of the Frobenius norm of J
            (:func:`numerical_rank`), found with blocks that grow and random probes of what is left.
        method: ``'power'``, ``'full'`` (the whole J, by as many passes as its smaller side) or ``'auto'``: the one of
            fewer passes.
        num_iters: Rounds at most; ends when no singular value changed by more than ``tol`` of the largest.
        tol: See above; 0 always does ``num_iters`` rounds.
        mask: Bool, broadcasts with the output: the Jacobian of the part of the output that is True.
        chunk_size: Columns at once; None = all.
        generator: Of the random start; by default one of a fixed seed, so that a call gives the same twice.

    Returns:
        JacobianSVD in the type of ``x`` (fp16 and bf16 are given to ``fn`` as fp32: give a network in fp32). Of the
        two signs of each pair that with a positive largest entry of v. Vectors of equal singular values are any basis
        of their span.

    Raises:
        TypeError: If ``x`` or the output is not a floating tensor.
        ValueError: If ``rank`` exceeds a side of J, an option is out of range, or ``x`` or J is not finite, or
            ``fn`` is random.
        RuntimeError: If an operation of ``fn`` has no forward derivative.

    Source: Chen, Zhang, Guo, Lu, Wang and Qu, "Exploring low-dimensional subspaces in diffusion models for controllable
    image editing", 2024 (arXiv 2409.02374), code ChicyChen/LOCO-Edit (Apache-2.0), local_encoder_decoder_pullback_xt;
    Halko, Martinsson and Tropp, "Finding structure with randomness", 2011. **Differs from the authors' code**: the
    singular values are watched, not the entries of V, which may flip their signs; ten columns more than asked for; u is
    orthonormal; one batch of backward passes instead of one a row.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> jacobian_svd(lambda x: x.square(), x, 2).s
        tensor([6., 4.])
    """
    check_choice(method, 'method', ('auto', 'power', 'full'))
    num_iters, tol = check_count(num_iters, 'num_iters', 1), check_number(tol, 'tol', 0)
    if chunk_size is not None:
        chunk_size = check_count(chunk_size, 'chunk_size', 1)
    jacobian = Jacobian(fn, x, mask, chunk_size)
    share = rank if isinstance(rank, float) else None
    if share is not None:
        check_number(share, 'rank', above=0, hint='a whole number of singular values, or a share of the norm below 1')
        if share >= 1:
            raise ValueError(f'rank must be a whole number, or a share of the norm below 1, got {rank!r}')
    else:
        count = check_count(rank, 'rank', 1)
        if count > jacobian.least:
            raise ValueError(
                f'rank must be at most {jacobian.least}, the smaller side of the Jacobian {jacobian.sides}, got {rank}'
            )
    if generator is None:
        generator = torch.Generator(x.device).manual_seed(0)
    if share is not None:
        u, s, v = _adaptive(jacobian, share, method, num_iters, tol, generator)
    elif method == 'full' or (method == 'auto' and jacobian.least <= 2 * (count + _OVERSAMPLE) * num_iters):
        u, s, v = jacobian.full()
    else:
        u, s, v = _power(jacobian, count, num_iters, tol, generator)
    if share is None:
        u, s, v = u[:, :count], s[:count], v[:, :count]
    largest = v.gather(0, v.abs().argmax(0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(v)
    return JacobianSVD(*(each.to(x.dtype) for each in (u * sign, s, v * sign)))


@torch.inference_mode(False)
@torch.no_grad()
def jacobian_residual(
    fn: Callable[[Tensor], Tensor], x: Tensor, svd: JacobianSVD, *, mask: Tensor | None = None,
    chunk_size: int | None = 64,
) -> Tensor:  # fmt: skip
    r"""Return how far each triple is from a singular triple of the Jacobian, relative to the largest value.

    .. math:: r_i = \sqrt{\| J v_i - s_i u_i \|^2 + \| J^\top u_i - s_i v_i \|^2} \; / \; s_1

    Args:
        fn: As in :func:`jacobian_svd`. x, mask, chunk_size: likewise.
        svd: What it returned.

    Returns:
        (r,) in the type of ``x``, by 2 r passes.

    Raises:
        TypeError, ValueError: as :func:`jacobian_svd`; also where ``svd`` is not of this ``fn`` and ``x``.

    Source: as :func:`jacobian_svd`.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> jacobian_residual(torch.sin, x, jacobian_svd(torch.sin, x, 2)).round(decimals=4)
        tensor([0., 0.])
    """
    jacobian = Jacobian(fn, x, mask, chunk_size)
    u, s, v = (each.double() for each in svd)
    if (u.shape[0], v.shape[0]) != jacobian.sides:
        raise ValueError(f'svd must be of a Jacobian {jacobian.sides}, got u {tuple(u.shape)} and v {tuple(v.shape)}')
    forth, back = jacobian.forward(v) - u * s, jacobian.backward(u) - v * s
    scale = torch.where(s[:1] > 0, s[:1], 1.0)
    return ((forth.square().sum(0) + back.square().sum(0)).sqrt() / scale).to(x.dtype)


def numerical_rank(s: Tensor, eta: float = 0.99) -> Tensor:
    r"""Return how many of the largest singular values hold the share ``eta`` of the norm of all.

    .. math:: \min \{ r : \sqrt{\textstyle\sum_{i \le r} s_i^2} > \eta \sqrt{\textstyle\sum_i s_i^2} \}

    Args:
        s: (..., r) singular values in any order; all of them, or the share is that of those given.
        eta: In (0, 1), of the norm: 0.99 is 98.01 % of the energy.

    Returns:
        (...) int64; 0 where all are 0.

    Raises:
        TypeError, ValueError: If ``s`` is not a floating tensor (..., r), not finite (CPU), or ``eta`` out of range.

    Source: Wang et al. 2024 (arXiv 2409.02426), section 5; huijieZH/Diffusion-Model-Generalizability, edm/jacobian.py.

    Example:
        >>> numerical_rank(torch.tensor([10.0, 1.0, 0.1]))
        tensor(1)
    """
    if not isinstance(s, Tensor) or not s.is_floating_point():
        raise TypeError(f's must be a floating tensor, got {getattr(s, "dtype", type(s).__name__)}')
    if s.dim() < 1:
        raise ValueError('s must have shape (..., r), got a single number; put the values in a row')
    eta = check_number(eta, 'eta', above=0)
    if eta >= 1:
        raise ValueError(f'eta must be below 1, got {eta}; all of a norm takes all values that are not 0')
    if host_checks_allowed(s):
        check_finite(s.detach().unsqueeze(-2), 's')
    if not s.shape[-1]:
        return s.new_zeros(s.shape[:-1], dtype=torch.long)
    values = s.detach().double().abs()
    values = values / torch.where((size := values.amax(-1, keepdim=True)) > 0, size, 1.0)
    held = values.square().sort(-1, descending=True)[0].cumsum(-1)
    rank = (held <= eta**2 * held[..., -1:]).sum(-1) + 1
    return torch.where(held[..., -1] > 0, rank, 0)


def _power(jacobian: Jacobian, rank: int, num_iters: int, tol: float, generator, start: Tensor | None = None):
    """Singular triples of the leading block, ten more than asked for."""
    width = min(rank + _OVERSAMPLE, jacobian.least)
    x = jacobian.x
    fresh = torch.randn(jacobian.sides[1], width, generator=generator, device=generator.device, dtype=torch.float64)
    v = fresh.to(x.device)
    if start is not None:
        v = torch.cat([start, v[:, start.shape[1] :]], 1) if start.shape[1] < width else start[:, :width]
    v = torch.linalg.qr(v)[0]
    before = None
    for _ in range(num_iters):
        u = torch.linalg.qr(jacobian.forward(v))[0]
        v, s, wh = torch.linalg.svd(jacobian.backward(u), full_matrices=False)
        if tol and before is not None and bool(((s - before)[:rank].abs() <= tol * s[0]).all()):
            break
        before = s
    return u @ wh.mT, s, v


def _adaptive(jacobian: Jacobian, share: float, method: str, num_iters: int, tol: float, generator):
    """As many triples as hold a share of the norm: blocks twice as wide until the energy that is left is small."""
    rank, v = 16, None
    while method != 'full' and (method == 'power' or 2 * (rank + _OVERSAMPLE) * num_iters < jacobian.least):
        rank = min(rank, jacobian.least)
        u, s, v = _power(jacobian, rank, num_iters, tol, generator, v)
        probes = torch.randn(
            jacobian.sides[1], _PROBES, generator=generator, device=generator.device, dtype=torch.float64
        ).to(v)
        # a probe without its part in V has, on average, the energy that V does not hold
        left = jacobian.forward(probes - v @ (v.mT @ probes)).square().sum() / _PROBES
        held = s.square().cumsum(0)
        total = held[-1] + left
        enough = held > share**2 * total
        if bool(enough[: rank if rank < jacobian.least else None].any()) or not bool(total > 0):
            number = int(enough.int().argmax()) + 1 if bool(total > 0) else 0
            return u[:, :number], s[:number], v[:, :number]
        rank *= 2
    u, s, v = jacobian.full()
    number = int(numerical_rank(s, share))
    return u[:, :number], s[:number], v[:, :number]
