# SPDX-License-Identifier: Apache-2.0
"""Batched k-medoids: deterministic start, alternating assignment and update."""

import math

import torch
from torch import Tensor

from clusterplug.core.checks import check_finite, check_mask, check_num_clusters, check_points
from clusterplug.core.numerics import exact_products, working_dtype
from clusterplug.functional.distance import check_metric, check_square, self_distances
from clusterplug.functional.kmedoids._medoid_steps import (
    KMedoidsResult,
    assign,
    farthest_first,
    filled_clusters,
    finish,
    problems_at_once,
    rows,
    update,
)

_SCALED_AT_ONCE = 2**20


@torch.no_grad()
def kmedoids(
    x: Tensor,
    num_clusters: int,
    *,
    metric: str = 'euclidean',
    init: str | Tensor = 'kkz',
    num_iters: int = 100,
    tol: float | None = 1e-6,
    sort: bool = True,
    mask: Tensor | None = None,
) -> KMedoidsResult:
    r"""Cluster each set of points around K of its own points.

    .. math:: \min_{m_1 \dots m_K} \sum_n \min_k d(x_n, x_{m_k})

    by alternation: every point joins its nearest medoid, a medoid itself; then each cluster takes the member with
    the smallest sum of distances to the others. The start is KKZ: the point with the largest norm, then again and
    again the point farthest from the medoids so far. Nothing is random, every tie goes to the lowest index, and a
    problem's result does not depend on the other problems of the batch.

    Defined edges: duplicates are legal medoids of their own clusters (each medoid belongs to itself, so no cluster
    is empty); a masked problem with fewer than K valid points makes each of them a medoid and leaves the rest of
    ``medoids`` -1; a problem without a valid point has labels and medoids -1 and cost 0.

    Args:
        x: (..., N, D) points of any floating type, computed in fp32 at least (in more than 8 dimensions, distances
            below a thousandth of the spread drown in fp32's rounding: pass fp64 where they matter); or (..., N, N)
            distances with ``metric='precomputed'``, of which the two triangles are averaged.
        num_clusters: K, 1 <= K <= N.
        metric: ``'euclidean'``, ``'cosine'`` (1 - cosine) or ``'precomputed'``.
        init: ``'kkz'``, or (..., K) int64 indices of the first medoids, all different and valid. For
            ``'precomputed'`` KKZ starts at the point with the largest sum of distances.
        num_iters: Most rounds of assignment and update.
        tol: A problem stops once its medoids together moved by at most ``tol`` times its cost. ``None`` or 0 runs
            exactly ``num_iters`` rounds and never waits for the device: for ``torch.compile`` and CUDA graphs. The
            input is then not searched for NaN, nor ``init`` for wrong indices.
        sort: Number the clusters in the order of their medoids, so that gathered medoid tokens keep their order.
        mask: (..., N) bool, True = valid.

    Returns:
        KMedoidsResult(labels, medoids, cost, num_iters). Memory beside the input: N^2 + 3 N K numbers for each
        problem, for as many problems at once as fit in 64 MB (CPU) or 1 GB.

    Raises:
        TypeError: If ``x`` is not floating or ``mask`` not bool.
        ValueError: If K is out of range, a shape or an option is wrong, or a valid point is NaN or infinite.

    Source:
        Park and Jun, "A simple and fast algorithm for K-medoids clustering", 2009 (alternation); Katsavounidis, Kuo
        and Zhang, "A new initialization technique for generalized Lloyd iteration", 1994 (start); as used by Zhao et
        al., "CenterCLIP", SIGIR 2022, section 3, official code mzhaoshuai/CenterCLIP (CC-BY-NC 4.0).

        **Differs from the authors' code**: the update is one matrix product instead of K masked copies of the
        distance matrix; each problem stops by itself instead of with its chunk, by a
        relative tolerance; ties go to the lowest index instead
        of to rounding; K > N raises instead of returning medoid 0 several times; masks exist.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [15.0]])
        >>> result = kmedoids(x, 2)
        >>> result.medoids.tolist(), result.labels.tolist(), result.cost.item()
        ([1, 4], [0, 0, 0, 1, 1, 1], 7.0)
    """
    check_metric(metric)
    check_points(x)
    check_square(x, metric)
    check_mask(mask, x.shape[:-1], x.device)
    check_num_clusters(num_clusters, x.shape[-2])
    check_init(init, x, num_clusters)
    if num_iters < 0:
        raise ValueError(f'num_iters must be at least 0, got {num_iters}')
    tol = tol or None
    if tol is not None:
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
            parts.append(alternate(distances, medoids, num_iters, tol, sort, part_mask))
    joined = [torch.cat(values) if len(parts) > 1 else values[0] for values in zip(*parts)]
    return KMedoidsResult(*(value.reshape((*batch_shape, *value.shape[1:])) for value in joined))


