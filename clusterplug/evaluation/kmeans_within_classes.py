# SPDX-License-Identifier: Apache-2.0
"""What k-means finds within each class: the yardstick for discovered subclasses."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.functional.kmeans import kmeans, nearest_center


def kmeans_within_classes(
    features: Tensor,
    classes: Tensor,
    num_classes: int,
    num_clusters: int,
    max_points: int = 20000,
    regions: Tensor | None = None,
) -> Tensor:
    """Group the points of each class by k-means on features of unit length.

    Args:
        features: (N, C).
        classes: (N,) integer class; points outside 0 .. num_classes - 1 are left out.
        num_classes: number of classes.
        num_clusters: K of each class.
        max_points: centers are fitted to at most so many random points of a class; all points go to their nearest.
        regions: (N,) integers: the points of a class in a region (an object) are grouped as one, by the mean of their
            features; below 0 = a point by itself. None: all points are.

    Returns:
        (N,) int64 cluster within the class, -1 for points left out and classes of fewer than K points (or
        regions). The same input gives the same result.

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
        x, member = features[mine].float(), None
        if regions is not None:
            x, member = means_of_regions(x, regions[mine])
        if len(x) < num_clusters:
            continue
        x = F.normalize(x, dim=1)
        random = torch.Generator().manual_seed(c)
        sample = x[torch.randperm(len(x), generator=random)[:max_points].to(x.device)]
        centers = kmeans(sample, num_clusters, num_iters=30, generator=random).centers
        found = nearest_center(x, centers)[0]
        ids[mine] = found if member is None else found[member]
    return ids


def means_of_regions(x: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Mean rows (R, C) of the regions (N,) of rows (N, C), and (N,) int64 row of each in them; below 0 = by itself."""
    alone = (1 << 62) + torch.arange(len(regions), device=regions.device)
    number, member = torch.where(regions < 0, alone, regions).unique(return_inverse=True)
    total = x.new_zeros(len(number), x.shape[1]).index_add_(0, member, x)
    return total / torch.bincount(member, minlength=len(number))[:, None], member
