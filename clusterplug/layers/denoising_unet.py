# SPDX-License-Identifier: Apache-2.0
"""A small convolutional denoiser of images: two scales down, two up, told the noise level."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_count, check_number
from clusterplug.registry import MODELS

__all__ = ['DenoisingUNet']


@MODELS.register_module()
class DenoisingUNet(nn.Module):
    r"""Clean images from noisy ones, for :class:`~clusterplug.losses.DenoisingLoss`.

    .. math:: f(x, s, g) = \frac{s \sigma^2}{v} x + \frac{\sigma g}{\sqrt{v}} F\left(\frac{x}{\sqrt{v}},
              \log \frac{g}{s}\right), \qquad v = s^2 \sigma^2 + g^2

    with F a U-Net: at little noise the input is kept, at much noise the mean is predicted, whatever F says.

    Args:
        in_channels: Of the images.
        width: Channels of the first scale; twice and four times as many on the others.
        data_std: :math:`\sigma` of the images.

    Inputs of ``forward``:
        x: (B, C, H, W), H and W multiples of 4. signal, noise: (B,).

    Returns of ``forward``:
        (B, C, H, W).

    Raises:
        ValueError: H or W is no multiple of 4, or another number of channels.

    Source: preconditioning of Karras et al. 2022 (arXiv 2206.00364), table 1, here for any signal.

    Example:
        >>> DenoisingUNet(3, 8)(torch.zeros(2, 3, 8, 8), torch.ones(2), torch.ones(2)).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(self, in_channels: int = 3, width: int = 32, data_std: float = 0.5):
        super().__init__()
        self.in_channels = check_count(in_channels, 'in_channels', 1)
        width = check_count(width, 'width', 4)
        if width % 4:
            raise ValueError(f'width must be a multiple of 4, the groups of the norms, got {width}')
        self.data_std = check_number(data_std, 'data_std', above=0)
        wide = [width, 2 * width, 4 * width]
        self.level = nn.Sequential(nn.Linear(32, wide[2]), nn.SiLU(), nn.Linear(wide[2], wide[2]), nn.SiLU())
        self.first = nn.Conv2d(in_channels, wide[0], 3, padding=1)
        self.down = nn.ModuleList(_Block(before, after, wide[2]) for before, after in zip([wide[0], *wide[:2]], wide))
        self.middle = _Block(wide[2], wide[2], wide[2])
        self.up = nn.ModuleList(
            [_Block(wide[2] + wide[1], wide[1], wide[2]), _Block(wide[1] + wide[0], wide[0], wide[2])]
        )
        last = nn.Conv2d(wide[0], in_channels, 3, padding=1)
        self.last = nn.Sequential(nn.GroupNorm(4, wide[0]), nn.SiLU(), last)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.in_channels or x.shape[2] % 4 or x.shape[3] % 4:
            raise ValueError(f'x must be (B, {self.in_channels}, 4 h, 4 w), got {tuple(x.shape)}')
        signal, noise = signal.view(-1, 1, 1, 1), noise.view(-1, 1, 1, 1)
        power = signal.square() * self.data_std**2 + noise.square()
        keep, scale = signal * self.data_std**2 / power, self.data_std * noise / power.sqrt()
        level = self.level(self._embed(noise.flatten() / signal.flatten().clamp(min=1e-6)))
        h = self.first(x / power.sqrt())
        kept = []
        for number, block in enumerate(self.down):
            h = block(F.avg_pool2d(h, 2) if number else h, level)
            kept.append(h)
        h = self.middle(h, level)
        for block, other in zip(self.up, kept[-2::-1]):
            h = block(torch.cat([F.interpolate(h, scale_factor=2.0, mode='nearest'), other], 1), level)
        return keep * x + scale * self.last(h)

    def _embed(self, ratio: Tensor) -> Tensor:
        """Sines and cosines of the logarithm of noise over signal: (B, 32)."""
        waves = torch.exp(torch.linspace(math.log(0.25), math.log(4.0), 16, device=ratio.device, dtype=ratio.dtype))
        angle = ratio.clamp(min=1e-6).log().unsqueeze(1) * waves
        return torch.cat([angle.sin(), angle.cos()], 1)


class _Block(nn.Module):
    """Two convolutions around a shift by the level, and a way past them."""

    def __init__(self, before: int, after: int, level: int):
        super().__init__()
        self.one = nn.Sequential(nn.GroupNorm(4, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.shift = nn.Linear(level, 2 * after)
        self.norm, self.two = nn.GroupNorm(4, after), nn.Conv2d(after, after, 3, padding=1)
        self.past = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.shift(level)[..., None, None].chunk(2, 1)
        h = self.norm(self.one(x)) * (1 + scale) + shift
        return self.past(x) + self.two(F.silu(h))
