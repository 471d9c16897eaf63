# SPDX-License-Identifier: Apache-2.0
"""The loss of diffusion models: give back the clean sample from noisy ones of all levels."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_number
from clusterplug.core.numerics import no_autocast, working_dtype
from clusterplug.registry import MODELS

__all__ = ['DenoisingLoss']

_SCHEDULES = ('vp', 've', 'edm')
_EDM_MEAN, _EDM_STD = -1.2, 1.2


@MODELS.register_module()
class DenoisingLoss(nn.Module):
    r"""Weighted squared error of a denoiser at noise levels drawn for each sample.

    .. math:: L = \frac{1}{N} \sum_i \lambda(s_i, g_i) \, \| f(s_i x_i + g_i \varepsilon_i, s_i, g_i) - x_i \|^2,
              \qquad \varepsilon_i \sim N(0, I)

    Args:
        schedule: ``'vp'``: :math:`s = \cos\alpha, g = \sin\alpha` with the angle uniform between those of ``min_noise``
            and ``max_noise`` (defaults 0.02 and 0.9999); ``'ve'``: s = 1, g log-uniform between them (0.002 and 80);
            ``'edm'``: s = 1, g log-normal of mean -1.2 and deviation 1.2 of its logarithm (Karras et al. 2022), clamped
            to them (0.002 and 80).
        weighting: :math:`\lambda`: ``'constant'``, 1; ``'edm'``, :math:`(g^2 + \sigma^2) / (g \sigma)^2` of the
            relative noise g / s; or a function of (s, g). Any positive one has the same minimum over subspaces.
        data_std: :math:`\sigma` of ``'edm'``.
        min_noise: Smallest noise. max_noise: largest.
        antithetic: Use each drawn noise with both signs, on two copies of the batch: gradients of less variance.

    Inputs of ``forward``:
        denoiser: ``(x, signal, noise) -> clean``, x (N, ...), signal and noise (N,); 2 N with
            ``antithetic``. x: (N, ...) clean samples.
        generator: Of levels and noise, on its own device.

    Returns of ``forward``:
        0-dim tensor, in fp32 at least: the mean over samples of the squared error summed over their numbers.

    Raises:
        TypeError, ValueError: An option is out of range; x is not floating, or the denoiser returns another shape.

    Source: Wang et al. 2024 (arXiv 2409.02426), equation 5; Karras et al. 2022 (arXiv 2206.00364).

    Example:
        >>> loss = DenoisingLoss('vp')
        >>> float(loss(lambda x, signal, noise: torch.zeros_like(x), torch.ones(4, 3)))
        3.0
    """

    def __init__(
        self,
        schedule: str = 'vp',
        weighting: str | Callable[[Tensor, Tensor], Tensor] = 'constant',
        *,
        data_std: float = 0.5,
        min_noise: float | None = None,
        max_noise: float | None = None,
        antithetic: bool = False,
    ):
        super().__init__()
        self.schedule = check_choice(schedule, 'schedule', _SCHEDULES)
        if not callable(weighting):
            check_choice(weighting, 'weighting', ('constant', 'edm'), ' or a function of (signal, noise)')
        self.weighting, self.data_std = weighting, check_number(data_std, 'data_std', above=0)
        self.antithetic = bool(antithetic)
        low, high = (0.02, 0.9999) if schedule == 'vp' else (0.002, 80.0)
        self.min_noise = check_number(low if min_noise is None else min_noise, 'min_noise', above=0)
        self.max_noise = check_number(
            high if max_noise is None else max_noise, 'max_noise', self.min_noise, 1.0 if schedule == 'vp' else math.inf
        )

    def levels(
        self, count: int, device: torch.device | str = 'cpu', generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw signal and noise of ``count`` samples: two (count,) fp32."""
        source = device if generator is None else generator.device
        if self.schedule == 'edm':
            drawn = torch.randn(count, generator=generator, device=source).to(device)
            noise = (_EDM_MEAN + _EDM_STD * drawn).exp().clamp(self.min_noise, self.max_noise)
            return torch.ones_like(noise), noise
        share = torch.rand(count, generator=generator, device=source).to(device)
        if self.schedule == 've':
            low, high = math.log(self.min_noise), math.log(self.max_noise)
            noise = (low + (high - low) * share).exp()
            return torch.ones_like(noise), noise
        low, high = math.asin(self.min_noise), math.asin(self.max_noise)
        angle = low + (high - low) * share
        return angle.cos(), angle.sin()

    def forward(
        self,
        denoiser: Callable[[Tensor, Tensor, Tensor], Tensor],
        x: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f'x must be a floating tensor (N, ...), got {getattr(x, "dtype", type(x).__name__)}')
        if x.dim() < 2:
            raise ValueError(f'x must have shape (N, ...), got {tuple(x.shape)}; add the missing dimension')
        signal, noise = self.levels(len(x), x.device, generator)
        signal, noise = (each.to(working_dtype(x.dtype)) for each in (signal, noise))
        source = x.device if generator is None else generator.device
        drawn = torch.randn(x.shape, generator=generator, device=source, dtype=signal.dtype).to(x.device)
        if self.antithetic:
            x, signal, noise = torch.cat([x, x]), signal.repeat(2), noise.repeat(2)
            drawn = torch.cat([drawn, -drawn])
        shape = (-1, *[1] * (x.dim() - 1))
        noisy = signal.view(shape) * x + noise.view(shape) * drawn
        found = denoiser(noisy, signal, noise)
        if found.shape != x.shape:
            raise ValueError(f'denoiser must return the shape of x, {tuple(x.shape)}, got {tuple(found.shape)}')
        with no_autocast(x):
            error = (found.to(signal.dtype) - x.to(signal.dtype)).flatten(1).square().sum(1)
            if not len(x):
                return error.sum()
            return (self._weight(signal, noise) * error).mean()

    def _weight(self, signal: Tensor, noise: Tensor) -> Tensor | float:
        if callable(self.weighting):
            return self.weighting(signal, noise)
        if self.weighting == 'constant':
            return 1.0
        relative = noise / signal
        return (relative.square() + self.data_std**2) / (relative * self.data_std).square()

    def extra_repr(self) -> str:
        return f'schedule={self.schedule!r}, noise={self.min_noise:g} .. {self.max_noise:g}'
