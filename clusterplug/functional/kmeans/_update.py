# SPDX-License-Identifier: Apache-2.0
"""New centers from weighted sums, and what becomes of clusters that lost all their points."""

import torch
from torch import Tensor

# The fixed-iteration form, which may not ask whether a cluster is empty, relocates in its first and then in every
# eighth iteration: relocation costs three times the launches of the rest of an iteration.
RELOCATE_EVERY = 8


def beyond_rounding(distances: Tensor, points: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """Return squared distances (B, N) of points to their centers, 0 where they are rounding of the center.

    The center of n equal points is off by up to n eps of their norm, summed one after another. A cluster that took
    such a point would leave the next of them as far away, and so on without end.
    """
    eps = torch.finfo(points.dtype).eps
    counts = torch.zeros(len(points), num_clusters, dtype=points.dtype, device=points.device)
    counts = counts.scatter_add(1, labels, torch.ones_like(distances)).gather(1, labels)
    error = (eps * (8 + counts)).clamp(max=1e-3 if points.dtype == torch.float32 else 1e-6)
    least = (error * torch.linalg.vector_norm(points, dim=-1)).square()
    return torch.where(distances > least, distances, 0.0)


def averages(sums: Tensor, mass: Tensor) -> Tensor:
    """Return sums (B, K, D) / mass (B, K); a cluster without mass gets the average of the heaviest cluster."""
    empty = (mass <= 0).unsqueeze(-1)
    means = sums / torch.where(empty, 1.0, mass.unsqueeze(-1))
    heaviest = mass.argmax(-1).view(-1, 1, 1).expand(-1, 1, sums.shape[-1])
    return torch.where(empty, means.gather(1, heaviest), means)


def relocate(
    sums: Tensor, mass: Tensor, points: Tensor, weights: Tensor | None, labels: Tensor, distances: Tensor
) -> tuple[Tensor, Tensor]:
    """Give every cluster without mass the farthest point that is left, taking it out of the cluster that had it.

    The e-th empty cluster (by index) takes the e-th farthest point. Points at distance 0 stay: with fewer different
    points than clusters there is nothing to gain. Static shapes, no synchronization.

    Args:
        sums: (B, K, D) weighted sums; zero rows for empty clusters.
        mass: (B, K) sums of weights.
        points: (B, N, D).
        weights: (B, N), None = 1.
        labels: (B, N) int64, the assignment that the sums were made from.
        distances: (B, N) squared distance of each point to its center before the update, 0 for points that must not
            be taken.

    Returns:
        New sums and mass.

    Source: the rule of scikit-learn's Lloyd iteration. **Differs**: ties and order among several are fixed, points
    at distance 0 stay.
    """
    dim, num_clusters = sums.shape[-1], sums.shape[-2]
    empty = mass <= 0
    candidates = distances.topk(min(num_clusters, distances.shape[-1]), dim=-1)
    rank = (empty.cumsum(-1) - empty.long()).clamp(max=candidates.indices.shape[-1] - 1)
    point = candidates.indices.gather(-1, rank)
    gain = (empty & (candidates.values.gather(-1, rank) > 0)).to(sums.dtype)
    if weights is not None:
        gain = gain * weights.gather(-1, point)
    donor = labels.gather(-1, point)
    moved = points.gather(1, point.unsqueeze(-1).expand(-1, -1, dim)).to(sums.dtype) * gain.unsqueeze(-1)
    sums = (sums + moved).scatter_add(1, donor.unsqueeze(-1).expand(-1, -1, dim), -moved)
    mass = (mass + gain).scatter_add(1, donor, -gain)
    return sums, mass
