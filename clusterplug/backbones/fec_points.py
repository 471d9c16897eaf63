# SPDX-License-Identifier: Apache-2.0
"""FEC on points: a small U-shaped backbone for point cloud segmentation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clusterplug.functional.features import PointCells, cell_means, point_cells
from clusterplug.layers.point_feature_clustering import PointFeatureClusteringBlock, PointFeatureClusteringPool
from clusterplug.registry import MODELS


@MODELS.register_module()
class FECPoints(nn.Module):
    """Feature extraction with clustering for voxels or points on a grid, without a convolution.

    On the way down, blocks mix the points of a cluster and poolings halve the grid by clustering; on the way up, every
    point takes back what the cluster that it had joined has become. It takes the place of mmdet3d's
    ``MinkUNetBackbone``: the same input, the same output, the same heads and losses.

    Args:
        in_channels: Of the input, place in meters first. Defaults to 4.
        dims: Channels of the stages. Defaults to (32, 64, 96, 128).
        blocks: Blocks of the stages. Defaults to (1, 1, 2, 1).
        heads: Clusterings side by side in each block. Defaults to 4.
        cell: Side of the cells whose means are the centers of the blocks, in points of the stage's grid.
            Defaults to 4.
        init_cfg: Not used; there for mm models.

    Raises:
        ValueError: ``dims`` and ``blocks`` differ in length.

    Source:
        Own; for images Chen et al., "Neural Clustering based Visual Representation Learning", CVPR 2024.

    Example:
        >>> coordinates = torch.randint(0, 20, (100, 4)) * torch.tensor([0, 1, 1, 1])
        >>> FECPoints()(torch.randn(100, 4), coordinates).shape
        torch.Size([100, 32])
    """

    def __init__(
        self,
        in_channels: int = 4,
        dims: Sequence[int] = (32, 64, 96, 128),
        blocks: Sequence[int] = (1, 1, 2, 1),
        heads: int = 4,
        cell: int = 4,
        init_cfg: dict | None = None,
    ):
        super().__init__()
        if len(dims) != len(blocks) or not dims:
            raise ValueError(f'dims and blocks must have a value for each stage, got {tuple(dims)} and {tuple(blocks)}')
        self.in_channels, self.cell = in_channels, cell
        self.stem = nn.Sequential(
            nn.Linear(in_channels + 6, dims[0]), nn.LayerNorm(dims[0]), nn.GELU(), nn.Linear(dims[0], dims[0])
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(PointFeatureClusteringBlock(dim, heads, max(8, dim // heads)) for _ in range(number))
            for dim, number in zip(dims, blocks)
        )
        pairs = list(zip(dims[:-1], dims[1:]))
        self.pools = nn.ModuleList(PointFeatureClusteringPool(fine, coarse) for fine, coarse in pairs)
        self.up = nn.ModuleList(nn.Linear(coarse, fine) for fine, coarse in pairs)
        self.refine = nn.ModuleList(
            PointFeatureClusteringBlock(fine, heads, max(8, fine // heads)) for fine, _ in pairs
        )
        self.norm = nn.LayerNorm(dims[0])
        self.out_channels = dims[0]

    def forward(self, features: Tensor, coordinates: Tensor) -> Tensor:
        """Features of every point.

        Args:
            features: (N, in_channels), place in meters first.
            coordinates: (N, 4) int: batch entry and three places on a grid, as mmdet3d's voxelisation with
                ``batch_first`` makes them.

        Returns:
            (N, dims[0]).

        Raises:
            ValueError: Shapes do not fit.
        """
        if features.dim() != 2 or features.shape[1] != self.in_channels or len(features) != len(coordinates):
            raise ValueError(
                f'features must have shape (points, {self.in_channels}) and a row for each of the '
                f'{len(coordinates)} coordinates, got {tuple(features.shape)}'
            )
        coordinates = coordinates.long()
        x, kept = self.stem(self._local(features, coordinates)), []
        for stage, blocks in enumerate(self.stages):
            cells = point_cells(coordinates, self.cell)
            for block in blocks:
                x = block(x, cells)
            if stage < len(self.pools):
                halved = point_cells(coordinates, 2)
                coarse, clusters = self.pools[stage](x, halved)
                kept.append((x, cells, clusters.labels[:, 0]))
                x, coordinates = coarse, halved.coordinates
        for up, refine, (fine, cells, labels) in zip(reversed(self.up), reversed(self.refine), reversed(kept)):
            x = refine(fine + up(x).index_select(0, labels), cells)
        return self.norm(x)

    def _local(self, features: Tensor, coordinates: Tensor) -> Tensor:
        """Features with meters in tens, and the place relative to the means of small and larger cells."""
        place = features[:, :3]
        parts = [features[:, :3] / 10, features[:, 3:]]
        for size in (self.cell, 4 * self.cell):
            cells: PointCells = point_cells(coordinates, size)
            parts.append(place - cell_means(place, cells).index_select(0, cells.home))
        return torch.cat(parts, 1)