def start_scores(points: Tensor, distances: Tensor, metric: str, mask: Tensor | None) -> Tensor:
    """Return (B, N): the KKZ start is the largest norm, or the largest sum of distances where there are no points."""
    if metric == 'precomputed':
        return distances.sum(-1)
    # A few problems at a time: the scaled copy of all would be larger than the distances.
    block = max(1, _SCALED_AT_ONCE // points.shape[1:].numel()) if points.device.type == 'cpu' else max(1, len(points))
    masks = [None] * max(1, len(points)) if mask is None else mask.split(block)
    return torch.cat([_norms(part, part_mask) for part, part_mask in zip(points.split(block), masks)])


def _norms(points: Tensor, mask: Tensor | None) -> Tensor:
    points = points.to(working_dtype(points.dtype))
    if mask is not None:
        points = points.masked_fill(~mask[..., None], 0)
    # The square of a large norm would overflow: compare norms of points scaled to 1.
    largest = points.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(points.dtype).tiny)
    return (points / largest).norm(dim=-1)


def alternate(
    distances: Tensor, medoids: Tensor, num_iters: int, tol: float | None, sort: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Alternate from ``medoids`` (B, K) over ``distances`` (B, N, N); return labels, medoids, cost, rounds."""
    num_problems, num_clusters = medoids.shape
    filled = filled_clusters(num_clusters, mask)
    rounds = torch.full((num_problems,), num_iters, dtype=torch.int64, device=medoids.device)
    if tol is None:
        for _ in range(num_iters):
            _, labels = assign(distances, medoids, mask, filled)
            medoids = update(distances, labels, num_clusters, mask is not None)
    else:
        medoids = _until_still(distances, medoids, num_iters, tol, mask, filled, rounds)
    return *finish(distances, medoids, mask, sort), rounds


def _until_still(
    distances: Tensor,
    medoids: Tensor,
    num_iters: int,
    tol: float,
    mask: Tensor | None,
    filled: Tensor | None,
    rounds: Tensor,
) -> Tensor:
    """Alternate until each problem's medoids stand still; problems that do are left out of later rounds."""
    final = medoids.clone()
    active = torch.arange(len(medoids), device=medoids.device)
    going = torch.ones((len(medoids), 1), dtype=torch.bool, device=medoids.device)
    rounds.zero_()
    for _ in range(num_iters):
        nearest, labels = assign(distances, medoids, mask, filled)
        updated = update(distances, labels, medoids.shape[-1], mask is not None)
        moved = rows(distances, medoids).gather(-1, updated[..., None]).squeeze(-1)
        if filled is not None:
            moved = moved.masked_fill(~filled, 0)
        medoids = torch.where(going, updated, medoids)
        final[active] = medoids
        rounds[active] += going.squeeze(-1)
        going &= moved.sum(-1, keepdim=True) > tol * nearest.sum(-1, keepdim=True)
        keep = going.squeeze(-1).nonzero().flatten()
        if len(keep) == 0:
            break
        # Copying the distances of those that go on costs about half a round: not for every problem that stops.
        if 2 * len(keep) <= len(active):
            active, distances, medoids, going = active[keep], distances[keep], medoids[keep], going[keep]
            mask = None if mask is None else mask[keep]
            filled = None if filled is None else filled[keep]
    return final


def check_init(init: str | Tensor, x: Tensor, num_clusters: int) -> None:
    """Raise unless ``init`` is ``'kkz'`` or an int64 tensor (..., K) beside ``x``."""
    if isinstance(init, str):
        if init != 'kkz':
            raise ValueError(f"init must be 'kkz' or a tensor of medoid indices, got {init!r}")
        return
    if not isinstance(init, Tensor) or init.dtype != torch.int64:
        got = init.dtype if isinstance(init, Tensor) else type(init).__name__
        raise TypeError(f"init must be 'kkz' or an int64 tensor of medoid indices, got {got}")
    shape = (*x.shape[:-2], num_clusters)
    if tuple(init.shape) != shape or init.device != x.device:
        raise ValueError(
            f'init must have shape {shape} on {x.device}, got {tuple(init.shape)} on {init.device}; '
            f'give {num_clusters} indices for each problem'
        )


def check_indices(init: str | Tensor, mask: Tensor | None, num_points: int) -> None:
    """Raise unless the indices in ``init`` are in range, different within each problem, and of valid points."""
    if isinstance(init, str):
        return
    ordered = init.sort(-1).values
    if bool((ordered[..., 0] < 0).any()) or bool((ordered[..., -1] >= num_points).any()):
        raise ValueError(f'init must hold indices from 0 to {num_points - 1}, got {init.min()} to {init.max()}')
    if bool((ordered.diff(dim=-1) == 0).any()):
        raise ValueError('init must name each point at most once per problem, got repeated indices; remove them')
    if mask is not None and not bool(mask.gather(-1, init).all()):
        raise ValueError('init must name valid points, got some where mask is False; choose others')
