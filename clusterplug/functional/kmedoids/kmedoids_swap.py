# SPDX-License-Identifier: Apache-2.0
"""Batched k-medoids by swaps: the quality of PAM, a block of candidates at a time."""

import math

import torch
from torch import Tensor

from clusterplug.core.checks import check_finite, check_mask, check_num_clusters, check_points
from clusterplug.core.numerics import exact_products
from clusterplug.functional.distance import check_metric, check_square, self_distances
from clusterplug.functional.kmedoids._medoid_steps import (
    KMedoidsResult,
    farthest_first,
    filled_clusters,
    finish,
    problems_at_once,
    rows,
)
from clusterplug.functional.kmedoids.kmedoids import alternate, check_indices, check_init, start_scores

# Candidates tried together. One matrix product serves a block, and one swap per block and problem is done.
_CANDIDATES = 64

# A swap must gain more than rounding, or equal costs would be swapped for ever.
_SMALLEST_GAIN = 1e-6


@torch.no_grad()
def kmedoids_swap(
    x: Tensor,
    num_clusters: int,
    *,
    metric: str = 'euclidean',
    init: str | Tensor = 'kkz',
    num_passes: int = 100,
    sort: bool = True,
    mask: Tensor | None = None,
) -> KMedoidsResult:
    r"""Cluster each set of points around K of its own points, trying every swap of a medoid for another point.

    :func:`kmedoids` runs first; its medoids are a fixed point of assignment and update, on standardized rows 1.5 to 8 %
    above what swaps reach. Then, for each candidate c and each medoid m, the change of the cost when c replaces m is

    .. math:: \Delta(c, m) = \sum_n [\min(d_{nc}, d_n) - d_n]
                             + \sum_{n: m(n) = m} [\min(d_{nc}, e_n) - \min(d_{nc}, d_n)]

    with :math:`d_n, e_n` the distances of point n to its nearest and second nearest medoid. Candidates come in blocks
    of 64: one product with the one-hot assignment gives the changes of a block, its best swap is done at once, and
    the next block starts from the new medoids. The end is reached when a whole pass finds no gain: no single swap
    lowers the cost. Nothing is random.

    Args:
        x: (..., N, D) points, or (..., N, N) distances with ``metric='precomputed'``.
        num_clusters: K, 1 <= K <= N.
        metric: ``'euclidean'``, ``'cosine'`` or ``'precomputed'``.
        init: ``'kkz'`` or (..., K) int64 indices, where the alternation starts.
        num_passes: Most passes over all candidates. Each pass waits for the device once.
        sort: Number the clusters in the order of their medoids.
        mask: (..., N) bool, True = valid.

    Returns:
        KMedoidsResult as :func:`kmedoids`; ``num_iters`` counts the passes.

    Raises:
        TypeError, ValueError: As :func:`kmedoids`.

    Source:
        Schubert and Rousseeuw, "Fast and eager k-medoids clustering", Information Systems 2021 (the change of the
        cost for all medoids at once; swapping eagerly).

        **Differs from the authors' code** (kno10/rust-kmedoids, GPL-3.0, not consulted): a block of candidates is
        tried together instead of one, in index order instead of a random one, and many problems run together. The
        end point is a local optimum of the same neighborhood, not always the same one.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [15.0]])
        >>> kmedoids_swap(x, 2).cost.item()
        7.0
    """
    check_metric(metric)
    check_points(x)
    check_square(x, metric)
    check_mask(mask, x.shape[:-1], x.device)
    check_num_clusters(num_clusters, x.shape[-2])
    check_init(init, x, num_clusters)
    check_finite(x, mask=mask)
    check_indices(init, mask, num_points=x.shape[-2])
    batch_shape, num_points = x.shape[:-2], x.shape[-2]
    points = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
    masks = None if mask is None else mask.reshape(len(points), num_points)
    starts = None if isinstance(init, str) else init.reshape(-1, num_clusters)
    step = problems_at_once(len(points), num_points, x.device)
    parts = []
    with exact_products(x):
        for first in range(0, max(1, len(points)), step):  # an empty batch, too, is one part
            part = slice(first, first + step)
            part_mask = None if masks is None else masks[part]
            distances = self_distances(points[part], metric, part_mask)
            if starts is None:
                scores = start_scores(points[part], distances, metric, part_mask)
                medoids = farthest_first(distances, scores, num_clusters, part_mask)
            else:
                medoids = starts[part]
            _, medoids, _, _ = alternate(distances, medoids, 100, 1e-6, False, part_mask)
            medoids, passes = _swap(distances, medoids.clamp_min(0), num_passes, part_mask)
            parts.append((*finish(distances, medoids, part_mask, sort), passes))
    joined = [torch.cat(values) for values in zip(*parts)]
    return KMedoidsResult(*(value.reshape((*batch_shape, *value.shape[1:])) for value in joined))


