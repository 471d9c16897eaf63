# SPDX-License-Identifier: Apache-2.0
"""Labels of labels: where a point ends after several rounds of clustering."""

from collections.abc import Sequence

import torch
from torch import Tensor


def compose_labels(labels: Sequence[Tensor]) -> Tensor:
    """Follow points through rounds of clustering, each over the clusters of the one before.

    Args:
        labels: (B, N_1), (B, N_2), ... int64; a label of one round is the place of a point of the next, below 0 =
            left out.

    Returns:
        (B, N_1) int64: cluster of the last round; -1 for points that were left out on the way.

    Raises:
        ValueError: No labels, or shapes that do not fit.

    Example:
        >>> compose_labels([torch.tensor([[0, 1, 2, 2]]), torch.tensor([[1, 1, 0]])]).tolist()
        [[1, 1, 0, 0]]
    """
    if not len(labels):
        raise ValueError('labels must hold at least one round, got none')
    for number, each in enumerate(labels):
        if each.dim() != 2 or len(each) != len(labels[0]):
            raise ValueError(f'labels {number} must have shape ({len(labels[0])}, N), got {tuple(each.shape)}')
    places = labels[0]
    for each in labels[1:]:
        places = torch.where(places < 0, -1, each.gather(1, places.clamp_min(0)))
    return places.clamp_min(-1)
