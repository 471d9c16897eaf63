# SPDX-License-Identifier: Apache-2.0
"""Networks that give each point of a plot a cluster: attention over all points, or set abstraction (PointNet++)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.backbones._set_abstraction import SetAbstractionNet
from clusterplug.core.checks import check_choice, check_count, check_mask, check_number
from clusterplug.core.numerics import no_autocast, working_dtype
from clusterplug.registry import MODELS

__all__ = ['ClusterLogits', 'PointClusterNet', 'scale_plots']

_KINDS = ('attention', 'pointnet')


class ClusterLogits(NamedTuple):
    """What the network says of each point."""

    logits: Tensor  # (B, N, num_clusters (+ 1 of noise))
    agreement: Tensor  # (B, N) from 0 to 1: how far people would agree on which others it belongs with


@MODELS.register_module()
class PointClusterNet(nn.Module):
    r"""Point-wise scores of clusters without an order: the columns carry no meaning but "the same" and "another".

    Train it with :func:`~clusterplug.functional.matched_cross_entropy` or :func:`~clusterplug.functional.pair_loss`.
    The coordinates are moved and scaled per plot, x -> (x - min) / range of the longest side (:func:`scale_plots`).

    ``kind='attention'``: every layer lets all points see all others; the score of a pair is lowered by the squared
    distance, each head with its own learned factor (init 1 to 1,000),

    .. math:: a_{nm} \propto \exp(q_n \cdot k_m / \sqrt{d} - \gamma_h |x_n - x_m|^2).

    ``kind='pointnet'``: set abstraction and feature propagation of PointNet++ over four levels (1/2, 1/8, 1/32 and
    1/128 of the points; radii 0.1, 0.2, 0.4, 0.8; 32 neighbors), by dense distances in plain torch, so it runs on the
    CPU. Sampling starts at the point nearest to the mean, so neither kind depends on the order of the points.

    Args:
        num_clusters: Maximum number of clusters of a plot, a column each.
        in_channels: Coordinates of a point (2 for plots, 3 for scans).
        kind: ``'attention'`` or ``'pointnet'``.
        embed_dims: Width of the attention layers; the widths of ``'pointnet'`` are 64 to 512 features, times
            ``embed_dims / 32``.
        depth: Attention layers; ``'pointnet'`` has four levels whatever it is, and refuses any other number.
        num_heads: Of the attention; not used by ``'pointnet'``.
        noise: One more column, the last, for points in no cluster (``noise_column=-1`` of the loss).
        agreement: Predict the agreement, too.
        dropout: Of the head.
        per_axis: Scale each axis by its own range, for plots that readers see stretched to a square.
        init_cfg: Not used; there for mm models.

    Raises:
        TypeError, ValueError: An option is out of its range.

    Source: Hartwig et al., "ClusterNet", arXiv 2304.14185 (later "HPSCAN"): a PointNet++ on raw coordinates. Sizes and
    the attention net are reconstructions; the official repository kopetri/HPSCAN holds no code and no license. Set
    abstraction: Qi et al., PointNet++, 2017. **Differs from the authors' code**: there is none to compare with. From
    PointNet++: layer instead of batch normalization, the nearest points of a ball instead of the first in memory, so
    that the order of the points plays no part.

    Example:
        >>> net = PointClusterNet(num_clusters=5)
        >>> net(torch.rand(2, 30, 2)).shape
        torch.Size([2, 30, 6])
    """

    def __init__(
        self,
        num_clusters: int = 20,
        in_channels: int = 2,
        *,
        kind: str = 'attention',
        embed_dims: int = 32,
        depth: int = 4,
        num_heads: int = 4,
        noise: bool = True,
        agreement: bool = False,
        dropout: float = 0.5,
        per_axis: bool = False,
        init_cfg: dict | None = None,
    ):
        super().__init__()
        check_choice(kind, 'kind', _KINDS)
        # what PointClusterNet(**options) makes another one of the same shape from
        self.options = dict(
            num_clusters=num_clusters, in_channels=in_channels, kind=kind, embed_dims=embed_dims, depth=depth,
            num_heads=num_heads, noise=noise, agreement=agreement, dropout=dropout, per_axis=per_axis,
        )  # fmt: skip
        self.num_clusters = check_count(num_clusters, 'num_clusters', 1)
        self.in_channels = check_count(in_channels, 'in_channels', 1)
        embed_dims, depth = check_count(embed_dims, 'embed_dims', 8), check_count(depth, 'depth', 1)
        num_heads = check_count(num_heads, 'num_heads', 1)
        dropout = check_number(dropout, 'dropout', 0, 1)
        self.kind, self.noise, self.per_axis = kind, bool(noise), bool(per_axis)
        if kind == 'attention':
            if embed_dims % num_heads:
                raise ValueError(f'embed_dims must be a multiple of num_heads={num_heads}, got {embed_dims}')
            self.body = _AttentionNet(in_channels, embed_dims, depth, num_heads)
            out_channels = embed_dims
        else:
            if depth != 4:
                raise ValueError(f"depth must be 4 for kind='pointnet', whose levels are fixed, got {depth}")
            self.body = SetAbstractionNet(in_channels, embed_dims / 32)
            out_channels = self.body.out_channels
        self.out_channels = out_channels
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(out_channels, num_clusters + self.noise)
        self.agreement = nn.Linear(out_channels, 1) if agreement else None

    def forward(self, points: Tensor, mask: Tensor | None = None) -> Tensor | ClusterLogits:
        """Return the scores of all points.

        Args:
            points: (B, N, in_channels) coordinates in any unit, floating, N >= 1.
            mask: (B, N) bool, True = valid. Masked points play no part; their rows of the result are 0.

        Returns:
            (B, N, num_clusters + noise) logits in the type of the network, or ``ClusterLogits(logits, agreement)`` of
            a network with ``agreement=True``.

        Raises:
            TypeError: ``points`` is not floating, ``mask`` not bool.
            ValueError: Shapes do not fit. On the CPU also NaN or infinity in a valid point.
        """
        points = scale_plots(points, mask, per_axis=self.per_axis)
        if points.shape[-1] != self.in_channels:
            raise ValueError(
                f'points must have {self.in_channels} coordinates (in_channels), got shape {tuple(points.shape)}'
            )
        features = self.body(points, mask)
        logits = self.classifier(self.dropout(features))
        if mask is not None:
            logits = logits.masked_fill(~mask.unsqueeze(-1), 0.0)
        if self.agreement is None:
            return logits
        agreement = self.agreement(features).squeeze(-1).sigmoid()
        return ClusterLogits(logits, agreement if mask is None else agreement.masked_fill(~mask, 0.0))


def scale_plots(points: Tensor, mask: Tensor | None = None, *, per_axis: bool = False) -> Tensor:
    """Move the least coordinates of each plot to 0 and scale its longest side (or each axis) to 1, in fp32 at least.

    Args:
        points: (B, N, D) floating. mask: (B, N) bool, True = valid.
        per_axis: Divide each axis by its own range. An axis without a range stays 0.

    Returns:
        (B, N, D); masked points at 0. A plot whose points are all equal is all zeros.

    Raises:
        TypeError, ValueError: As :meth:`PointClusterNet.forward`.
    """
    if not isinstance(points, Tensor) or not points.is_floating_point():
        got = points.dtype if isinstance(points, Tensor) else type(points).__name__
        raise TypeError(f'points must be a floating torch.Tensor, got {got}; convert it with points.float()')
    if points.dim() != 3 or points.shape[1] == 0:
        raise ValueError(f'points must have shape (B, N, D) with N >= 1, got {tuple(points.shape)}')
    check_mask(mask, points.shape[:2], points.device)
    with no_autocast(points):
        x = points.to(working_dtype(points.dtype))
        valid = torch.ones_like(x[..., :1], dtype=torch.bool) if mask is None else mask.unsqueeze(-1)
        if x.device.type == 'cpu' and not torch.compiler.is_compiling() and not bool((x.isfinite() | ~valid).all()):
            raise ValueError('points must be finite, got NaN or infinity; drop them or pass a mask')
        low = torch.where(valid, x, torch.inf).amin(1, keepdim=True)
        # halves: the range of the largest numbers is no number
        span = torch.where(valid, x, -torch.inf).amax(1, keepdim=True) / 2 - low / 2
        span = span if per_axis else span.amax(-1, keepdim=True)
        scaled = (x / 2 - low / 2) / torch.where((span > 0) & span.isfinite(), span, 1.0)
        return torch.where(valid, scaled, 0.0)


class _AttentionNet(nn.Module):
    def __init__(self, in_channels: int, embed_dims: int, depth: int, num_heads: int):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(in_channels, embed_dims), nn.GELU(), nn.Linear(embed_dims, embed_dims))
        self.layers = nn.ModuleList(_AttentionLayer(embed_dims, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dims)

    def forward(self, points: Tensor, mask: Tensor | None) -> Tensor:
        with no_autocast(points):
            distances = (points.unsqueeze(2) - points.unsqueeze(1)).square().sum(-1).unsqueeze(1)
        dtype = self.norm.weight.dtype
        x = self.embed(2 * points.to(dtype) - 1)
        for layer in self.layers:
            x = layer(x, distances, mask)
        return self.norm(x)


class _AttentionLayer(nn.Module):
    def __init__(self, embed_dims: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(embed_dims), nn.LayerNorm(embed_dims)
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.mlp = nn.Sequential(
            nn.Linear(embed_dims, 2 * embed_dims), nn.GELU(), nn.Linear(2 * embed_dims, embed_dims)
        )
        # one head sees the whole plot, the last one a tenth of a tenth of it
        self.log_decay = nn.Parameter(torch.linspace(0, 6.9, num_heads))

    def forward(self, x: Tensor, distances: Tensor, mask: Tensor | None) -> Tensor:
        batch, count, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        bias = -self.log_decay.exp().view(-1, 1, 1) * distances
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None, None], torch.finfo(bias.dtype).min)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0), attn_mask=bias.to(qkv.dtype))
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, count, width))
        return x + self.mlp(self.norm2(x))
