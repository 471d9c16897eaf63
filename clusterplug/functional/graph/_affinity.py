# SPDX-License-Identifier: Apache-2.0
"""Similarity graphs of a set of points: heat kernel or nearest neighbors, fixed or local width."""

import warnings

import torch
from torch import Tensor

from clusterplug.core.numerics import host_checks_allowed

# The neighbor whose distance is the local width (Zelnik-Manor and Perona, 2004).
_LOCAL_NEIGHBOR = 7


def affinity_matrix(
    distances: Tensor, affinity: str, sigma: float | str, num_neighbors: int | None, mask: Tensor | None
) -> Tensor:
    """Return the weights (B, N, N) of the graph over ``distances`` (B, N, N): symmetric, one on the diagonal.

    The weight of a pair is ``exp(-d^2 / (2 sigma^2))``, or ``exp(-d^2 / (s_i s_j))`` with s the distance to the
    seventh neighbor for ``sigma='local'``. ``'knn'`` keeps a pair when either point is among the
    ``num_neighbors`` nearest of the other (itself counted, points at the same distance kept together).
    Masked points have no edges, not even to themselves.
    """
    if mask is not None:
        pairs = mask[..., :, None] & mask[..., None, :]
        distances = distances.masked_fill(~pairs, torch.inf)
    num_points = distances.shape[-1]
    count = min(10, num_points) if num_neighbors is None else num_neighbors
    widest = min(_LOCAL_NEIGHBOR + 1, num_points)
    nearest = distances.topk(max(count, widest), -1, largest=False).values
    if isinstance(sigma, str):  # 'local'
        rate = 1 / _local_width(nearest[..., :widest])
        scaled = distances * rate[..., :, None]
        # symmetric bit for bit: eigenvalues closer than the rounding of fp32 are told apart in float64 later
        weights = (scaled * scaled.mT).neg_().exp_()
    else:
        weights = distances.square().mul_(-0.5 / sigma**2).exp_()
    if affinity == 'knn':
        far = distances > nearest[..., count - 1, None]
        weights = weights.masked_fill_(far & far.mT, 0)
    if mask is not None:
        weights = weights.masked_fill_(~pairs, 0)
    if host_checks_allowed(weights) and not isinstance(sigma, str):
        _warn_if_empty(weights, sigma)
    return weights


def _local_width(nearest: Tensor) -> Tensor:
    # A masked problem may hold fewer points: then the farthest one there is.
    width = nearest.masked_fill(nearest.isinf(), 0).amax(-1)
    # Points with seven duplicates have width 0: they keep to their duplicates. The square must not vanish.
    return width.clamp_min(torch.finfo(nearest.dtype).tiny ** 0.5)


def _warn_if_empty(weights: Tensor, sigma: float) -> None:
    if weights.shape[-1] < 2:
        return
    degree = weights.sum(-1)
    isolated = (degree > 0) & (degree < 1 + 1e-6)
    share = isolated.sum() / (degree > 0).sum().clamp_min(1)
    if share > 0.5:
        warnings.warn(
            f'sigma={sigma} is far below the distances: {share:.0%} of the points have no neighbor of weight above '
            f"1e-6, so the clusters are arbitrary; use sigma='local' or a sigma near the distance between neighbors",
            stacklevel=4,
        )


def normalized_adjacency(weights: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return ``D^-1/2 W D^-1/2`` (B, N, N), whose eigenvalues are 1 minus those of the Laplacian, and the degrees.

    Masked points get the eigenvalue -1, the smallest possible: never among the largest.
    """
    degree = weights.sum(-1)
    root = degree.clamp_min(torch.finfo(weights.dtype).tiny).rsqrt()
    adjacency = weights * root[..., :, None] * root[..., None, :]
    if mask is not None:
        diagonal = adjacency.diagonal(dim1=-2, dim2=-1)
        diagonal.copy_(torch.where(mask, diagonal, -1))
    return adjacency, degree
