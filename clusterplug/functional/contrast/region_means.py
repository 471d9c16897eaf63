# SPDX-License-Identifier: Apache-2.0
"""Means over regions of rows (objects, cells), for those regions alone that have an anchor."""

from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.constants import arange


class RegionMeans(NamedTuple):
    """What :func:`region_means` returns, for A anchors.

    Attributes:
        means: (A, C) mean of the finite rows of the anchor's region; its own row where it has no region.
        first: (A,) bool, the first anchor of its region.
        leader: (A,) int64, that first anchor; the anchor itself where it has no region.
    """

    means: Tensor
    first: Tensor
    leader: Tensor


@torch.no_grad()
def region_means(
    features: Tensor, regions: Tensor, anchors: Tensor, valid: Tensor, feature_rows: Tensor | None = None
) -> RegionMeans:
    """Mean feature of the region of each anchor, over all rows of the region. No host synchronization, no gradient.

    Args:
        features: (M, C) floating.
        regions: (N,) int64 region of each label row; below 0 = a region of its own.
        anchors: (A,) int64 label rows.
        valid: (A,) bool; the others are regions of their own.
        feature_rows: (N,) int64 row of the features of each label row; None: N = M, the same rows.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> x = torch.tensor([[1.0], [3.0], [5.0], [9.0]])
        >>> found = region_means(x, torch.tensor([7, 7, -1, 7]), torch.tensor([1, 2, 3]), torch.ones(3).bool())
        >>> found.means.squeeze(1).tolist(), found.first.tolist(), found.leader.tolist()
        ([4.333333492279053, 5.0, 4.333333492279053], [True, True, False], [0, 1, 0])
    """
    rows = regions.shape[0]
    if regions.dim() != 1 or anchors.dim() != 1 or valid.shape != anchors.shape or features.dim() != 2:
        raise ValueError(
            f'regions must be (N,), anchors and valid (A,), features (M, C), got {tuple(regions.shape)}, '
            f'{tuple(anchors.shape)}, {tuple(valid.shape)}, {tuple(features.shape)}'
        )
    if (feature_rows is None and features.shape[0] != rows) or (
        feature_rows is not None and feature_rows.shape[0] != rows
    ):
        raise ValueError(
            f'regions must have one entry for each label row, got {rows} for {features.shape[0]} features'
            + ('' if feature_rows is None else f' and {feature_rows.shape[0]} feature_rows')
        )
    number = arange(anchors.shape[0], anchors.device)
    ids = torch.where(valid, regions[anchors], -1)
    alone = ids < 0
    ids = torch.where(alone, -1 - number, ids)  # a number of its own
    keys, order = ids.sort(stable=True)
    leader = order[torch.searchsorted(keys, ids)]
    # each row to the first anchor of its region, rows of other regions behind all anchors
    place = torch.searchsorted(keys, regions).clamp_max_(max(anchors.shape[0] - 1, 0))
    values = features if feature_rows is None else features[feature_rows]
    clean = values.float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    member = (keys[place] == regions) & (regions >= 0) & (clean == values).all(1)
    target = torch.where(member, order[place], anchors.shape[0])
    sums = clean.new_zeros(anchors.shape[0] + 1, features.shape[1]).index_add_(0, target, clean)
    counts = clean.new_zeros(anchors.shape[0] + 1).index_add_(0, target, member.to(clean.dtype))
    own = clean[anchors]
    means = torch.where((counts[:-1] > 0)[:, None], sums[:-1] / counts[:-1, None].clamp(min=1), own)
    return RegionMeans(means[leader], leader == number, leader)