def _swap(distances: Tensor, medoids: Tensor, num_passes: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Swap until a pass brings nothing; problems that are done are left out of later passes."""
    num_points = distances.shape[-1]
    filled = filled_clusters(medoids.shape[-1], mask)
    final, passes = medoids.clone(), medoids.new_zeros(len(medoids))
    active = torch.arange(len(medoids), device=medoids.device)
    going = torch.ones_like(active, dtype=torch.bool)
    for _ in range(num_passes):
        gained = torch.zeros_like(going)
        for start in range(0, num_points, _CANDIDATES):
            stop = min(start + _CANDIDATES, num_points)
            medoids, better = _best_swap(distances, medoids, start, stop, mask, filled)
            gained |= better
        # A problem without a gain stays as it is in later passes too.
        final[active] = medoids
        passes[active] += going
        going = gained
        keep = going.nonzero().flatten()
        if len(keep) == 0:
            break
        if 2 * len(keep) <= len(active):
            active, distances, medoids, going = active[keep], distances[keep], medoids[keep], going[keep]
            mask = None if mask is None else mask[keep]
            filled = None if filled is None else filled[keep]
    return final, passes


def _best_swap(
    distances: Tensor, medoids: Tensor, start: int, stop: int, mask: Tensor | None, filled: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Do the best swap with a candidate in [start, stop) where it gains; return medoids and whether it gained."""
    nearest, second, owner = _two_nearest(distances, medoids, filled)
    if mask is not None:
        nearest, second = nearest.masked_fill(~mask, 0), second.masked_fill(~mask, 0)
    to_candidates = distances[:, start:stop]
    one_hot = distances.new_zeros((*nearest.shape, medoids.shape[-1])).scatter_(-1, owner[..., None], 1)
    # min(d_c, e) - min(d_c, d) of each point is d_c held between d and e, minus d
    held = torch.clamp(to_candidates, nearest[:, None], second[:, None])
    change = (held @ one_hot).sub_(nearest[:, None] @ one_hot)
    change += torch.sub(to_candidates, nearest[:, None], out=held).clamp_max_(0).sum(-1, keepdim=True)
    excluded = torch.zeros_like(nearest, dtype=torch.bool).scatter_(-1, medoids, True)
    if mask is not None and filled is not None:  # given together
        excluded |= ~mask
        change = change.masked_fill(~filled[:, None], torch.inf)
    change = change.masked_fill(excluded[:, start:stop, None], torch.inf)
    # first the best medoid of each candidate, then the best candidate: a minimum over all with its index is slow
    lowest, candidate = change.amin(-1).min(-1, keepdim=True)
    place = change.gather(1, candidate[..., None].expand(-1, -1, medoids.shape[-1])).squeeze(1).argmin(-1, keepdim=True)
    better = lowest < -_SMALLEST_GAIN * nearest.sum(-1, keepdim=True)
    candidate = torch.where(better, candidate + start, medoids.gather(-1, place))
    return medoids.scatter(-1, place, candidate), better.squeeze(-1)


def _two_nearest(distances: Tensor, medoids: Tensor, filled: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return each point's distances to its nearest and second nearest medoid, and the nearest one's place."""
    to_medoids = rows(distances, medoids)
    if filled is not None:
        to_medoids.masked_fill_(~filled[..., None], torch.inf)
    nearest, owner = to_medoids.min(-2)
    second = to_medoids.scatter_(-2, owner[..., None, :], torch.inf).amin(-2)
    return nearest, second, owner
