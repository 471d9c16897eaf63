# SPDX-License-Identifier: Apache-2.0
"""The first layer of FEC: colors and places of 4 x 4 pixels become a point."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.numerics import working_dtype
from clusterplug.layers.maps import pad_map

PATCH = 4


class FECStem(nn.Module):
    """4x4 convolution with stride 4 over an image and its row and column, both from -0.5 to 0.5.

    An image whose sides do not divide by 4 is padded with zeros below and to the right.

    Args:
        in_channels: Of the image.
        out_channels: Of the points.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels + 2, out_channels, PATCH, stride=PATCH)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return points (B, C, ceil(H / 4), ceil(W / 4)) and their mask, or None; ``mask`` (B, H, W) bool."""
        height, width = x.shape[2:]
        places = image_places(x, mask)
        if mask is not None:
            x = torch.where(mask[:, None], x, 0)
            mask = F.max_pool2d(pad_map(mask[:, None].to(x.dtype), None, (PATCH, PATCH))[0], PATCH)[:, 0] > 0
        x = F.pad(x, (0, -width % PATCH, 0, -height % PATCH))
        places = F.pad(places, (0, -width % PATCH, 0, -height % PATCH))
        # Places are the same for all images: their part of the sum is made once.
        colors, coordinates = self.proj.weight.split((x.shape[1], 2), 1)
        y = F.conv2d(x, colors, self.proj.bias, stride=PATCH)
        return y + F.conv2d(places, coordinates, stride=PATCH), mask


def image_places(x: Tensor, mask: Tensor | None) -> Tensor:
    """Row and column (1 or B, 2, H, W) of each pixel, from -0.5 to 0.5 over the extent of the image; 0 outside it."""
    height, width = x.shape[2:]
    if mask is None:
        dtype = working_dtype(x.dtype)
        axes = [torch.arange(n, device=x.device, dtype=dtype) / max(n - 1, 1) - 0.5 for n in (height, width)]
        return torch.stack(torch.meshgrid(*axes, indexing='ij'))[None].to(x.dtype)
    row, column = (torch.arange(n, device=x.device, dtype=working_dtype(x.dtype)) for n in (height, width))
    bottom = torch.where(mask.any(2), row, 0).amax(1).clamp_min(1)[:, None, None]
    right = torch.where(mask.any(1), column, 0).amax(1).clamp_min(1)[:, None, None]
    places = torch.stack([(row[:, None] / bottom - 0.5).expand_as(mask), (column / right - 0.5).expand_as(mask)], 1)
    return torch.where(mask[:, None], places, 0).to(x.dtype)
