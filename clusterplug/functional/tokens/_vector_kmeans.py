# SPDX-License-Identifier: Apache-2.0
"""k-means inside each sequence of a batch, every sequence with its own number of clusters: assignments only."""

import torch
from torch import Tensor

from clusterplug.core.numerics import host_checks_allowed
from clusterplug.core.origin import finite, power_of_two, typical_origin, typical_rows, typical_size

# Squared distances below this share of |x|^2 + |c|^2 are rounding of |x|^2 + |c|^2 - 2 x.c and count as 0.
_ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-14}
# Bytes of points that the CPU iterates together: points and scores stay in the second-level cache.
_GROUP_BYTES = 1 << 21


def assign(
    values: Tensor, valid: Tensor, limits: Tensor, start: Tensor | None, draws: Tensor | None, size: int, num_iters: int
) -> Tensor:
    """Return labels (B, L) from 0 to K - 1 of values (B, L, D) that are 0 where not valid.

    Args:
        values: (B, L, D) in the working type.
        valid: (B, L) bool.
        limits: (B,) clusters of each sequence, at most ``size``.
        start: (B, K, D) centers to begin with, or None.
        draws: (B, K) uniform numbers of k-means++, or None: farthest points.
        size: K.
        num_iters: Steps at most; on the CPU it stops where no point changes its cluster.
    """
    batch, length, dim = values.shape
    step = max(batch, 1)
    if host_checks_allowed(values):
        step = max(1, _GROUP_BYTES // (length * (dim + size) * values.element_size()))
    parts = []
    for first in range(0, batch, step):
        given = [None if x is None else x[first : first + step] for x in (values, valid, limits, start, draws)]
        parts.append(_solve(given, size, num_iters))
    if not parts:
        return torch.zeros(batch, length, dtype=torch.int64, device=values.device)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _solve(given: list, size: int, num_iters: int) -> Tensor:
    """Return the labels of one group of sequences."""
    values, valid, limits, start, draws = given
    rows = typical_rows(values, mask=valid)
    origin = typical_origin(rows)
    # an origin nearer than most points gains no digits
    origin = origin * (origin.abs().amax(-1, keepdim=True) > typical_size(rows, origin))
    host = host_checks_allowed(values)
    whole = host and bool(valid.all())
    points = values - origin
    if not whole:
        points = points.masked_fill_(~valid.unsqueeze(-1), 0.0)
    scale = 1 / power_of_two(finite(torch.linalg.vector_norm(points, torch.inf, (1, 2), keepdim=True)))
    points = points.mul_(scale)
    ranks = torch.arange(size, device=values.device)
    allowed = ranks < limits.unsqueeze(-1)
    if start is not None:
        centers, alive = (start - origin) * scale, allowed
    else:
        centers, alive = _start(points, valid, draws, size)
        alive = alive & allowed
    barred = torch.where(alive, 0.0, torch.inf).to(points.dtype).unsqueeze(-1)
    weighted, before = valid.to(points.dtype).unsqueeze(1), None
    for _ in range(num_iters):
        chosen, counts = _nearest(centers, points.mT, barred, ranks, host)
        if host and before is not None and torch.equal(chosen, before):
            break  # the same members have the same means
        before = chosen
        if not whole:
            chosen = chosen * weighted
            counts = chosen.sum(-1, keepdim=True)
        means = torch.bmm(chosen, points).div_(counts.clamp(min=1.0))
        centers = torch.where(counts > 0, means, centers)
    return torch.matmul(ranks.to(chosen.dtype), chosen).long()  # argmax over a short dimension is scalar code


def _nearest(centers: Tensor, transposed: Tensor, barred: Tensor, ranks: Tensor, host: bool) -> tuple[Tensor, Tensor]:
    """Return the 0/1 matrix (B, K, L) of each point's nearest center, the first among equals, and its row sums."""
    half = centers.square().sum(-1, keepdim=True).mul_(0.5).add_(barred)
    scores = torch.baddbmm(half, centers, transposed, beta=-1.0)
    if host:  # comparing with the maximum is vector code, argmax is not
        chosen = torch.eq(scores, scores.amax(1, keepdim=True), out=torch.empty_like(scores))
        counts = chosen.sum(-1, keepdim=True)
        if counts.sum(dtype=torch.float64).item() == scores.shape[0] * scores.shape[2]:
            return chosen, counts
    chosen = (scores.argmax(1, keepdim=True) == ranks.unsqueeze(-1)).to(scores.dtype)
    return chosen, chosen.sum(-1, keepdim=True)


def _start(points: Tensor, valid: Tensor, draws: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """Return points (B, K, D) to start from, and which of them (B, K) differ from all before them."""
    norms = points.square().sum(-1)
    closest = torch.where(valid, torch.inf, 0.0).to(points.dtype)
    rounding, centers, alive = _ROUNDING[points.dtype], [], []
    for step in range(size):
        mass = closest if step else valid.to(points.dtype)  # the first valid one, or any
        largest, newest = mass.max(-1, keepdim=True)
        alive.append(largest > 0)
        if draws is not None:
            newest = _draw(mass, draws[:, step : step + 1])
        center = points.gather(1, newest.unsqueeze(-1).expand(-1, -1, points.shape[-1]))
        both = norms + norms.gather(1, newest)
        squared = torch.baddbmm(both.unsqueeze(1), center, points.mT, alpha=-2.0).squeeze(1)
        squared = torch.where(squared > rounding * both, squared, 0.0)
        closest = torch.minimum(closest, squared)
        centers.append(center)
    return torch.cat(centers, 1), torch.cat(alive, 1)


def _draw(mass: Tensor, uniform: Tensor) -> Tensor:
    """Return (B, 1) indices drawn in proportion to mass (B, L); any where there is none."""
    cumulated = mass.double().cumsum(-1)
    total = cumulated[..., -1:]
    target = torch.minimum(uniform.double() * total, total * (1.0 - 1e-12))
    return torch.searchsorted(cumulated, target, right=True).clamp(max=mass.shape[-1] - 1)
