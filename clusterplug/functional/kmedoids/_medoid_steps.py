# SPDX-License-Identifier: Apache-2.0
"""The steps that every k-medoids form shares: start, assignment, update, results. All problems at once."""

from typing import NamedTuple

import torch
from torch import Tensor

# Distances held at once: 64 MB on a CPU, 1 GB on an accelerator, where small pieces would only add launches.
_ELEMENTS_ON_CPU = 2**24
_ELEMENTS_ELSEWHERE = 2**28


class KMedoidsResult(NamedTuple):
    """Labels and medoids of a batch of problems.

    Attributes:
        labels: (..., N) int64, the cluster of each point; -1 where the mask is False.
        medoids: (..., K) int64, the index of each cluster's medoid among the N points; -1 for the clusters that a
            problem with fewer than K valid points cannot fill.
        cost: (...) sum of the distances of the valid points to their medoids; fp32, or fp64 for fp64 input.
        num_iters: (...) int64, rounds of assignment and update that were run.
    """

    labels: Tensor
    medoids: Tensor
    cost: Tensor
    num_iters: Tensor


def problems_at_once(num_problems: int, num_points: int, device: torch.device) -> int:
    """Return how many problems of N x N distances to hold at once."""
    budget = _ELEMENTS_ON_CPU if device.type == 'cpu' else _ELEMENTS_ELSEWHERE
    return max(1, min(num_problems, budget // num_points**2))


def rows(distances: Tensor, index: Tensor) -> Tensor:
    """Return the rows ``index`` (B, K) of ``distances`` (B, N, N): (B, K, N)."""
    num_problems, num_points, _ = distances.shape
    offset = torch.arange(num_problems, device=index.device)[:, None] * num_points
    return distances.flatten(0, 1).index_select(0, (index + offset).flatten()).view(*index.shape, num_points)


def filled_clusters(num_clusters: int, mask: Tensor | None) -> Tensor | None:
    """Return (B, K) bool, True for the clusters that the valid points can fill; None when all can."""
    if mask is None:
        return None
    return torch.arange(num_clusters, device=mask.device) < mask.sum(-1, keepdim=True)


def farthest_first(distances: Tensor, first_scores: Tensor, num_clusters: int, mask: Tensor | None) -> Tensor:
    """Choose medoids one after another, each the point farthest from those chosen before (KKZ).

    Args:
        distances: (B, N, N).
        first_scores: (B, N); the first medoid is the valid point with the largest score.
        num_clusters: K.
        mask: (B, N) bool or None.

    Returns:
        (B, K) int64. All different while valid points last; after that arbitrary.
    """
    if mask is not None:
        first_scores = first_scores.masked_fill(~mask, -torch.inf)
    newest = first_scores.argmax(-1, keepdim=True)
    # one tensor: small ones of each step would keep the memory between them from being used again
    chosen = newest.repeat(1, num_clusters)
    near = torch.full_like(first_scores, torch.inf)
    if mask is not None:
        near = near.masked_fill(~mask, -torch.inf)
    for step in range(1, num_clusters):
        near = torch.minimum(near, rows(distances, newest).squeeze(1)).scatter(1, newest, -torch.inf)
        newest = near.argmax(-1, keepdim=True)
        chosen[:, step : step + 1] = newest
    return chosen


def assign(distances: Tensor, medoids: Tensor, mask: Tensor | None, filled: Tensor | None) -> tuple[Tensor, Tensor]:
    """Assign each point to its nearest medoid (ties: the first), a medoid to itself.

    Returns:
        Distances to the medoid (B, N), zero for masked points, and labels (B, N), K for masked points.
    """
    num_clusters = medoids.shape[-1]
    to_medoids = rows(distances, medoids)
    if filled is not None:
        to_medoids.masked_fill_(~filled[..., None], torch.inf)
    nearest, labels = to_medoids.min(-2)
    own = torch.arange(num_clusters, device=labels.device).expand_as(medoids)
    if mask is None or filled is None:  # given together
        return nearest, labels.scatter(-1, medoids, own)
    # Surplus medoids point anywhere, even at a true one: they write K, which the smallest label beats.
    own = own.masked_fill(~filled, num_clusters)
    claimed = torch.full_like(labels, num_clusters).scatter_reduce(-1, medoids, own, 'amin')
    labels = torch.where(claimed < num_clusters, claimed, labels)
    return nearest.masked_fill(~mask, 0), labels.masked_fill(~mask, num_clusters)


def update(distances: Tensor, labels: Tensor, num_clusters: int, masked: bool) -> Tensor:
    """Return the member of each cluster with the smallest sum of distances to the cluster (ties: the first).

    The sums come from one product with the one-hot labels: N^2 + N K numbers instead of the K N^2 of a masked copy
    for each cluster.
    """
    num_problems, num_points, _ = distances.shape
    num_segments = num_clusters + masked
    one_hot = distances.new_zeros((num_problems, num_points, num_segments)).scatter_(-1, labels[..., None], 1)
    sums = (distances @ one_hot).gather(-1, labels[..., None]).squeeze(-1)
    lowest = sums.new_full((num_problems, num_segments), torch.inf).scatter_reduce(-1, labels, sums, 'amin')
    index = torch.arange(num_points, device=labels.device).expand_as(labels)
    index = index.masked_fill(sums > lowest.gather(-1, labels), num_points)
    medoids = index.new_full((num_problems, num_segments), num_points).scatter_reduce(-1, labels, index, 'amin')
    return medoids[:, :num_clusters].clamp_max(num_points - 1)


def finish(distances: Tensor, medoids: Tensor, mask: Tensor | None, sort: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the medoids if asked, assign once more, and mark what does not exist with -1.

    Returns:
        Labels (B, N), medoids (B, K), cost (B,).
    """
    num_points, num_clusters = distances.shape[-1], medoids.shape[-1]
    filled = filled_clusters(num_clusters, mask)
    if filled is not None:
        medoids = medoids.masked_fill(~filled, num_points)
    if sort:
        medoids = medoids.sort(-1).values
    nearest, labels = assign(distances, medoids.clamp_max(num_points - 1), mask, filled)
    if mask is not None:
        labels = labels.masked_fill(~mask, -1)
        medoids = medoids.masked_fill(medoids == num_points, -1)
    return labels, medoids, nearest.sum(-1)
