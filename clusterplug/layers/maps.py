# SPDX-License-Identifier: Apache-2.0
"""Maps with masks: normalized over their valid places, cut into regions, put together again."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.numerics import no_autocast, working_dtype


class MapNorm(nn.GroupNorm):
    """GroupNorm with one group: each image normalized over all channels and valid places.

    Args:
        num_channels: C.

    Example:
        >>> MapNorm(8)(torch.randn(2, 8, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(self, num_channels: int):
        super().__init__(1, num_channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize (B, C, H, W); ``mask`` (B, H, W) bool, True = valid, others become 0."""
        if mask is None:
            return super().forward(x)
        with no_autocast(x):
            wide, valid = x.to(working_dtype(x.dtype)), mask[:, None]
            number = (valid.sum((1, 2, 3), keepdim=True) * x.shape[1]).clamp_min(1)
            mean = torch.where(valid, wide, 0).sum((1, 2, 3), keepdim=True) / number
            centered = torch.where(valid, wide - mean, 0)
            variance = centered.square().sum((1, 2, 3), keepdim=True) / number
            y = centered * (variance + self.eps).rsqrt() * self.weight[:, None, None] + self.bias[:, None, None]
            return torch.where(valid, y, 0).to(x.dtype)


def linear_maps(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, C, N) -> (B, C', N) by a weight (C', C) and a bias (C',), twice as fast on a CPU as a 1x1 convolution.

    One product an image, which leaves the layout alone; over few places one product for all, whose gradient for the
    weights needs no matrix for each image.
    """
    if x.shape[2] < max(weight.shape):  # the same layout on both sides of the wide layer of an MLP
        rows = x.mT
        # Rows in one matrix: of several dimensions of another layout, torch makes many small products.
        return F.linear(rows.reshape(-1, rows.shape[2]), weight, bias).unflatten(0, rows.shape[:2]).mT
    if len(weight) > x.shape[1] and not torch.is_grad_enabled():
        # The bias as the weight of a further channel of ones: no pass over the larger result. Backward would lose more.
        weight = torch.cat([weight, bias[:, None]], 1)
        return weight.expand(len(x), -1, -1) @ F.pad(x, (0, 0, 0, 1), value=1.0)
    return torch.baddbmm(bias[None, :, None], weight.expand(len(x), -1, -1), x)


def pointwise(x: Tensor, conv: nn.Conv2d | nn.Linear, factor: Tensor | None = None) -> Tensor:
    """1x1 convolution, or linear layer over the channels, of (B, C, H, W), by :func:`linear_maps`.

    Args:
        x: (B, C, H, W).
        conv: With weight (C', C) or (C', C, 1, 1), and bias.
        factor: (C',) what the result is multiplied by, taken into the weights.
    """
    return linear_maps(x.flatten(2), *scaled(conv, factor)).unflatten(2, x.shape[2:])


def scaled(conv: nn.Conv2d | nn.Linear, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weight (C', C) and bias (C',) of a 1x1 convolution or a linear layer, times a factor for each output."""
    weight, bias = conv.weight.flatten(1), conv.bias
    assert bias is not None, 'these layers are made with a bias'
    return (weight, bias) if factor is None else (weight * factor[:, None], bias * factor)


def pad_map(x: Tensor, mask: Tensor | None, multiple: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Pad (B, C, H, W) below and to the right to multiples of a size, and make the mask that leaves the padding out."""
    height, width = x.shape[2:]
    below, right = -height % multiple[0], -width % multiple[1]
    if not below and not right:
        return x, mask
    if mask is None:
        mask = torch.ones(len(x), height, width, dtype=torch.bool, device=x.device)
    return F.pad(x, (0, right, 0, below)), F.pad(mask, (0, right, 0, below))


def split_regions(x: Tensor, fold: tuple[int, int]) -> Tensor:
    """Cut (B, ..., H, W) into regions, row by row, as further images: (B rows columns, ..., H / rows, W / columns)."""
    if fold == (1, 1):
        return x
    x = x.unflatten(-1, (fold[1], x.shape[-1] // fold[1])).unflatten(-3, (fold[0], x.shape[-2] // fold[0]))
    # (B, ..., rows, h, columns, w) -> (B, rows, columns, ..., h, w)
    return x.movedim((-4, -2), (1, 2)).flatten(0, 2)


def join_regions(x: Tensor, fold: tuple[int, int]) -> Tensor:
    """Undo :func:`split_regions`."""
    if fold == (1, 1):
        return x
    x = x.unflatten(0, (len(x) // (fold[0] * fold[1]), *fold))
    return x.movedim((1, 2), (-4, -2)).flatten(-2).flatten(-3, -2)


def least_fold(fold: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return no more regions than there are rows and columns."""
    return min(fold[0], size[0]), min(fold[1], size[1])


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Set the branch ``x`` (B, ...) of some samples to 0, and scale the others so that the mean stays."""
    if not training or rate == 0:
        return x
    keep = x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1 - rate)
    return x * keep if rate == 1 else x * (keep / (1 - rate))
