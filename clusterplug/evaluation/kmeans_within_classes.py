# SPDX-License-Identifier: Apache-2.0
"""What k-means finds within each class: the yardstick for discovered subclasses."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.functional.kmeans import kmeans, nearest_center


def kmeans_within_classes(
    features: Tensor, classes: Tensor, num_classes: int, num_clusters: int, max_points: int = 20000
) -> Tensor:
    """Group the points of each class by k-means on features of unit length.

    Args:
        features: (N, C).
        classes: (N,) integer class; points outside 0 .. num_classes - 1 are left out.
        num_classes: number of classes.
        num_clusters: K of each class.
        max_points: centers are fitted to at most so many random points of a class; all points go to their nearest.

    Returns:
        (N,) int64 cluster within the class, -1 for points left out and classes of fewer than K points. The same input
        gives the same result.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.0], [0.0, 1.0]])
        >>> ids = kmeans_within_classes(x, torch.zeros(3, dtype=torch.long), num_classes=1, num_clusters=2)
        >>> bool(ids[0] == ids[1]), bool(ids[0] == ids[2])
        (True, False)
    """
    if features.dim() != 2 or classes.shape != features.shape[:1]:
        raise ValueError(
            f'features must be (N, C) and classes (N,), got {tuple(features.shape)} and {tuple(classes.shape)}'
        )
    ids = torch.full_like(classes, -1, dtype=torch.int64)
    for c in range(num_classes):
        mine = (classes == c).nonzero()[:, 0]
        if len(mine) < num_clusters:
            continue
        x = F.normalize(features[mine].float(), dim=1)
        random = torch.Generator().manual_seed(c)
        sample = x[torch.randperm(len(x), generator=random)[:max_points].to(x.device)]
        centers = kmeans(sample, num_clusters, num_iters=30, generator=random).centers
        ids[mine] = nearest_center(x, centers)[0]
    return ids
