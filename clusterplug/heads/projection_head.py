# SPDX-License-Identifier: Apache-2.0
"""The small MLP between a backbone feature and the space in which it is clustered."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import Tensor, nn

from clusterplug.core.checks import check_choice
from clusterplug.registry import MODELS


@MODELS.register_module()
class ProjectionHead(nn.Sequential):
    """Linear, norm, ReLU for each hidden width, then Linear; no activation at the end.

    Args:
        in_channels: width of the tapped feature.
        out_channels: width of the embedding (D).
        hidden_channels: widths in between, may be empty.
        norm: ``'layer'``: a row does not depend on the other rows. ``'batch'``: BatchNorm1d, as in the projectors of
            SwAV, SimCLR and BYOL, which see whole batches.

    Input and output are (N, in_channels) and (N, out_channels).

    Source: Feng et al., ICCV 2023, projector of the official code (256-128-64).

    Differs from the authors' code: theirs runs over all N points with BatchNorm and ends in ReLU, which leaves cosines
    in [0, 1] while the centers start signed. Here only the sampled anchors are projected, so a row must not depend on
    the other rows: LayerNorm.

    Example:
        >>> import torch
        >>> ProjectionHead(96)(torch.zeros(5, 96)).shape
        torch.Size([5, 64])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 64,
        hidden_channels: Sequence[int] = (256, 128),
        norm: str = 'layer',
    ):
        widths: list[Any] = [in_channels, *hidden_channels, out_channels]
        if any(isinstance(width, bool) or not isinstance(width, Integral) or width < 1 for width in widths):
            raise ValueError(f'channels must be integers of at least 1, got {widths} (in, hidden ..., out)')
        make_norm = {'layer': nn.LayerNorm, 'batch': nn.BatchNorm1d}[check_choice(norm, 'norm', ('layer', 'batch'))]
        blocks = []
        for before, after in zip(widths[:-2], widths[1:-1], strict=True):
            blocks += [nn.Linear(before, after), make_norm(after), nn.ReLU(inplace=True)]
        super().__init__(*blocks, nn.Linear(widths[-2], widths[-1]))
        self.in_channels, self.out_channels = in_channels, out_channels

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)
