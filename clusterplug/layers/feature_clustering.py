# SPDX-License-Identifier: Apache-2.0
"""The token mixer of FEC: pixels exchange what they hold with the pixels of their cluster."""

import torch
from torch import Tensor, nn

from clusterplug.core.checks import as_pair, whole_number
from clusterplug.functional.features import (
    MOST_DENSE_CENTERS,
    FeatureClusters,
    average_cells,
    check_weighting,
    valid_cells,
)
from clusterplug.layers._feature_mixing import mix_any, mix_few
from clusterplug.layers.maps import join_regions, least_fold, pad_map, split_regions
from clusterplug.registry import MODELS


@MODELS.register_module()
class FeatureClustering(nn.Module):
    """Cluster the pixels of a map around a few centers, and give each the mean of its cluster.

    Two 1x1 convolutions make what pixels are compared by and what is averaged, both in several heads. Centers are
    averages over a grid of cells. See :func:`~clusterplug.functional.cluster_encode`.

    Args:
        dim: Channels in and out.
        heads: Independent clusterings.
        head_dim: Channels of each.
        grid: Cells of centers, down and across.
        fold: Regions, down and across, that are clustered on their own, with a grid each.
            Fewer where the map has fewer rows or columns; a map that does not divide is padded, and the padding is
            left out. Defaults to 1.
        aggregate: ``'mean'`` (FEC), ``'similarity'`` (Context Cluster) or ``'soft'``: every pixel belongs to all
            clusters in part. Defaults to ``'mean'``.

    Raises:
        TypeError, ValueError: A setting is out of range.

    Source:
        Chen et al., "Neural Clustering based Visual Representation Learning", CVPR 2024; official code
        guikunchen/FEC (Apache-2.0). Differs from the authors' code as
        :func:`~clusterplug.functional.cluster_encode`; and sizes need not divide by the fold.

    Example:
        >>> FeatureClustering(32, heads=4, head_dim=24, grid=4)(torch.randn(2, 32, 13, 10)).shape
        torch.Size([2, 32, 13, 10])
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        head_dim: int = 24,
        grid: int | tuple[int, int] = 2,
        fold: int | tuple[int, int] = 1,
        aggregate: str = 'mean',
    ):
        super().__init__()
        for name, value in (('dim', dim), ('heads', heads), ('head_dim', head_dim)):
            whole_number(name, value)
        if aggregate != 'soft':
            check_weighting(aggregate)
        self.heads, self.head_dim, self.aggregate = heads, head_dim, aggregate
        self.grid, self.fold = as_pair(grid, 'grid'), as_pair(fold, 'fold')
        self.features = nn.Conv2d(dim, heads * head_dim, 1)
        self.values = nn.Conv2d(dim, heads * head_dim, 1)
        self.project = nn.Conv2d(heads * head_dim, dim, 1)
        self.scale = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix (B, C, H, W); ``mask`` (B, H, W) bool, True = valid. What comes back outside the mask means nothing."""
        return self.cluster(x, mask)[0]

    def cluster(
        self, x: Tensor, mask: Tensor | None = None, factor: Tensor | None = None
    ) -> tuple[Tensor, FeatureClusters]:
        """As :meth:`forward`, with the clusters of each head.

        Args:
            x: (B, C, H, W).
            mask: (B, H, W) bool, True = valid.
            factor: (C,) what the output is multiplied by.

        Returns:
            (B, C, H, W) and clusters whose ``labels`` are (B, heads, H, W), numbered through all regions of the head
            (region by region, row by row), and whose other parts are (B, heads, regions * cells, ...) or, like the
            labels, (B, heads, H, W).
        """
        size = x.shape[2], x.shape[3]
        fold = least_fold(self.fold, size)
        x, inside = pad_map(x, mask, fold)
        x, inside = split_regions(x, fold), None if inside is None else split_regions(inside, fold)
        region = tuple(x.shape[2:])
        valid = None if inside is None else valid_cells(inside, self.grid).flatten(1)
        masks = (None if inside is None else inside.flatten(1), valid)
        # An average of 1x1 convolutions is the convolution of the average, which has fewer channels.
        cells = average_cells(x, self.grid, inside).flatten(2)
        mix = mix_few if self.aggregate != 'soft' and cells.shape[2] <= MOST_DENSE_CENTERS else mix_any
        out, clusters = mix(x.flatten(2), cells, self, factor, masks)
        out = join_regions(out.unflatten(2, region), fold)[..., : size[0], : size[1]]
        return out, _join_clusters(clusters, region, fold, size)

    def extra_repr(self) -> str:
        """Settings for ``print``."""
        return f'heads={self.heads}, grid={self.grid}, fold={self.fold}, aggregate={self.aggregate!r}'


def _join_clusters(clusters: FeatureClusters, region, fold, size) -> FeatureClusters:
    """Clusters of (B regions, heads, ...) as those of whole maps."""
    number = clusters.counts.shape[-1]
    labels = clusters.labels.unflatten(-1, region)
    if fold != (1, 1):
        first = torch.arange(fold[0] * fold[1], device=labels.device).repeat(len(labels) // (fold[0] * fold[1]))
        labels = torch.where(labels < 0, -1, labels + number * first[:, None, None, None])
    maps = [
        join_regions(each, fold)[..., : size[0], : size[1]]
        for each in (labels, clusters.similarity.unflatten(-1, region))
    ]
    sets = []
    for each in (clusters.representatives, clusters.counts):
        each = each.unflatten(0, (len(each) // (fold[0] * fold[1]), fold[0] * fold[1]))
        sets.append(each.movedim(1, 2).flatten(2, 3))
    return FeatureClusters(sets[0], maps[0], maps[1], sets[1])
