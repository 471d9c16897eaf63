# SPDX-License-Identifier: Apache-2.0
"""One attention map over the positions of a feature map, learnt with the loss behind it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_count
from clusterplug.registry import MODELS

__all__ = ['SpatialAttention']

_CONVS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@MODELS.register_module()
class SpatialAttention(nn.Module):
    r"""Weight the positions of a feature map by a map between 0 and 1.

    .. math:: A = \sigma(\text{conv}(\text{ReLU}(\text{conv}(\text{ReLU}(\text{conv}(F)))))), \qquad F' = F \odot A.

    The map is the explanation of what the embedding looks at, and a mask of it once scaled up and thresholded.

    Args:
        in_channels: C.
        hidden_channels: Channels in between.
        dims: 2 for images and bird's-eye maps (B, C, H, W), 1 and 3 likewise, 0 for rows (N, C) of points or voxels
            (linear layers); with 0 a spconv tensor is taken as well.
        kernel_size: Odd, for ``dims`` 1 to 3.

    Shape: as the input; :meth:`attention` has one channel.

    Raises:
        ValueError: An even kernel, an unknown ``dims``, an input of another number of dimensions or channels.

    Source: Adiga, Dolz and Lombaert, IEEE JBHI 2022, section III (arXiv 2206.09068); official code
    adigasu/Dynamic_subspace_learners (MIT): 3 x 3 convolutions to 128, 32 and 1 channels. **Differs from the authors'
    code**: also for points, voxels and volumes.

    Example:
        >>> layer = SpatialAttention(64)
        >>> x = torch.rand(2, 64, 14, 14)
        >>> layer(x).shape, layer.attention(x).shape
        (torch.Size([2, 64, 14, 14]), torch.Size([2, 1, 14, 14]))
    """

    def __init__(
        self, in_channels: int, hidden_channels: Sequence[int] = (128, 32), dims: int = 2, kernel_size: int = 3
    ):
        super().__init__()
        self.in_channels = check_count(in_channels, 'in_channels', 1)
        self.dims = check_count(dims, 'dims', 0, 3)
        size = check_count(kernel_size, 'kernel_size', 1)
        if size % 2 == 0:
            raise ValueError(f'kernel_size must be odd, so that the map keeps its size, got {size}')
        widths = [self.in_channels, *(check_count(each, 'each of hidden_channels', 1) for each in hidden_channels), 1]
        blocks: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            if self.dims == 0:
                blocks.append(nn.Linear(before, after))
            else:
                blocks.append(_CONVS[self.dims](before, after, size, padding=size // 2))
            blocks.append(nn.ReLU(inplace=True))
        self.score = nn.Sequential(*blocks[:-1])

    def attention(self, x: Tensor) -> Tensor:
        """Return the map A, (B, 1, ...) or (N, 1), between 0 and 1."""
        x = getattr(x, 'features', x)
        if not isinstance(x, Tensor) or x.dim() != self.dims + 2 or x.shape[1] != self.in_channels:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f'x must be (B, {self.in_channels}, and {self.dims} sides), got {got}')
        return torch.sigmoid(self.score(x))

    def forward(self, x: Any) -> Any:
        weights = self.attention(x)
        if hasattr(x, 'replace_feature'):
            return x.replace_feature(x.features * weights)
        return x * weights
