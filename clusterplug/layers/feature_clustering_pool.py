# SPDX-License-Identifier: Apache-2.0
"""The downsampling of FEC: every second row and column becomes the mean of a cluster, beside a strided convolution."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import as_pair
from clusterplug.functional.features import FeatureClusters, average_cells, cluster_pool, valid_cells
from clusterplug.layers.maps import MapNorm, join_regions, least_fold, pad_map, scaled, split_regions
from clusterplug.registry import MODELS

SIMILARITIES = ('learned', 'official')


@MODELS.register_module()
class FeatureClusteringPool(nn.Module):
    """Halve a map: each new pixel is the mean of a cluster, plus what a 3x3 convolution with stride 2 makes.

    The centers are the averages of 2 x 2 pixels; every pixel joins the most similar one, wherever it lies.

    Args:
        in_channels: C.
        out_channels: C'.
        fold: Regions that are clustered on their own, as in
            :class:`~clusterplug.layers.FeatureClustering`. Defaults to 1.
        similarity: ``'learned'``: what pixels are compared by is trained, by the straight-through gradient of
            :func:`~clusterplug.functional.cluster_pool`. ``'official'``: it keeps its random weights, which take no
            gradient, as in the authors' code. Outputs for given weights are the same. Defaults to ``'learned'``.

    Raises:
        TypeError, ValueError: A setting is out of range.

    Source:
        Chen et al., CVPR 2024; official code guikunchen/FEC (Apache-2.0).

        **Differs from the authors' code**: ``'learned'`` is the default; the projection of ``'official'`` is marked
        as needing no gradient, so that data-parallel training needs no search for unused parameters; odd sizes round
        up, where theirs raise.

    Example:
        >>> FeatureClusteringPool(8, 16)(torch.randn(2, 8, 13, 10)).shape
        torch.Size([2, 16, 7, 5])
    """

    def __init__(
        self, in_channels: int, out_channels: int, fold: int | tuple[int, int] = 1, similarity: str = 'learned'
    ):
        super().__init__()
        if similarity not in SIMILARITIES:
            raise ValueError(f'similarity must be one of {", ".join(SIMILARITIES)}, got {similarity!r}')
        self.similarity, self.fold = similarity, as_pair(fold, 'fold')
        self.features = nn.Conv2d(in_channels, out_channels, 1)
        self.values = nn.Conv2d(in_channels, out_channels, 1)
        self.skip = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.norm = MapNorm(out_channels)
        if similarity == 'official':
            self.features.requires_grad_(False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Halve (B, C, H, W) to (B, C', ceil(H / 2), ceil(W / 2)); ``mask`` (B, H, W) bool, True = valid."""
        return self.cluster(x, mask)[0]

    def cluster(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, FeatureClusters]:
        """As :meth:`forward`, with the clusters.

        Returns:
            (B, C', H', W') and clusters whose ``labels`` (B, 1, H, W) are flat places on the H' x W' map (row by
            row), ``representatives`` (B, 1, H' W', C'), ``similarity`` (B, 1, H, W) and ``counts`` (B, 1, H' W').
        """
        size = tuple(x.shape[2:])
        half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        fold = least_fold(self.fold, half)
        x = torch.where(mask[:, None], x, 0) if mask is not None else x
        even = (1, 1) if fold == (1, 1) else (2 * fold[0], 2 * fold[1])
        parts, inside = pad_map(x, mask, even)
        parts, inside = split_regions(parts, fold), None if inside is None else split_regions(inside, fold)
        region = tuple(parts.shape[2:])
        grid = ((region[0] + 1) // 2, (region[1] + 1) // 2)
        masks: dict[str, Any] = {}
        if inside is not None:
            masks = dict(mask=inside.flatten(1), center_mask=valid_cells(inside, grid, halve=True).flatten(1))
        # An average of 1x1 convolutions is the convolution of the average, which has fewer channels: so with the
        # averages of cells, and with the means of clusters.
        cells = average_cells(parts, grid, inside, halve=True)
        rows, cell_rows = (each.flatten(2).mT.contiguous() for each in (parts, cells))
        weights = scaled(self.features)
        sets = F.linear(rows, *weights), rows, F.linear(cell_rows, *weights), cell_rows
        trained = self.similarity == 'learned'
        clusters = cluster_pool(*sets, straight_through=trained, projection=weights, **masks)
        means = F.linear(clusters.representatives, *scaled(self.values))
        clusters = clusters._replace(representatives=means)
        means = means.mT.unflatten(-1, grid)
        means = join_regions(means, fold)[..., : half[0], : half[1]]
        out = self.skip(x) + self.norm(means, halve_mask(mask))
        return out, _join_clusters(clusters, region, grid, fold, size, half)


def halve_mask(mask: Tensor | None) -> Tensor | None:
    """Mask (B, ceil(H / 2), ceil(W / 2)) of the halved map."""
    if mask is None:
        return None
    size = ((mask.shape[1] + 1) // 2, (mask.shape[2] + 1) // 2)
    return valid_cells(mask, size, halve=True)


def _join_clusters(clusters: FeatureClusters, region, grid, fold, size, half) -> FeatureClusters:
    """Clusters of regions as those of whole maps with one head, labels as places on the halved map."""
    labels = clusters.labels.unflatten(-1, region)
    if fold != (1, 1):
        number = torch.arange(fold[0] * fold[1], device=labels.device).repeat(len(labels) // (fold[0] * fold[1]))
        row = labels // grid[1] + (number // fold[1] * grid[0])[:, None, None]
        column = labels % grid[1] + (number % fold[1] * grid[1])[:, None, None]
        labels = torch.where(labels < 0, -1, row * half[1] + column)
    maps = [
        join_regions(each, fold)[:, None, : size[0], : size[1]]
        for each in (labels, clusters.similarity.unflatten(-1, region))
    ]
    means = join_regions(clusters.representatives.mT.unflatten(-1, grid), fold)[..., : half[0], : half[1]]
    counts = join_regions(clusters.counts.unflatten(-1, grid), fold)[..., : half[0], : half[1]]
    return FeatureClusters(means.flatten(2).mT[:, None], maps[0], maps[1], counts.flatten(1)[:, None])
