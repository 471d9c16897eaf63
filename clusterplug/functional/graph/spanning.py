# SPDX-License-Identifier: Apache-2.0
"""Width of a heat kernel from the longest edge of the minimum spanning tree."""

import math

import torch
from torch import Tensor

from clusterplug.core.checks import check_finite, check_number, check_points
from clusterplug.core.numerics import no_autocast, working_dtype
from clusterplug.functional.distance import pairwise_distances

__all__ = ['minimum_spanning_scale']


@torch.no_grad()
def minimum_spanning_scale(x: Tensor, similarity: float) -> Tensor:
    r"""Return the width of a heat kernel in which the graph of the points just stays connected.

    .. math:: \sigma = e_\max / \sqrt{-2 \ln s}, \qquad \text{so that} \quad \exp(-e_\max^2 / (2 \sigma^2)) = s

    with :math:`e_\max` the longest edge of the minimum spanning tree. Scaling the points scales sigma, so the kernel
    stays the same. The tree grows by one point a step (Prim), from one row of distances at a time: O(N D) memory.

    Args:
        x: (..., N, D), floating, N >= 2; repeated points are edges of length 0.
        similarity: s, the kernel value of the longest edge, in (0, 1).

    Returns:
        sigma (...,) in fp32 (float64 for float64). 0 where all points are equal: no width connects more than they are.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: Fewer than two points, ``similarity`` outside (0, 1), NaN or inf.

    Source: Troisemaine et al., "A Practical Approach to Novel Class Discovery in Tabular Data", 2024, arXiv
    2311.05440; official code ColinTr/PracticalNCD (MIT). **Differs from the authors' code**: theirs computes
    sigma = e / sqrt(-ln s) and then uses exp(-d^2 / (2 sigma^2)), so that the longest edge gets sqrt(s): their
    ``min_dist`` is our ``similarity`` squared. Repeated points are not dropped; no N x N matrix.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [4.0]])
        >>> sigma = minimum_spanning_scale(x, 0.5)
        >>> round(float((-(3.0**2) / (2 * sigma**2)).exp()), 4)
        0.5
    """
    check_points(x)
    similarity = check_number(similarity, 'similarity', above=0, hint='it must be below 1, the value at distance 0')
    if similarity >= 1:
        raise ValueError(f'similarity must be in (0, 1), got {similarity}')
    if x.shape[-2] < 2:
        raise ValueError(f'x must hold at least 2 points, got shape {tuple(x.shape)}')
    check_finite(x)
    flat = x.detach().reshape(math.prod(x.shape[:-2]), *x.shape[-2:]).to(working_dtype(x.dtype))
    with no_autocast(x):
        longest = _longest_edge(flat)
    return (longest / math.sqrt(-2 * math.log(similarity))).view(x.shape[:-2])


def _longest_edge(x: Tensor) -> Tensor:
    """Return the longest edge of the minimum spanning tree of each problem (B, N, D)."""
    batch, num_points, dim = x.shape
    newest = torch.zeros(batch, 1, dtype=torch.int64, device=x.device)
    distance = torch.full((batch, num_points), math.inf, dtype=x.dtype, device=x.device)
    inside = torch.zeros(batch, num_points, dtype=torch.bool, device=x.device)
    longest = x.new_zeros(batch)
    for _ in range(num_points - 1):
        inside.scatter_(1, newest, True)
        point = x.gather(1, newest.unsqueeze(-1).expand(-1, -1, dim))
        distance = torch.minimum(distance, pairwise_distances(point, x).squeeze(1)).masked_fill_(inside, math.inf)
        edge, newest = distance.min(1, keepdim=True)
        longest = torch.maximum(longest, edge.squeeze(1))
    return longest
