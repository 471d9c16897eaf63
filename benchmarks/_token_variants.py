# SPDX-License-Identifier: Apache-2.0
"""Variants of token clustering that were compared to find the defaults, as methods that ``patch.apply`` can run."""

import dataclasses

import torch

from clusterplug.functional import cluster_tokens, combine_tokens, token_neighbors, token_spread
from clusterplug.patch._geometry import cell_places
from clusterplug.patch.methods import Expedit, Reduced

# Weight of the tokens beside the features that are compared: too small to change a distance.
FAINT = 1e-3


@dataclasses.dataclass(frozen=True)
class FeatureExpedit(Expedit):
    """Clusters found by the distances of other features than the residual stream; their means are those of tokens.

    Args:
        feature: ``'normalized'``: what the first reduced block's norm makes of the tokens; ``'key'``: its keys, mean
            over heads; ``'standardized'``: every channel centered and divided by its deviation.
        block: The first reduced block, of a ViT with ``attn.qkv``.
    """

    feature: str = 'normalized'
    block: torch.nn.Module = None

    def __call__(self, tokens, grid, compared):
        """Reduce (B, H, W, C) to ``grid``."""
        channels = tokens.shape[-1]
        if self.feature == 'standardized':
            features = (tokens - tokens.mean((1, 2), keepdim=True)) / tokens.std((1, 2), keepdim=True)
        elif self.feature == 'key':
            keys = self.block.attn.qkv(compared())[..., channels : 2 * channels]
            features = keys.unflatten(-1, (self.block.attn.h, -1)).mean(-2)
        else:
            features = compared()
        faint = FAINT / tokens.std()
        both = torch.cat([features / features.std(), tokens * faint], -1)
        state = cluster_tokens(both, grid, temperature=self.sharpness * token_spread(both, grid))
        neighbors = token_neighbors(state, num_neighbors=self.num_neighbors, window=self.search)
        centers = state.centers[..., features.shape[-1] :] / faint

        def restore(refined):
            return tokens + combine_tokens(refined.unflatten(1, grid) - centers, neighbors)

        return Reduced(centers.flatten(1, 2), restore, cell_places(tokens.shape[1:3], grid, tokens.device))
