# SPDX-License-Identifier: Apache-2.0
"""Mini-batch k-means: centers of data larger than memory, one batch at a time, over ranks if need be."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_device, check_finite, check_mask, check_num_clusters, check_points
from clusterplug.core.distributed import sum_over_ranks
from clusterplug.core.numerics import exact_products, host_checks_allowed, working_dtype
from clusterplug.core.origin import typical_origin, typical_rows
from clusterplug.functional.kmeans._assign import blocks, nearest, squared_distances_to
from clusterplug.functional.kmeans._points import is_extreme
from clusterplug.functional.kmeans.kmeans_init import flat_weights, kkz, kmeans_plus_plus

__all__ = ['MiniBatchKMeansState', 'MiniBatchKMeansStep', 'minibatch_kmeans_start', 'minibatch_kmeans_update']

# Points per center after which rare centers are moved, as in scikit-learn.
POINTS_BETWEEN_MOVES = 10


class MiniBatchKMeansState(NamedTuple):
    """Centers and what they rest on; a pytree of tensors and ints, ready for ``torch.save``."""

    centers: Tensor  # (..., K, D) fp32 or float64
    counts: Tensor  # (..., K) float64, sum of the weights seen by each center
    num_points: int  # points since rare centers were last moved
    num_steps: int  # updates so far


class MiniBatchKMeansStep(NamedTuple):
    """What an update returns: the next state, and how the batch fared with the centers before it."""

    state: MiniBatchKMeansState
    labels: Tensor  # (..., N) int64, -1 where masked
    inertia: Tensor  # (...,) sum of weight x squared distance in this batch (of all ranks)


def minibatch_kmeans_start(
    x: Tensor,
    num_clusters: int,
    *,
    init: str | Tensor = 'k-means++',
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> MiniBatchKMeansState:
    """Return the state to start from: centers chosen in a first batch, that have seen nothing yet.

    Over ranks all must start from the same centers: choose them on one and broadcast, or give them as ``init``.

    Args:
        x: (..., N, D), floating, N >= K: a first batch; a few hundred points per center are plenty.
        num_clusters: K.
        init: 'k-means++', 'kkz', or centers (..., K, D).
        mask: (..., N) bool, True = valid.
        weights: (..., N) non-negative; None = 1.
        generator: Random numbers of 'k-means++'.

    Returns:
        ``MiniBatchKMeansState`` with counts 0.

    Raises:
        TypeError, ValueError: As ``kmeans_plus_plus``; an unknown ``init``; NaN or inf in a valid point (on the CPU).

    Source: Sculley, "Web-scale k-means clustering", WWW 2010.

    Example:
        >>> data = torch.tensor([[0.0], [0.1], [9.0], [9.1]])
        >>> state = minibatch_kmeans_start(data, 2, init='kkz')
        >>> for batch in (data, data[[0, 2]]):
        ...     state = minibatch_kmeans_update(state, batch).state
        >>> state.counts
        tensor([3., 3.], dtype=torch.float64)
    """
    check_points(x)
    check_num_clusters(num_clusters, x.shape[-2])
    check_mask(mask, x.shape[:-1], x.device)
    if host_checks_allowed(x):
        check_finite(x, 'x', mask)
    if isinstance(init, Tensor):
        check_points(init, 'init')
        check_device(init, x.device, 'init')
        if tuple(init.shape) != (*x.shape[:-2], num_clusters, x.shape[-1]):
            expected = (*x.shape[:-2], num_clusters, x.shape[-1])
            raise ValueError(f'init must have shape {expected}, got {tuple(init.shape)}')
        centers = init.detach().clone()
    elif init == 'k-means++':
        index = kmeans_plus_plus(x, num_clusters, mask=mask, weights=weights, generator=generator)
        centers = x.detach().gather(-2, index.unsqueeze(-1).expand(*index.shape, x.shape[-1]))
    elif init == 'kkz':
        index = kkz(x, num_clusters, mask=mask)
        centers = x.detach().gather(-2, index.unsqueeze(-1).expand(*index.shape, x.shape[-1]))
    else:
        raise ValueError(f"init must be 'k-means++', 'kkz' or a tensor of centers, got {init!r}")
    counts = torch.zeros(centers.shape[:-1], dtype=torch.float64, device=x.device)
    return MiniBatchKMeansState(centers.to(working_dtype(x.dtype)), counts, 0, 0)


def minibatch_kmeans_update(
    state: MiniBatchKMeansState,
    x: Tensor,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    move_ratio: float | None = 0.01,
    group=None,
    generator: torch.Generator | None = None,
) -> MiniBatchKMeansStep:
    r"""Move the centers by one batch.

    .. math:: n_k \leftarrow n_k + \sum_{l_i = k} w_i, \qquad
              c_k \leftarrow c_k + \frac{1}{n_k} \sum_{l_i = k} w_i (x_i - c_k) .

    Every center is thus the mean of all points it was ever given. A center that has seen nothing, and every 10 K
    points one that has seen less than ``move_ratio`` of what the busiest center has, moves to a point of the batch
    and takes over the smallest count of the others: to a point far from all centers, or with ``generator`` to one
    drawn at random. Off the CPU the host reads nothing, except with ``group`` once in a call: the number of points on
    all ranks.

    Args:
        state: From ``minibatch_kmeans_start`` or the last update.
        x: (..., N, D), floating, with the batch shape, D and device of the centers. N may be smaller than K. With
            ``group`` it may be 0.
        mask: (..., N) bool, True = valid.
        weights: (..., N) non-negative; None = 1.
        move_ratio: Share of the largest count below which a center counts as rare; 0 = only unseen centers move,
            None = none does.
        group: torch.distributed group whose ranks each hold a part of the batch; the result is that of one process
            with the whole batch. Every rank must make the same calls.
        generator: Rare centers move to points drawn from the batch without replacement, each valid point of positive
            weight alike: outliers, which the farthest points are first of all, then take no more centers than their
            share. None = to the farthest points, without random numbers.

    Returns:
        ``MiniBatchKMeansStep(state, labels, inertia)``; labels and inertia are for the centers before the update.

    Raises:
        TypeError: ``x`` not floating, ``mask`` not bool.
        ValueError: Shapes or devices that do not fit the state, negative weights or ``move_ratio``; on the CPU NaN or
            inf in a valid point, and float64 points whose squares leave their type.

    Source: Sculley, "Web-scale k-means clustering", WWW 2010. **Differs from scikit-learn's ``MiniBatchKMeans``**:
    without ``generator`` rare centers move to far points, so a run is deterministic.

    Example:
        >>> state = MiniBatchKMeansState(torch.tensor([[0.0], [10.0]]), torch.ones(2).double(), 0, 1)
        >>> step = minibatch_kmeans_update(state, torch.tensor([[2.0], [3.0], [10.0]]))
        >>> step.state.centers, step.labels
        (tensor([[ 1.6667],
                [10.0000]]), tensor([0, 0, 1]))
    """
    _check(state, x, mask, move_ratio, group)
    lead, (num_points, dim) = x.shape[:-2], x.shape[-2:]
    num_clusters = state.centers.shape[-2]
    dtype = working_dtype(state.centers.dtype)
    weight = flat_weights(x, mask, weights)
    valid = None if mask is None else mask.reshape(math.prod(lead), num_points)
    with torch.no_grad(), exact_products(x):
        centers = state.centers.to(dtype).reshape(-1, num_clusters, dim)
        points = x.detach().reshape(len(centers), num_points, dim).to(dtype)
        if valid is not None:
            points = torch.where(valid.unsqueeze(-1), points, 0.0)
        if host_checks_allowed(x) and (is_extreme(points) or is_extreme(centers)):
            if dtype == torch.float64:
                raise ValueError('squares of x and the centers must fit float64; divide both by their largest entry')
            points, centers = points.double(), centers.double()  # every square of fp32 fits
        # amid most centers, not their mean, which one far center moves away from all others; equal on all ranks
        offset = typical_origin(typical_rows(centers))
        rounding = _rounding(points, dtype)
        points = points - offset
        if valid is not None:
            points = torch.where(valid.unsqueeze(-1), points, 0.0)
        labels = nearest(points, centers - offset)
        distances = squared_distances_to(points, centers - offset, labels)
        centers = centers.double() - offset.double()  # to the last bit the same on ranks of other points
        weight = None if weight is None else weight.to(points.dtype)
        weighted = distances if weight is None else distances * weight
        inertia = sum_over_ranks(weighted.sum(-1, dtype=torch.float64), group)
        sums, mass = _sums(points, weight, labels, num_clusters)
        if group is not None:
            both = sum_over_ranks(torch.cat([sums, mass.unsqueeze(-1)], -1), group)
            sums, mass = both[..., :-1], both[..., -1]
        counts = state.counts.reshape(-1, num_clusters) + mass
        step = (sums - mass.unsqueeze(-1) * centers) / counts.clamp(min=torch.finfo(torch.float64).tiny).unsqueeze(-1)
        centers = centers + step
        seen = state.num_points + _num_points(num_points, x, group)
        due = seen >= POINTS_BETWEEN_MOVES * num_clusters
        if move_ratio is not None and _may_move(counts, move_ratio * due):
            keys = distances * (distances > rounding) if generator is None else _random_keys(distances, generator)
            keys = keys if weight is None else keys * (weight > 0)
            centers, counts = _move_rare(centers, counts, points, keys, move_ratio * due, group)
    if valid is not None:
        labels = labels.masked_fill(~valid, -1)
    centers = (centers + offset.double()).to(dtype).view(state.centers.shape)
    counts = counts.view(state.counts.shape)
    following = MiniBatchKMeansState(centers, counts, 0 if due else seen, state.num_steps + 1)
    return MiniBatchKMeansStep(following, labels.view(*lead, num_points), inertia.to(dtype).view(lead))


def _sums(points: Tensor, weights: Tensor | None, labels: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """Return float64 weighted sums (B, K, D) and masses (B, K).

    On accelerators by products with the 0/1 matrix, block by block, in an order that does not change.
    """
    batch, num_points, dim = points.shape
    if host_checks_allowed(points):
        return _host_sums(points, weights, labels, num_clusters)
    sums = points.new_zeros(batch, num_clusters, dim, dtype=torch.float64)
    mass = points.new_zeros(batch, num_clusters, dtype=torch.float64)
    ranks = torch.arange(num_clusters, device=points.device)
    for part in blocks(num_points, batch * (num_clusters + dim) * points.element_size(), points.device):
        chosen = (labels[:, part].unsqueeze(-1) == ranks).to(points.dtype)
        chosen = chosen if weights is None else chosen * weights[:, part].unsqueeze(-1)
        sums += chosen.mT @ points[:, part]
        mass += chosen.sum(1)
    return sums, mass


def _host_sums(points: Tensor, weights: Tensor | None, labels: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    batch, num_points, dim = points.shape
    rows = labels if batch == 1 else labels + num_clusters * torch.arange(batch, device=points.device).unsqueeze(-1)
    table = torch.empty(batch * num_points, dim + 1, dtype=torch.float64, device=points.device)
    rows_of_points = points.reshape(-1, dim)
    if weights is None:
        table[:, :dim], table[:, dim:] = rows_of_points, 1.0
    else:
        table[:, :dim], table[:, dim:] = rows_of_points * weights.reshape(-1, 1), weights.reshape(-1, 1)
    both = table.new_zeros(batch * num_clusters, dim + 1).index_add_(0, rows.reshape(-1), table)
    both = both.view(batch, num_clusters, dim + 1)
    return both[..., :-1], both[..., -1]


def _is_rare(counts: Tensor, ratio: float) -> Tensor:
    return (counts <= 0) | (counts < ratio * counts.amax(-1, keepdim=True))


def _rounding(points: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (B, N) squared distances that are rounding of a center of type ``dtype`` that lies on the point."""
    return (8 * torch.finfo(dtype).eps * torch.linalg.vector_norm(points, dim=-1)).square()


