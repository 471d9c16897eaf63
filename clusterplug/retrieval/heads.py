# SPDX-License-Identifier: Apache-2.0
"""Heads that make one feature of a video from those of its segments: meanP and seqTransf of CLIP4Clip."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_mask
from clusterplug.core.numerics import no_autocast, working_dtype
from clusterplug.registry import MODELS


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """Average the unit vectors of valid segments and scale the average to length one, in fp32.

    Args:
        features: (B, S, D).
        mask: (B, S) bool.

    Returns:
        (B, D); zeros for a video without a valid segment.

    Example:
        >>> masked_mean(torch.tensor([[[3.0, 0.0], [0.0, 9.0]]]), torch.tensor([[True, False]])).tolist()
        [[1.0, 0.0]]
    """
    check_mask(mask, features.shape[:2], features.device)
    with no_autocast(features):
        unit = F.normalize(features.to(working_dtype(features.dtype)), dim=-1)
        count = mask.sum(1, keepdim=True).clamp_min(1)
        return F.normalize(unit.masked_fill(~mask[..., None], 0).sum(1) / count, dim=-1)


@MODELS.register_module()
class MeanPooling(nn.Module):
    """meanP: the mean of the segments' unit vectors, without parameters.

    Source:
        Luo et al., "CLIP4Clip", Neurocomputing 2022. **Differs from the authors' code** (CenterCLIP's): a segment
        counts when any of its frames is real, where theirs asks the last one.

    Example:
        >>> MeanPooling()(torch.randn(2, 4, 8), torch.ones(2, 4, dtype=torch.bool)).shape
        torch.Size([2, 8])
    """

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Pool (B, S, D) with a mask (B, S) of valid segments to (B, D) of length one."""
        return masked_mean(features, mask)

    def init_from_text(self, blocks: Sequence[dict], positions: Tensor) -> None:
        """Nothing to start from."""


class _Block(nn.Module):
    """A block of CLIP's transformers, with the names of its parts."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, ignored: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, key_padding_mask=ignored, need_weights=False)[0]
        hidden = self.c_fc(self.ln_2(x))
        return x + self.c_proj(hidden * torch.sigmoid(1.702 * hidden))


@MODELS.register_module()
class SequenceTransformer(nn.Module):
    """seqTransf: positions, a few transformer blocks over the segments, added to the features; then meanP.

    Args:
        embed_dims: D. Defaults to 512.
        max_segments: Positions to learn. Defaults to 128.
        num_blocks: Defaults to 4.
        num_heads: By default one for each 64 channels.

    Raises:
        ValueError: Heads do not divide the channels. In forward: more segments than positions.

    Source:
        Luo et al., "CLIP4Clip", Neurocomputing 2022: blocks and positions start as those of the text encoder, where
        the widths agree (:meth:`init_from_text`).

    Example:
        >>> head = SequenceTransformer(64, num_blocks=1)
        >>> head(torch.randn(2, 4, 64), torch.ones(2, 4, dtype=torch.bool)).shape
        torch.Size([2, 64])
    """

    def __init__(
        self, embed_dims: int = 512, max_segments: int = 128, num_blocks: int = 4, num_heads: int | None = None
    ):
        super().__init__()
        num_heads = num_heads or max(1, embed_dims // 64)
        if embed_dims % num_heads:
            raise ValueError(f'num_heads must divide embed_dims, got {num_heads} and {embed_dims}')
        self.positions = nn.Parameter(0.01 * torch.randn(max_segments, embed_dims))
        self.blocks = nn.ModuleList(_Block(embed_dims, num_heads) for _ in range(num_blocks))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Pool (B, S, D) with a mask (B, S) of valid segments to (B, D) of length one."""
        if features.shape[1] > len(self.positions):
            raise ValueError(
                f'videos must have at most {len(self.positions)} segments, got {features.shape[1]}; raise max_segments'
            )
        check_mask(mask, features.shape[:2], features.device)
        # Attention over nothing is NaN: a video without a valid segment attends to all and is zeroed by the mean.
        ignored = ~mask & mask.any(1, keepdim=True)
        x = features + self.positions[: features.shape[1]].to(features.dtype)
        for block in self.blocks:
            x = block(x, ignored)
        return masked_mean(features + x, mask)

    def init_from_text(self, blocks: Sequence[dict], positions: Tensor) -> None:
        """Start as the text encoder, where shapes agree.

        Args:
            blocks: State dicts of the text encoder's first blocks, by the names of CLIP's own code.
            positions: (L, width) positions of the text encoder.
        """
        if positions.shape[1] != self.positions.shape[1] or not blocks:
            return
        count = min(len(positions), len(self.positions))
        with torch.no_grad():
            self.positions[:count] = positions[:count]
        for block, state in zip(self.blocks, blocks):
            if state['mlp.c_fc.weight'].shape == block.c_fc.weight.shape:
                block.load_state_dict({key.removeprefix('mlp.'): value for key, value in state.items()})
