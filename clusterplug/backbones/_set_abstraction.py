# SPDX-License-Identifier: Apache-2.0
"""PointNet++ in plain torch: farthest points, balls and interpolation from dense distances, batched and masked."""

import torch
from torch import Tensor, nn

from clusterplug.core.numerics import no_autocast

# Share of the points of each level, radius of its balls in sides of the plot, widths of its layers.
_LEVELS = ((2, 0.1, (32, 32, 64)), (8, 0.2, (64, 64, 128)), (32, 0.4, (128, 128, 256)), (128, 0.8, (256, 256, 512)))
_PROPAGATION = ((256, 256), (256, 256), (256, 128), (128, 128))
_NEIGHBORS = 32


class SetAbstractionNet(nn.Module):
    """Four levels down and four up; (B, N, D) positions from 0 to 1 to (B, N, out_channels) features."""

    def __init__(self, in_channels: int, width: float):
        super().__init__()

        def wide(channels):
            return max(8, int(channels * width))

        down, channels = [], [in_channels]
        for _, _, widths in _LEVELS:
            down.append(_mlp(channels[-1] + in_channels, [wide(each) for each in widths]))
            channels.append(wide(widths[-1]))
        self.down = nn.ModuleList(down)
        up, current = [], channels[-1]
        for skip, widths in zip(reversed(channels[:-1]), _PROPAGATION, strict=True):
            up.append(_mlp(current + skip, [wide(each) for each in widths]))
            current = wide(widths[-1])
        self.up = nn.ModuleList(up)
        self.out_channels = current

    def forward(self, points: Tensor, mask: Tensor | None) -> Tensor:
        dtype = next(self.parameters()).dtype
        features, levels = points.to(dtype), []
        for (share, radius, _), layers in zip(_LEVELS, self.down, strict=True):
            levels.append((points, features, mask))
            chosen = farthest_points(points, -(-levels[0][0].shape[1] // share), mask)
            centers = _rows(points, chosen)
            index, inside = nearest_in_ball(centers, points, radius, min(_NEIGHBORS, points.shape[1]), mask)
            around = _rows(points, index.flatten(1)).view(*index.shape, -1) - centers.unsqueeze(2)
            near = _rows(features, index.flatten(1)).view(*index.shape, -1)
            seen = layers(torch.cat([around.to(dtype) / radius, near], -1))
            features = seen.masked_fill(~inside.unsqueeze(-1), torch.finfo(seen.dtype).min).amax(2)
            points, mask = centers, None if mask is None else mask.gather(1, chosen)
        for layers, (fine, skip, fine_mask) in zip(self.up, reversed(levels), strict=True):
            index, weights = interpolation(fine, points, mask)
            spread = (_rows(features, index.flatten(1)).view(*index.shape, -1) * weights.unsqueeze(-1).to(dtype)).sum(2)
            features = layers(torch.cat([spread, skip], -1))
            points, mask = fine, fine_mask
        return features


def farthest_points(points: Tensor, number: int, mask: Tensor | None = None) -> Tensor:
    """Return (B, number) indices: the point nearest to the mean, then the one farthest from all chosen so far.

    With fewer valid points than ``number``, points repeat. A plot without a valid point gives index 0.
    """
    with torch.no_grad(), no_autocast(points):
        valid = torch.ones_like(points[..., 0], dtype=torch.bool) if mask is None else mask
        weights = valid.unsqueeze(-1).to(points.dtype)
        mean = (points * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1)
        chosen = [torch.where(valid, _squared(points, mean).squeeze(2), torch.inf).argmin(1)]
        nearest = torch.where(valid, torch.inf, -1.0).to(points.dtype)
        for _ in range(number - 1):
            last = _rows(points, chosen[-1].unsqueeze(1))
            nearest = torch.minimum(nearest, _squared(points, last).squeeze(2))
            chosen.append(nearest.argmax(1))
        return torch.stack(chosen, 1)


def nearest_in_ball(
    centers: Tensor, points: Tensor, radius: float, number: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (B, M, number) indices of the nearest points of each center, and whether they lie in its ball."""
    with torch.no_grad(), no_autocast(points):
        squared = _squared(centers, points)
        if mask is not None:
            squared = squared.masked_fill(~mask.unsqueeze(1), torch.inf)
        distances, index = squared.topk(number, largest=False, sorted=True)
        inside = distances <= radius**2
        inside[..., 0] = True  # its own nearest point, whatever the distance
        return index, inside


def interpolation(fine: Tensor, coarse: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return (B, N, 3) indices of the nearest coarse points (fewer where there are fewer), and weights that sum to 1.

    The weights are 1 / (squared distance + 1e-8), as in PointNet++.
    """
    with torch.no_grad(), no_autocast(fine):
        squared = _squared(fine, coarse)
        if mask is not None:
            squared = squared.masked_fill(~mask.unsqueeze(1), 1e6)
        distances, index = squared.topk(min(3, coarse.shape[1]), largest=False)
        weights = 1 / (distances + 1e-8)
        return index, weights / weights.sum(-1, keepdim=True)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (B, N, M) by differences: exact for near points, unlike |a|^2 + |b|^2 - 2 a b."""
    return (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(-1)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x (B, N, C) at (B, M) indices."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def _mlp(channels: int, widths: list[int]) -> nn.Sequential:
    layers = []
    for width in widths:
        layers += [nn.Linear(channels, width), nn.LayerNorm(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers)
