# SPDX-License-Identifier: Apache-2.0
"""The layer that makes a token sequence shorter."""

from torch import Tensor, nn

from clusterplug.functional import TokenClusters, cluster_tokens
from clusterplug.functional.tokens import check_grid, check_settings
from clusterplug.layers._tokens import check_num_prefix, join_map, split_map
from clusterplug.registry import MODELS


@MODELS.register_module()
class TokenClustering(nn.Module):
    """Replace the H x W map of a token sequence by a map of h x w cluster tokens.

    Without parameters; put it between two blocks of a trained transformer and a
    :class:`~clusterplug.layers.TokenReconstruction` where the full map is needed again.

    Args:
        grid: (h, w) cluster tokens; keep the proportions of the map.
        num_iters: Iterations of soft k-means. Defaults to 5.
        temperature: Divides squared distances. Defaults to 50.
        window: Odd number of cells around a token's own that it may join. Defaults to 5.
        num_prefix: Tokens in front (class, registers) that pass untouched. Defaults to 0.

    Raises:
        TypeError, ValueError: A setting is out of range (see :func:`~clusterplug.functional.cluster_tokens`).

    Source:
        Liang et al., "Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning", NeurIPS
        2022; differences as :func:`~clusterplug.functional.cluster_tokens`.

    Example:
        >>> import torch
        >>> shorten, rebuild = TokenClustering((28, 28), num_prefix=1), TokenReconstruction(num_prefix=1)
        >>> short, state = shorten(torch.randn(2, 1601, 64), size=(40, 40))
        >>> short.shape, rebuild(short, state).shape
        (torch.Size([2, 785, 64]), torch.Size([2, 1601, 64]))
    """

    def __init__(
        self,
        grid: tuple[int, int],
        num_iters: int = 5,
        temperature: float = 50.0,
        window: int = 5,
        num_prefix: int = 0,
    ):
        super().__init__()
        largest = (1 << 30, 1 << 30)  # the size of the map is known when one comes
        self.grid = check_grid(grid, largest)
        check_settings(num_iters=num_iters, temperature=temperature, window=window)
        self.num_iters, self.temperature, self.window = num_iters, float(temperature), window
        self.num_prefix = check_num_prefix(num_prefix)

    def forward(
        self, tokens: Tensor, size: tuple[int, int] | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, TokenClusters]:
        """Shorten a sequence.

        Args:
            tokens: (B, P + H W, C), or a map (B, H, W, C).
            size: (H, W) of a sequence; leave it out for a map.
            mask: (B, H, W) bool, True = valid.

        Returns:
            Tokens (B, P + h w, C), or (B, h, w, C), and the state for the reconstruction.

        Raises:
            TypeError, ValueError: Shapes do not fit each other or the settings.
        """
        prefix, values = split_map(tokens, size, self.num_prefix)
        state = cluster_tokens(
            values, self.grid, num_iters=self.num_iters, temperature=self.temperature, window=self.window, mask=mask
        )
        return join_map(prefix, state.centers, as_map=size is None), state

    def extra_repr(self) -> str:
        """Settings for ``print``."""
        return (
            f'grid={self.grid}, num_iters={self.num_iters}, temperature={self.temperature}, window={self.window}, '
            f'num_prefix={self.num_prefix}'
        )
