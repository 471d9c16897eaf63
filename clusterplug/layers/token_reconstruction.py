# SPDX-License-Identifier: Apache-2.0
"""The layer that makes a token sequence as long as it was."""

from torch import Tensor, nn

from clusterplug.functional import TokenClusters, reconstruct_tokens
from clusterplug.functional.tokens import check_settings
from clusterplug.layers._tokens import check_num_prefix, join_map, split_map
from clusterplug.registry import MODELS


@MODELS.register_module()
class TokenReconstruction(nn.Module):
    """Rebuild the H x W map from refined cluster tokens.

    Args:
        num_neighbors: Clusters that a token is rebuilt from, at most. Defaults to 20.
        norm: ``'l1'``: weights add up to one; ``'l2'``: as in the authors' code. Defaults to ``'l1'``.
        window: Odd number of cells to search around a token's own; None, the default, searches all.
        num_prefix: Tokens in front that pass untouched. Defaults to 0.

    Raises:
        TypeError, ValueError: A setting is out of range.

    Source:
        Liang et al., NeurIPS 2022; differences as :func:`~clusterplug.functional.reconstruct_tokens`.

    Example:
        >>> import torch
        >>> from clusterplug.layers import TokenClustering
        >>> short, state = TokenClustering((4, 4))(torch.randn(1, 6, 6, 8))
        >>> TokenReconstruction()(short, state).shape
        torch.Size([1, 6, 6, 8])
    """

    def __init__(self, num_neighbors: int = 20, norm: str = 'l1', window: int | None = None, num_prefix: int = 0):
        super().__init__()
        check_settings(num_neighbors=num_neighbors, norm=norm, window=window)
        self.num_neighbors, self.norm, self.window = num_neighbors, norm, window
        self.num_prefix = check_num_prefix(num_prefix)

    def forward(self, tokens: Tensor, state: TokenClusters) -> Tensor:
        """Rebuild a sequence.

        Args:
            tokens: (B, P + h w, C') refined cluster tokens, or a map (B, h, w, C').
            state: What the clustering returned.

        Returns:
            (B, P + H W, C'), or (B, H, W, C').

        Raises:
            TypeError: ``state`` is no TokenClusters.
            ValueError: Shapes do not fit the state.
        """
        if not isinstance(state, TokenClusters):
            raise TypeError(
                f'state must be the TokenClusters that TokenClustering returned beside the tokens, got '
                f'{type(state).__name__}'
            )
        as_map = tokens.dim() == 4
        size = None if as_map else (state.centers.shape[1], state.centers.shape[2])
        prefix, values = split_map(tokens, size, self.num_prefix)
        rebuilt = reconstruct_tokens(
            values, state, num_neighbors=self.num_neighbors, norm=self.norm, window=self.window
        )
        return join_map(prefix, rebuilt, as_map)

    def extra_repr(self) -> str:
        """Settings for ``print``."""
        return (
            f'num_neighbors={self.num_neighbors}, norm={self.norm!r}, window={self.window}, '
            f'num_prefix={self.num_prefix}'
        )
