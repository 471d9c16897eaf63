# SPDX-License-Identifier: Apache-2.0
"""Transformer over the slices of a volume: deformable attention along them, for any number of slices."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_count, check_mask, check_number, check_points
from clusterplug.core.numerics import host_checks_allowed
from clusterplug.functional import sample_sequence
from clusterplug.registry import MODELS


class DeformableSliceAttention(nn.Module):
    """Every slice attends to positions between the slices that the network chooses, the same for all of its slices.

    A reference position stands in the middle of every ``downsample`` slices; each has ``points`` keys, moved by up to
    ``max_offset`` slices. Keys and values are read there by linear interpolation, within the sequence. A small network
    of the distance biases the attention.

    Args:
        channels: C.
        heads: Heads, each with its own positions.
        points: Keys at a reference position.
        downsample: Slices between reference positions.
        max_offset: Largest offset, in slices.
        kernel_size: Width of the convolution that finds the offsets.
    """

    def __init__(
        self,
        channels: int,
        heads: int = 8,
        points: int = 1,
        downsample: int = 4,
        max_offset: float = 2.0,
        kernel_size: int = 5,
    ):
        super().__init__()
        self.channels, self.heads = check_count(channels, 'channels', 1), check_count(heads, 'heads', 1)
        if channels % heads:
            raise ValueError(f'channels must be a multiple of heads, {heads}, got {channels}')
        self.points, self.downsample = check_count(points, 'points', 1), check_count(downsample, 'downsample', 1)
        self.max_offset = check_number(max_offset, 'max_offset', 0)
        kernel_size = check_count(kernel_size, 'kernel_size', 1)
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be odd, so that it has a middle, got {kernel_size}')
        self.query, self.key, self.value = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.out = nn.Linear(channels, channels)
        self.spread = nn.Conv1d(channels, channels, kernel_size, groups=channels)
        self.offset = nn.Conv1d(channels, heads * points, 1, groups=heads)
        first, last = nn.Linear(1, 32), nn.Linear(32, heads)
        self.bias = nn.Sequential(first, nn.ReLU(), last)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def positions(self, q: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Where keys are read, (B, heads, M) in slices, and which of them count, (B, M) bool."""
        slices, reach = q.shape[1], self.spread.kernel_size[0] // 2
        centers = torch.arange(0, slices, self.downsample, device=q.device)
        found = F.gelu(self.spread(F.pad(q.mT, (reach, reach)))[..., centers])
        # a position of slice 60 has no digits behind the point in half precision
        wide = torch.promote_types(q.dtype, torch.float32)
        offsets = self.offset(found).tanh().to(wide) * self.max_offset
        offsets = offsets.unflatten(1, (self.heads, self.points)).transpose(2, 3).flatten(2)
        # the middle of the slices that a reference position stands for, of which the last one may have fewer
        ends = torch.minimum(centers + self.downsample, lengths[:, None])
        middle = ((centers + ends - 1) / 2).clamp(min=0).repeat_interleave(self.points, 1)
        last = (lengths - 1).clamp(min=0)[:, None, None].to(offsets.dtype)
        chosen = torch.minimum((middle[:, None] + offsets).clamp(min=0), last)
        return chosen, (centers < lengths[:, None]).repeat_interleave(self.points, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return (B, S, C) of (B, S, C); ``mask`` (B, S) bool, True = a slice, False = padding behind the slices."""
        slices = x.shape[1]
        q = self.query(x)
        if mask is None:
            lengths = torch.full((len(x),), slices, device=x.device)
        else:
            q = q.masked_fill(~mask[..., None], 0.0)
            lengths = mask.sum(1)
        at, counts = self.positions(q, lengths)
        split = [each.unflatten(2, (self.heads, -1)).transpose(1, 2) for each in (q, self.key(x), self.value(x))]
        k, v = (sample_sequence(each, at) for each in split[1:])
        distance = torch.arange(slices, device=x.device)[:, None] - at[:, :, None]
        bias = self.bias((distance.sign() * distance.abs().log1p())[..., None].to(x.dtype))
        bias = torch.stack([bias[:, head, ..., head] for head in range(self.heads)], 1)
        bias = bias.masked_fill(~counts[:, None, None], -torch.inf)
        # a sample without slices: any weights do, as all its results are padding
        bias = bias.masked_fill(~counts.any(1)[:, None, None, None], 0.0)
        mixed = F.scaled_dot_product_attention(split[0], k, v, attn_mask=bias.to(q.dtype))
        return self.out(mixed.transpose(1, 2).flatten(2))


@MODELS.register_module()
class InterSliceEncoder(nn.Module):
    """Mix the embeddings of the slices of a volume, and make one embedding of them.

    Post-norm blocks of :class:`DeformableSliceAttention` and a feed-forward layer. "Slices" are those of a volume, the
    frames of a video, or the sweeps of a sequence. The same weights take any number of slices from ``downsample`` on.

    Args:
        channels: C, width of the slice embeddings.
        depth: Blocks.
        heads: Heads of the attention.
        points: Keys at a reference position.
        downsample: Slices between reference positions.
        ffn_channels: Width of the feed-forward layer; default 1.125 C (720 for 640).
        dropout: Dropout of both branches.
        max_offset: Largest offset of a key, in slices.
        position: ``'sine'``: embedding of the number of the slice, for any number of them; ``'none'``.

    Shapes:
        ``x`` (B, S, C) and ``mask`` (B, S) bool, True = a slice, False = padding behind them; returns (B, S, C), 0
        where there is padding. What stands in the padding changes nothing.

    Raises:
        ValueError, TypeError: Fewer slices than ``downsample``, or inputs that do not fit.

    Source: Nguyen et al., AAAI 2023, arXiv 2212.01893; official code
    duyhominhnguyen/Self-supervised-Image-Volume-Intra-Inter-Contrastive (no license), not copied. **Differs from the
    authors' code**: attention runs along the slices, theirs along the features, with the slices as channels, so that
    their number is fixed; keys are read where the offsets say (:func:`~clusterplug.functional.sample_sequence`);
    slices have positions; dropout inside the branches.

    Example:
        >>> encoder = InterSliceEncoder(32, depth=2, heads=4, downsample=2)
        >>> encoder(torch.randn(3, 9, 32)).shape, encoder.embed(torch.randn(3, 16, 32)).shape
        (torch.Size([3, 9, 32]), torch.Size([3, 32]))
    """

    def __init__(
        self,
        channels: int = 640,
        depth: int = 4,
        heads: int = 8,
        points: int = 1,
        downsample: int = 4,
        ffn_channels: int | None = None,
        dropout: float = 0.1,
        max_offset: float = 2.0,
        position: str = 'sine',
    ):
        super().__init__()
        self.channels, depth = check_count(channels, 'channels', 1), check_count(depth, 'depth', 1)
        self.downsample = check_count(downsample, 'downsample', 1)
        check_number(dropout, 'dropout', 0, 1)
        self.position = check_choice(position, 'position', ('sine', 'none'))
        wide = channels * 9 // 8 if ffn_channels is None else check_count(ffn_channels, 'ffn_channels', 1)
        self.attentions = nn.ModuleList(
            DeformableSliceAttention(channels, heads, points, downsample, max_offset) for _ in range(depth)
        )
        self.feed_forwards = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, wide), nn.GELU(), nn.Linear(wide, channels)) for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2 * depth))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self._check(x, mask)
        if mask is not None:  # where padding is NaN, 0 times it would be NaN too
            x = x.masked_fill(~mask[..., None], 0.0)
        if self.position == 'sine':
            x = x + _sine(x.shape[1], self.channels, x.device).to(x.dtype)
        for number, (attention, feed_forward) in enumerate(zip(self.attentions, self.feed_forwards, strict=True)):
            x = self.norms[2 * number](x + self.dropout(attention(x, mask)))
            x = self.norms[2 * number + 1](x + self.dropout(feed_forward(x)))
        return x if mask is None else x.masked_fill(~mask[..., None], 0.0)

    def embed(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the unit-length embedding (B, C) of each volume: the mean over its mixed slices."""
        mixed = self(x, mask)
        count = x.shape[1] if mask is None else mask.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(mixed.sum(1) / count, dim=1)

    def _check(self, x: Tensor, mask: Tensor | None) -> None:
        check_points(x, 'x', allow_empty=True)
        if x.dim() != 3 or x.shape[2] != self.channels:
            raise ValueError(f'x must have shape (B, S, {self.channels}), got {tuple(x.shape)}')
        if x.shape[1] < self.downsample:
            raise ValueError(
                f'x must have at least downsample = {self.downsample} slices, got {x.shape[1]}; use a smaller '
                f'downsample'
            )
        check_mask(mask, x.shape[:2], x.device)
        if mask is not None and host_checks_allowed(x) and bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            raise ValueError('mask must be True for the slices and False behind them, got a slice behind padding')


def _sine(length: int, channels: int, device: torch.device) -> Tensor:
    """(S, C) sines and cosines of the number of the slice."""
    half = -(-channels // 2)
    rates = torch.exp(torch.arange(half, device=device) * (-math.log(10_000.0) / max(half, 1)))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :channels]
