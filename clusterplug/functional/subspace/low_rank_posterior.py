# SPDX-License-Identifier: Apache-2.0
"""Noisy points of a mixture of low-rank Gaussians: which component they come from, and what they were without noise."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clusterplug.core.checks import check_device, check_number, check_points
from clusterplug.core.numerics import exact_products, host_checks_allowed, working_dtype

__all__ = ['low_rank_posterior_mean', 'low_rank_responsibilities']

# Below this share of noise the softmax is the hard one in fp32 anyway, and its scale would overflow.
_LEAST_NOISE = 1e-4


def low_rank_posterior_mean(
    x: Tensor,
    bases: Tensor | Sequence[Tensor],
    *,
    signal: float | Tensor,
    noise: float | Tensor,
    log_weights: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    r"""Return the mean of the clean point given a noisy one, under a mixture of low-rank Gaussians.

    With :math:`x_0 = U_k a`, :math:`a \sim N(0, I)`, component k with probability :math:`\pi_k`, and
    :math:`x = s x_0 + g \varepsilon`:

    .. math:: E[x_0 \mid x] = \frac{s}{s^2 + g^2} \sum_k w_k(x) \, U_k U_k^\top x, \qquad
              w = \operatorname{softmax}_k\left(\log \pi_k - \frac{d_k}{2} \log \frac{s^2 + g^2}{g^2}
              + \frac{s^2 \| U_k^\top x \|^2}{2 g^2 (s^2 + g^2)}\right)

    This is the optimal denoiser of such data; with U trained it is a network whose denoising loss clusters subspaces.
    By Tweedie's formula :math:`\nabla \log p(x) = (s E[x_0 | x] - x) / g^2`.

    Args:
        x: (..., N, D) floating, noisy points.
        bases: (..., K, D, d), orthonormal columns in each component, not necessarily between them; or a sequence of K
            tensors (D, d_k) for components of unlike dimension. Batch dimensions broadcast with those of ``x``.
        signal: s >= 0: a number, or a tensor that broadcasts with (..., N), one for each point; (..., N, 1) as well.
        noise: g >= 0 likewise. At 0 the weights are those of the nearest subspace (the limit; g is raised to 1e-4 in
            the weights alone, so s = g = 0 gives 0).
        log_weights: (..., K) :math:`\log \pi_k`, not necessarily normalized; None = all equal.
        labels: (..., N) int64: the component of each point, instead of the weights w.

    Returns:
        (..., N, D) in the type of ``x``; computed in fp32 at least. A row with NaN or infinity spoils only itself, and
        rows of any length do not overflow.

    Raises:
        TypeError: If ``x`` or a basis is not a floating tensor.
        ValueError: If shapes or devices do not fit, s or g is negative, or (looked at on the CPU) the columns of a
            basis are not orthonormal.

    Source: Wang, Zhang, Zhang, Chen, Ma and Qu, "Diffusion models learn low-dimensional distributions via subspace
    clustering", 2024 (arXiv 2409.02426), lemma 1; code huijieZH/Diffusion-Model-Generalizability (MIT), in which the
    parametric denoiser itself is missing. **Differs**: components of unlike dimension, and no overflow at g = 0.

    Example:
        >>> x, axes = torch.tensor([[2.0, 0.1]]), torch.eye(2)[:, :, None]
        >>> low_rank_posterior_mean(x, axes, signal=1.0, noise=0.1).round(decimals=3)
        tensor([[1.9800, 0.0000]])
    """
    frames, dims = _check(x, bases)
    with exact_products(x):
        dtype = working_dtype(x.dtype, frames.dtype)
        s, g = (_level(value, name, x, dtype) for value, name in ((signal, 'signal'), (noise, 'noise')))
        points, frames = x.to(dtype), frames.to(dtype)
        along, size = _along(points, frames)
        if labels is None:
            weights = _weights(along, size, dims, s, g, log_weights)
        else:
            if labels.shape != x.shape[:-1] or labels.dtype != torch.long:
                raise ValueError(f'labels must be int64 {tuple(x.shape[:-1])}, got {labels.dtype}{tuple(labels.shape)}')
            weights = torch.nn.functional.one_hot(labels, frames.shape[-3]).to(dtype)
        # one product for all components: never U U^T, which has D x D numbers
        mixed = (along * weights.unsqueeze(-1)).flatten(-2) @ _joined(frames).mT
        power = s.square() + g.square()
        shrink = torch.where(power > 0, s / torch.where(power > 0, power, 1.0), 0.0)
        return (mixed * (shrink.unsqueeze(-1) * size)).to(x.dtype)


def low_rank_responsibilities(
    x: Tensor,
    bases: Tensor | Sequence[Tensor],
    *,
    signal: float | Tensor,
    noise: float | Tensor,
    log_weights: Tensor | None = None,
) -> Tensor:
    """Return the probabilities w of the components given noisy points, of :func:`low_rank_posterior_mean`.

    Args:
        x: (..., N, D) floating.
        bases: (..., K, D, d), or K tensors (D, d_k).
        signal: s >= 0, a number or (..., N).
        noise: g >= 0 likewise; at 0 the nearest subspace has weight 1.
        log_weights: (..., K), or None.

    Returns:
        (..., N, K) in the type of ``x``.

    Raises:
        TypeError, ValueError: as :func:`low_rank_posterior_mean`.

    Source: as :func:`low_rank_posterior_mean`.

    Example:
        >>> axes = torch.eye(2)[:, :, None]
        >>> low_rank_responsibilities(torch.tensor([[1.0, 1.0]]), axes, signal=1.0, noise=0.5)
        tensor([[0.5000, 0.5000]])
    """
    frames, dims = _check(x, bases)
    with exact_products(x):
        dtype = working_dtype(x.dtype, frames.dtype)
        s, g = (_level(value, name, x, dtype) for value, name in ((signal, 'signal'), (noise, 'noise')))
        along, size = _along(x.to(dtype), frames.to(dtype))
        return _weights(along, size, dims, s, g, log_weights).to(x.dtype)


def _along(points: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates (..., N, K, d) of rows scaled to a largest entry of 1, and that scale (..., N, 1)."""
    size = points.detach().abs().amax(-1, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    return ((points / size) @ _joined(frames)).unflatten(-1, (frames.shape[-3], frames.shape[-1])), size


def _joined(frames: Tensor) -> Tensor:
    """(..., K, D, d) as (..., D, K d)."""
    return frames.transpose(-3, -2).flatten(-2)


def _weights(along: Tensor, size: Tensor, dims: Tensor, s: Tensor, g: Tensor, log_weights: Tensor | None) -> Tensor:
    energy = along.square().sum(-1)
    least = _LEAST_NOISE * torch.where(s > 0, s, 1.0)
    g = torch.maximum(g, least)
    power = s.square() + g.square()
    scale = (s / g / power.sqrt()).unsqueeze(-1) * size
    # the best component at exactly 0, then any scale is harmless
    lead = energy - energy.detach().amax(-1, keepdim=True)
    scale = (scale.square() / 2).clamp(max=torch.finfo(scale.dtype).max)
    logits = lead * scale - dims.to(energy) / 2 * (power / g.square()).log().unsqueeze(-1)
    if log_weights is not None:
        if not isinstance(log_weights, Tensor) or log_weights.shape[-1:] != energy.shape[-1:]:
            raise ValueError(f'log_weights must be a tensor (..., {energy.shape[-1]}), got {log_weights!r:.60}')
        logits = logits + (log_weights.unsqueeze(-2) if log_weights.dim() > 1 else log_weights).to(energy)
    return logits.softmax(-1)


def _level(value: float | Tensor, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
    """s or g as a tensor that broadcasts with (..., N)."""
    if not isinstance(value, Tensor):
        return torch.as_tensor(check_number(value, name, 0), dtype=dtype, device=x.device)
    if value.dim():
        check_device(value, x.device, name)
    level = value.to(x.device, dtype)
    if level.dim() == x.dim() and level.shape[-1] == 1:
        level = level[..., 0]
    try:
        fits = torch.broadcast_shapes(level.shape, x.shape[:-1]) == x.shape[:-1]
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f'{name} must be a number or broadcast with {tuple(x.shape[:-1])}, got {tuple(value.shape)}')
    if _look(level, lambda values: bool((values < 0).any())):
        raise ValueError(f'{name} must be at least 0, got a negative value')
    return level


def _check(x: Tensor, bases: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Bases (..., K, D, d), padded with zero columns, and the true dimension of each."""
    check_points(x, allow_empty=True)
    if not isinstance(bases, Tensor):
        parts = list(bases)
        for part in parts:
            check_points(part, 'bases')
        if not parts or any(part.dim() != 2 or part.shape[0] != x.shape[-1] for part in parts):
            raise ValueError(f'bases must be tensors ({x.shape[-1]}, d_k), got {[tuple(p.shape) for p in parts]}')
        most = max(part.shape[1] for part in parts)
        dims = torch.tensor([part.shape[1] for part in parts], device=x.device)
        bases = torch.stack([torch.nn.functional.pad(part, (0, most - part.shape[1])) for part in parts])
    else:
        check_points(bases, 'bases')
        if bases.dim() < 3 or bases.shape[-2] != x.shape[-1]:
            raise ValueError(f'bases must have shape (..., K, {x.shape[-1]}, d), got {tuple(bases.shape)}')
        dims = torch.full((bases.shape[-3],), bases.shape[-1], device=x.device)
    check_device(bases, x.device, 'bases')
    if bases.shape[-1] > bases.shape[-2]:
        raise ValueError(f'bases must have d <= D, got {tuple(bases.shape)}; the columns are the vectors')
    if _look(bases, lambda values: _far_from_orthonormal(values, dims)):
        raise ValueError(
            'bases must have orthonormal columns in each component, got others; see functional.orthonormal_frame'
        )
    return bases, dims


def _far_from_orthonormal(bases: Tensor, dims: Tensor) -> bool:
    values = bases.detach().to(working_dtype(bases.dtype))
    inside = (torch.arange(values.shape[-1], device=values.device) < dims.unsqueeze(-1)).to(values)
    return not bool(((values.mT @ values - torch.diag_embed(inside)).abs() <= 0.02).all())


def _look(values: Tensor, wrong) -> bool:
    """Whether something is wrong, where looking costs nothing; never inside of vmap, where it cannot be seen."""
    if not host_checks_allowed(values):
        return False
    try:
        return wrong(values)
    except RuntimeError as error:
        if 'vmap' in str(error):
            return False
        raise
