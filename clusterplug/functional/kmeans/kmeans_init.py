# SPDX-License-Identifier: Apache-2.0
"""Where k-means starts: k-means++ (random, good in expectation) and KKZ (deterministic, farthest points)."""

import math

import torch
from torch import Tensor

from clusterplug.core.checks import check_device, check_finite, check_mask, check_num_clusters, check_points
from clusterplug.core.numerics import exact_products, host_checks_allowed, working_dtype
from clusterplug.functional.kmeans._points import centered

__all__ = ['kkz', 'kmeans_plus_plus']

# A squared distance below this share of |x|^2 + |c|^2 is rounding of their difference with 2 x.c and counts as 0.
_ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-14}


def kmeans_plus_plus(
    x: Tensor,
    num_clusters: int,
    *,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the points that greedy k-means++ starts from.

    The first is drawn in proportion to its weight; each next is the best of 2 + floor(log K) points drawn in
    proportion to weight x squared distance to the nearest one chosen.

    Args:
        x: (..., N, D), floating.
        num_clusters: K, 1 <= K <= N.
        mask: (..., N) bool, True = valid.
        weights: (..., N) non-negative; None = 1.
        generator: Source of the random numbers; None = torch's default one of the device.

    Returns:
        (..., K) int64 indices of points. When there are fewer different valid points than K, points repeat.

    Raises:
        TypeError: ``x`` not floating, ``mask`` not bool.
        ValueError: Wrong shape, K outside 1 ... N, negative weights, NaN or inf in a valid point (both checked on
            the CPU).

    Source: Arthur and Vassilvitskii, "k-means++", SODA 2007; the greedy choice as in its section 5 and scikit-learn.

    Example:
        >>> x = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> chosen = kmeans_plus_plus(x, 2, generator=torch.Generator().manual_seed(0))
        >>> sorted((chosen // 2).tolist())  # one of each pair
        [0, 1]
    """
    flat, valid, combined = _prepared(x, num_clusters, mask, weights)
    draws = random_draws(flat.shape[0], num_clusters, flat, generator)
    with torch.no_grad(), exact_products(x):
        points = centered(flat, valid).points
        combined = None if combined is None else combined.to(points.dtype)
        return plus_plus_indices(points, combined, draws).view(*x.shape[:-2], num_clusters)


def kkz(x: Tensor, num_clusters: int, *, mask: Tensor | None = None) -> Tensor:
    """Return the points that KKZ starts from: the one of largest norm, then always the one farthest from all chosen.

    Args:
        x: (..., N, D), floating.
        num_clusters: K, 1 <= K <= N.
        mask: (..., N) bool, True = valid.

    Returns:
        (..., K) int64 indices of points; ties go to the lowest index. When there are fewer different valid points
        than K, points repeat.

    Raises:
        TypeError: ``x`` not floating, ``mask`` not bool.
        ValueError: Wrong shape, K outside 1 ... N, NaN or inf in a valid point (checked on the CPU).

    Source: Katsavounidis, Kuo and Zhang, "A new initialization technique for generalized Lloyd iteration", 1994.

    Example:
        >>> kkz(torch.tensor([[0.0], [1.0], [5.0], [-3.0]]), 3)
        tensor([2, 3, 1])
    """
    flat, valid, combined = _prepared(x, num_clusters, mask, None)
    with torch.no_grad(), exact_products(x):
        frame = centered(flat, valid)
        index = kkz_indices(frame.points, frame.offset * frame.scale, combined, num_clusters)
    return index.view(*x.shape[:-2], num_clusters)


def _prepared(x, num_clusters, mask, weights) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return checked points (B, N, D), the mask (B, N) if any, and weights (B, N), or None for all 1."""
    check_points(x)
    check_num_clusters(num_clusters, x.shape[-2])
    check_mask(mask, x.shape[:-1], x.device)
    if host_checks_allowed(x):
        check_finite(x, 'x', mask)
    flat = x.detach().reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
    valid = None if mask is None else mask.reshape(flat.shape[:2])
    return flat, valid, flat_weights(x, mask, weights)


def flat_weights(x: Tensor, mask: Tensor | None, weights: Tensor | None) -> Tensor | None:
    """Return weights (B, N) in the working type, 0 where masked; None if there is neither mask nor weights."""
    shape = (math.prod(x.shape[:-2]), x.shape[-2])
    dtype = working_dtype(x.dtype)
    if weights is not None:
        if not isinstance(weights, Tensor) or weights.dtype == torch.bool or weights.is_complex():
            raise TypeError(f'weights must be a real tensor, got {getattr(weights, "dtype", type(weights).__name__)}')
        check_device(weights, x.device, 'weights')
        if tuple(weights.shape) != tuple(x.shape[:-1]):
            raise ValueError(f'weights must have shape {tuple(x.shape[:-1])}, got {tuple(weights.shape)}')
        if host_checks_allowed(x):
            bad = ~(torch.isfinite(weights) & (weights >= 0))
            if bad.any():
                raise ValueError(f'weights must be finite and non-negative, got {int(bad.sum())} that are not')
        weights = weights.detach().reshape(shape).to(dtype)
        return weights if mask is None else torch.where(mask.reshape(shape), weights, 0.0)
    return None if mask is None else mask.reshape(shape).to(dtype)


def random_draws(batch: int, num_clusters: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return uniform numbers (B, K, trials): all that k-means++ needs, drawn at once."""
    trials = 2 + int(math.log(num_clusters))
    device = x.device if generator is None else generator.device
    return torch.rand(batch, num_clusters, trials, generator=generator, device=device, dtype=torch.float32).to(x.device)


def plus_plus_indices(points: Tensor, weights: Tensor | None, draws: Tensor, known: Tensor | None = None) -> Tensor:
    """Return (B, K) indices chosen by greedy k-means++ from points (B, N, D) near the origin, away from ``known``."""
    norms = points.square().sum(-1)
    weight = torch.ones_like(norms) if weights is None else weights
    # Written into one tensor: small ones kept from each step would lie between the large ones of the next, and the
    # memory of these could not be used again.
    chosen = torch.empty(*draws.shape[:2], dtype=torch.int64, device=points.device)
    if known is None:
        chosen[:, :1] = _draw(weight, weight, draws[:, 0, :1])
        closest = _distances(points, norms, chosen[:, :1]).squeeze(1)
    else:
        closest = _to_known(points, known)
    for step in range(1 if known is None else 0, draws.shape[1]):
        candidates = _draw(closest * weight, weight, draws[:, step])
        # (B, trials, N): what the distance to the nearest chosen point would become
        reduced = _distances(points, norms, candidates)
        reduced = torch.minimum(reduced, closest.unsqueeze(1), out=reduced)
        best = (reduced @ weight.unsqueeze(-1)).argmin(1)
        chosen[:, step] = candidates.gather(1, best).squeeze(1)
        closest.copy_(reduced.gather(1, best.unsqueeze(-1).expand(-1, -1, norms.shape[-1])).squeeze(1))
    return chosen


def kkz_indices(
    points: Tensor, offset: Tensor, weights: Tensor | None, num_clusters: int, known: Tensor | None = None
) -> Tensor:
    """Return (B, K) indices chosen by KKZ from points (B, N, D) near the origin; norms are those of points + offset."""
    norms = points.square().sum(-1)
    out = None if weights is None else weights <= 0
    from_origin = norms + 2.0 * (points @ offset.mT).squeeze(-1)
    closest = torch.full_like(norms, math.inf)
    chosen = torch.empty(len(points), num_clusters, dtype=torch.int64, device=points.device)
    score = from_origin
    if known is not None:
        score = closest = _to_known(points, known)
    for step in range(num_clusters):
        score = score if out is None else score.masked_fill(out, -math.inf)
        newest = score.argmax(-1, keepdim=True)
        chosen[:, step : step + 1] = newest
        closest = torch.minimum(closest, _distances(points, norms, newest).squeeze(1))
        score = closest
    return chosen


def _draw(mass: Tensor, fallback: Tensor, uniform: Tensor) -> Tensor:
    """Return indices (B, trials) drawn in proportion to mass (B, N), or to ``fallback`` where no mass is left."""
    mass = torch.where((mass > 0).any(-1, keepdim=True), mass, fallback).double()
    cumulated = mass.cumsum(-1)
    total = cumulated[..., -1:]
    # right=True skips points of mass 0; the clamp keeps rounding inside the last point that has mass
    target = torch.minimum(uniform.double() * total, total * (1.0 - 1e-12))
    return torch.searchsorted(cumulated, target, right=True).clamp(max=mass.shape[-1] - 1)


def _to_known(points: Tensor, known: Tensor) -> Tensor:
    """Return the squared distances (B, N) of points to the nearest of the known centers (B, F, D)."""
    joined = torch.cat([points, known], 1)
    norms = joined.square().sum(-1)
    index = torch.arange(points.shape[1], joined.shape[1], device=points.device).expand(len(points), -1)
    return _distances(joined, norms, index)[..., : points.shape[1]].amin(1)


def _distances(points: Tensor, norms: Tensor, index: Tensor) -> Tensor:
    """Return squared distances (B, m, N) of all points to the points ``index`` (B, m)."""
    some = points.gather(1, index.unsqueeze(-1).expand(-1, -1, points.shape[-1]))
    both = norms.gather(1, index).unsqueeze(-1) + norms.unsqueeze(1)
    squared = torch.baddbmm(both, some, points.mT, alpha=-2.0)
    both.mul_(_ROUNDING[points.dtype])
    if host_checks_allowed(points):  # all finite there: a product with 0 or 1 costs a quarter of what selecting does
        return squared.mul_(torch.lt(both, squared, out=both))
    return squared.masked_fill_(~(squared > both), 0.0)
