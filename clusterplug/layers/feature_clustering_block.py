# SPDX-License-Identifier: Apache-2.0
"""One block of FEC: clustering, then a small MLP, both added to what came in."""

from typing import cast

import torch
from torch import Tensor, nn

from clusterplug.functional.features import FeatureClusters
from clusterplug.layers.feature_clustering import FeatureClustering
from clusterplug.layers.maps import MapNorm, drop_path, pointwise


class FeatureClusteringBlock(nn.Module):
    """``x + scale_1 * clustering(norm(x))``, then ``x + scale_2 * mlp(norm(x))``.

    Args:
        dim: Channels C.
        mlp_ratio: Width of the MLP over C. Defaults to 4.
        drop_path_rate: Share of samples for which a branch is left out while training. Defaults to 0.
        layer_scale: First value of the factor of each channel. Defaults to 1e-5.
        **clustering: Arguments of :class:`~clusterplug.layers.FeatureClustering`.

    Raises:
        TypeError, ValueError: A setting is out of range.

    Source:
        Chen et al., CVPR 2024; official code guikunchen/FEC (Apache-2.0). Does the same.

    Example:
        >>> FeatureClusteringBlock(32, mlp_ratio=8, heads=4, head_dim=24, grid=4)(torch.randn(1, 32, 8, 8)).shape
        torch.Size([1, 32, 8, 8])
    """

    def __init__(
        self, dim: int, mlp_ratio: float = 4, drop_path_rate: float = 0.0, layer_scale: float = 1e-5, **clustering
    ):
        super().__init__()
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be from 0 to below 1, got {drop_path_rate!r}')
        self.drop_path_rate = float(drop_path_rate)
        self.norm1, self.norm2 = MapNorm(dim), MapNorm(dim)
        self.clustering = FeatureClustering(dim, **clustering)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.scale1 = nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.scale2 = nn.Parameter(torch.full((dim,), float(layer_scale)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Refine (B, C, H, W); ``mask`` (B, H, W) bool, True = valid."""
        return self.cluster(x, mask)[0]

    def cluster(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, FeatureClusters]:
        """As :meth:`forward`, with the clusters of :meth:`FeatureClustering.cluster`."""
        # The factors go into the weights of the last layers: one pass over the map less, in backward too.
        mixed, clusters = self.clustering.cluster(self.norm1(x, mask), mask, self.scale1)
        x = x + drop_path(mixed, self.drop_path_rate, self.training)
        refined = self._refine(self.norm2(x, mask))
        return x + drop_path(refined, self.drop_path_rate, self.training), clusters

    def _refine(self, x: Tensor) -> Tensor:
        widen, activate, narrow = self.mlp
        wide = activate(pointwise(x, cast(nn.Linear, widen)))
        return pointwise(wide, cast(nn.Linear, narrow), self.scale2)
