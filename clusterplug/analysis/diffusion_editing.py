# SPDX-License-Identifier: Apache-2.0
"""The deterministic sampler of a denoiser, and samples that are edited on the way."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_number

__all__ = ['edit_sample', 'run_sampler', 'vp_levels']

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


def vp_levels(num_steps: int, first: float = 0.9999, last: float = 0.02) -> list[tuple[float, float]]:
    """Return levels (signal, noise) of falling noise, signal^2 + noise^2 = 1, at equal angles.

    Args:
        num_steps: Levels.
        first: Noise of the first. last: of the last.

    Example:
        >>> [(round(s, 2), round(g, 2)) for s, g in vp_levels(3, 1.0, 0.0)]
        [(0.0, 1.0), (0.71, 0.71), (1.0, 0.0)]
    """
    num_steps = check_count(num_steps, 'num_steps', 1)
    high = math.asin(check_number(first, 'first', 0, 1))
    low = math.asin(check_number(last, 'last', 0, first))
    angles = [high + (low - high) * number / max(1, num_steps - 1) for number in range(num_steps)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


@torch.no_grad()
def run_sampler(
    denoiser: Denoiser, x: Tensor, levels: Sequence[tuple[float, float]], *, trajectory: bool = False
) -> Tensor | list[Tensor]:
    r"""Go from noisy samples to clean ones without drawing noise (DDIM, for any signal and noise).

    .. math:: x' = s' \hat x_0 + \frac{g'}{g} (x - s \hat x_0), \qquad \hat x_0 = f(x, s, g)

    Args:
        denoiser: ``(x (B, ...), signal (B,), noise (B,)) -> clean``, as :class:`~clusterplug.losses.DenoisingLoss`
            trains it.
        x: (B, ...) at the first level.
        levels: (signal, noise), noise falling, above 0 but for the last.
        trajectory: Return the noisy samples at all levels as well.

    Returns:
        The estimate of the clean samples at the last level; with ``trajectory`` the list of x at each level, and the
        estimate last.

    Raises:
        ValueError: No level, or noise that does not fall.

    Source: Song, Meng and Ermon, "Denoising diffusion implicit models", ICLR 2021 (arXiv 2010.02502); with s = t and
    g = 1 - t it is the Euler step of flow matching.

    Example:
        >>> run_sampler(lambda x, s, g: torch.ones_like(x), torch.zeros(1, 2), vp_levels(4))
        tensor([[1., 1.]])
    """
    levels = _check_levels(levels)
    found = []
    for number, (signal, noise) in enumerate(levels):
        found.append(x)
        clean = denoiser(x, x.new_full((len(x),), signal), x.new_full((len(x),), noise))
        if number + 1 < len(levels):
            to_signal, to_noise = levels[number + 1]
            x = to_signal * clean + (to_noise / noise) * (x - signal * clean)
    return [*found, clean] if trajectory else clean


@torch.no_grad()
def edit_sample(
    denoiser: Denoiser,
    x: Tensor,
    direction: Tensor,
    strengths: Sequence[float],
    levels: Sequence[tuple[float, float]],
    *,
    keep_norm: bool = True,
) -> Tensor:
    r"""Move a noisy sample along a direction and sample on: one edited sample for each strength.

    Args:
        denoiser: As in :func:`run_sampler`.
        x: (...) one sample at the first of ``levels``, without a batch.
        direction: (...) of length 1, such as one of :func:`~clusterplug.analysis.latent_directions`.
        strengths: Steps along it; 0 gives the sample as it would have been.
        levels: The remaining levels of the sampler.
        keep_norm: Give the moved sample the length of ``x``: an image of noise has a length that its level expects.

    Returns:
        (len(strengths), ...) clean samples.

    Raises:
        ValueError: Shapes that do not fit, no strength, or levels that do not fall.

    Source: Chen et al. 2024 (arXiv 2409.02374), algorithm 1; Wang et al. 2024 (arXiv 2409.02426), section 5.

    Example:
        >>> denoiser = lambda x, signal, noise: x
        >>> edit_sample(denoiser, torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0]), [0.0], [(1.0, 0.1)])
        tensor([[3., 4.]])
    """
    if direction.shape != x.shape:
        raise ValueError(f'direction must have the shape of x, {tuple(x.shape)}, got {tuple(direction.shape)}')
    if not len(strengths):
        raise ValueError('strengths must hold at least one number')
    steps = torch.tensor([float(each) for each in strengths], dtype=x.dtype, device=x.device)
    moved = x + steps.view(-1, *[1] * x.dim()) * direction
    if keep_norm:
        length = moved.flatten(1).norm(dim=1).view(-1, *[1] * x.dim())
        moved = moved * (x.norm() / torch.where(length > 0, length, 1.0))
    return run_sampler(denoiser, moved, levels)


def _check_levels(levels: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    levels = [(float(signal), float(noise)) for signal, noise in levels]
    noises = [noise for _, noise in levels]
    if not levels or any(after >= before for before, after in zip(noises, noises[1:])) or min(noises) < 0:
        raise ValueError(f'levels must be (signal, noise) of falling noise >= 0, got noises {noises[:5]} ...')
    return levels