def _may_move(counts: Tensor, ratio: float) -> bool:
    """Return whether a center is to move, where asking is free: counts are the same on all ranks."""
    if not host_checks_allowed(counts) or counts.numel() == 0:
        return True
    least, most = (float(each) for each in counts.aminmax())
    return least <= 0 or least < ratio * most  # of all problems together: no center of any is rare unless this holds


def _random_keys(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return numbers in (0, 1] of the shape of ``like``; the points of the largest ones are a random draw."""
    return 1 - torch.rand(like.shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


def _move_rare(centers, counts, points, distances, ratio, group) -> tuple[Tensor, Tensor]:
    """Return centers and counts after unseen centers, and those below ratio x the largest count, moved."""
    num_clusters = centers.shape[1]
    rare = _is_rare(counts, ratio)
    # the farthest points of each rank, then of all; padded so that a rank may hold fewer points than centers
    missing = max(0, num_clusters - points.shape[1])
    distances = torch.nn.functional.pad(distances, (0, missing))
    points = torch.nn.functional.pad(points, (0, 0, 0, missing))
    best = distances.topk(num_clusters, dim=-1)
    far = torch.cat([_take(points, best.indices), best.values.unsqueeze(-1)], -1).double()  # alike on all ranks
    if group is not None:
        parts = [torch.empty_like(far) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(parts, far.contiguous(), group=group)
        far = torch.cat(parts, 1)
        far = _take(far, far[..., -1].topk(num_clusters, dim=-1).indices)
    rank = (rare.cumsum(-1) - 1).clamp(min=0)
    target = _take(far, rank)
    moves = rare & (target[..., -1] > 0)
    floor = counts.masked_fill(rare, torch.inf).amin(-1, keepdim=True)
    floor = torch.where(torch.isfinite(floor), floor, 0.0)
    return torch.where(moves.unsqueeze(-1), target[..., :-1], centers), torch.where(moves, floor, counts)


def _take(rows: Tensor, index: Tensor) -> Tensor:
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def _num_points(num_points: int, x: Tensor, group) -> int:
    """Return the number of points of all ranks, so that every rank moves rare centers in the same step."""
    if group is None:
        return num_points
    total = torch.tensor(float(num_points), dtype=torch.float64, device=x.device)
    return int(sum_over_ranks(total, group))


def _check(state: MiniBatchKMeansState, x: Tensor, mask: Tensor | None, move_ratio: float | None, group) -> None:
    check_points(x, allow_empty=group is not None)
    check_points(state.centers, 'state.centers')
    check_mask(mask, x.shape[:-1], x.device)
    check_device(x, state.centers.device, 'x')
    expected = (*state.centers.shape[:-2], 'N', state.centers.shape[-1])
    if x.shape[:-2] != state.centers.shape[:-2] or x.shape[-1] != state.centers.shape[-1]:
        raise ValueError(f'x must have shape {expected} to fit the centers, got {tuple(x.shape)}')
    if move_ratio is not None and not 0 <= move_ratio < 1:
        raise ValueError(f'move_ratio must be in [0, 1) or None, got {move_ratio!r}')
    if host_checks_allowed(x):
        check_finite(x, 'x', mask)
        check_finite(state.centers, 'state.centers')
