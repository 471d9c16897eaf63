# SPDX-License-Identifier: Apache-2.0
"""Clustering of features between linear maps, with the maps taken out of the sums over points."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from clusterplug.core.numerics import exact_products, working_dtype
from clusterplug.functional.features import FeatureClusters, assign, cluster_encode, soft_cluster_encode
from clusterplug.layers.maps import linear_maps, scaled


class MixingLayer(Protocol):
    """What the two functions below need of their layer."""

    features: nn.Conv2d
    values: nn.Conv2d
    project: nn.Conv2d
    heads: int
    head_dim: int
    scale: nn.Parameter
    shift: nn.Parameter
    aggregate: str


def mix_few(
    x: Tensor, cells: Tensor, layer: MixingLayer, factor: Tensor | None, masks: tuple[Tensor | None, Tensor | None]
) -> tuple[Tensor, FeatureClusters]:
    """Values, their means over clusters, and their projection, where centers are few.

    The mean of values W x + b over a cluster is W (mean of x) + b, and what is sent back is projected once a cluster
    instead of once a point. Neither the values nor the output of the heads are ever made for all points, which for
    the channels and centers of FEC is half of the arithmetic and more of the memory traffic.

    Args:
        x: (B, C, N) points.
        cells: (B, C, M) averages over the cells of the grid.
        layer: With the maps and settings.
        factor: (C',) what the output is multiplied by, or None.
        masks: (B, N) and (B, M) bool, True = valid, or None.

    Returns:
        (B, C', N), and clusters with a dimension of heads, as :func:`~clusterplug.functional.cluster_encode`.
    """
    heads, shape = layer.heads, (layer.heads, layer.head_dim)
    batch, _, number = x.shape
    mask, center_mask = masks
    if mask is not None and center_mask is not None:  # given together
        # what is masked may be NaN, which no factor of 0 removes
        x, cells = torch.where(mask[:, None], x, 0), torch.where(center_mask[:, None], cells, 0)
        mask, center_mask = mask.repeat_interleave(heads, 0), center_mask.repeat_interleave(heads, 0)
    points, centers = (_heads(each, layer.features, shape) for each in (x, cells))
    dtype = working_dtype(x.dtype)
    with exact_products(x):
        chosen = assign(points, centers, layer.scale, center_mask)
        similarity = torch.sigmoid(layer.shift + chosen.score)
        members = chosen.members
        assert members is not None, 'few centers have members'
        if mask is not None:
            similarity, members = similarity * mask, members * mask[:, None]
        shares = members * similarity[:, None]
        counts = members.sum(-1)
        weighted, mass = (members, counts) if layer.aggregate == 'mean' else (shares, shares.sum(-1))
        few = cells.shape[2]
        sums = weighted.view(batch, heads * few, number) @ x.to(dtype).mT
        means = cells.to(dtype).mT[:, None] + sums.unflatten(1, (heads, few))
        means = means / (1 + mass).view(batch, heads, few, 1)
        weight, bias = (each.to(dtype) for each in scaled(layer.values))
        groups = means @ weight.unflatten(0, shape).mT + bias.view(heads, 1, layer.head_dim)
        weight, bias = (each.to(dtype) for each in scaled(layer.project, factor))
        sent = (groups @ weight.unflatten(1, shape).permute(1, 2, 0)).flatten(1, 2)
        out = torch.baddbmm(bias[None, :, None], sent.mT, shares.view(batch, heads * few, number))
    out = out.to(points.dtype)
    labels = chosen.labels if mask is None else chosen.labels.masked_fill(~mask, -1)
    parts = (each.unflatten(0, (batch, heads)) for each in (labels, similarity, counts))
    return out, FeatureClusters(groups.to(points.dtype), *parts)


def mix_any(
    x: Tensor, cells: Tensor, layer: MixingLayer, factor: Tensor | None, masks: tuple[Tensor | None, Tensor | None]
) -> tuple[Tensor, FeatureClusters]:
    """As :func:`mix_few`, step by step, for any number of centers and for ``'soft'``."""
    shape = (layer.heads, layer.head_dim)
    options: dict[str, Any] = {
        name: each[:, None].expand(-1, layer.heads, -1)
        for name, each in zip(('mask', 'center_mask'), masks)
        if each is not None
    }
    if layer.aggregate != 'soft':
        options['weighting'] = layer.aggregate
    sets = [
        linear_maps(each, *scaled(conv)).unflatten(1, shape).mT
        for each in (x, cells)
        for conv in (layer.features, layer.values)
    ]
    run = soft_cluster_encode if layer.aggregate == 'soft' else cluster_encode
    out, clusters = run(*sets, scale=layer.scale, shift=layer.shift, **options)
    weight, bias = scaled(layer.project, factor)
    return linear_maps(out.mT.flatten(1, 2), weight, bias), clusters


def _heads(x: Tensor, conv: nn.Conv2d, shape: tuple[int, int]) -> Tensor:
    """1x1 convolution of (B, C, N) as points of each head, (B heads, N, head_dim)."""
    return linear_maps(x, *scaled(conv)).unflatten(1, shape).flatten(0, 1).mT
