# SPDX-License-Identifier: Apache-2.0
"""Layers of FEC for points in space: mixing within clusters, and coarser points from clusters."""

import torch
from torch import Tensor, nn

from clusterplug.functional.features import FeatureClusters, PointCells, cell_means, cluster_points, spread_clusters


class PointFeatureClusteringBlock(nn.Module):
    """Points exchange what they hold with the points of their cluster, then an MLP; both are added to what came in.

    Args:
        dim: Channels C.
        heads: Clusterings side by side. Defaults to 4.
        head_dim: Channels of each. Defaults to 16.
        mlp_ratio: Width of the MLP over C. Defaults to 2.

    Source:
        Own; :class:`~clusterplug.layers.FeatureClusteringBlock` for points, with LayerNorm, so that a point does not
        depend on the size of its cloud, and without LayerScale.

    Example:
        >>> from clusterplug.functional import point_cells
        >>> cells = point_cells(torch.randint(0, 9, (50, 4)) * torch.tensor([0, 1, 1, 1]), 4)
        >>> PointFeatureClusteringBlock(32)(torch.randn(50, 32), cells).shape
        torch.Size([50, 32])
    """

    def __init__(self, dim: int, heads: int = 4, head_dim: int = 16, mlp_ratio: float = 2):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.features, self.values = nn.Linear(dim, heads * head_dim), nn.Linear(dim, heads * head_dim)
        self.project = nn.Linear(heads * head_dim, dim)
        self.scale, self.shift = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor, cells: PointCells) -> Tensor:
        """Refine (N, C)."""
        y = self.norm1(x)
        features, values = (
            each(y).unflatten(1, (self.heads, each.out_features // self.heads)) for each in (self.features, self.values)
        )
        clusters = cluster_points(features, values, cells, scale=self.scale)
        strength = torch.sigmoid(clusters.similarity + self.shift)[..., None].to(values.dtype)
        x = x + self.project((spread_clusters(clusters) * strength).flatten(1))
        return x + self.mlp(self.norm2(x))


class PointFeatureClusteringPool(nn.Module):
    """One point for each cell: the mean of the points that joined it, plus a linear map of those that lie in it.

    Args:
        in_channels: C.
        out_channels: C'.

    Source:
        Own; :class:`~clusterplug.layers.FeatureClusteringPool` for points.

    Example:
        >>> from clusterplug.functional import point_cells
        >>> cells = point_cells(torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0]]))
        >>> PointFeatureClusteringPool(8, 16)(torch.randn(3, 8), cells)[0].shape
        torch.Size([2, 16])
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.features, self.values = nn.Linear(in_channels, out_channels), nn.Linear(in_channels, out_channels)
        self.skip, self.norm = nn.Linear(in_channels, out_channels), nn.LayerNorm(out_channels)

    def forward(self, x: Tensor, cells: PointCells) -> tuple[Tensor, FeatureClusters]:
        """Return points (M, C') of (N, C), and the clusters, whose ``labels`` (N, 1) lead back."""
        clusters = cluster_points(
            self.features(x)[:, None], self.values(x)[:, None], cells, straight_through=self.training
        )
        return self.skip(cell_means(x, cells)) + self.norm(clusters.representatives[:, 0]), clusters
