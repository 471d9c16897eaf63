# SPDX-License-Identifier: Apache-2.0
"""k-means of linear subspaces: assign each point to the nearest one, refit each by its leading directions."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_finite, check_num_clusters, check_points
from clusterplug.core.numerics import exact_products, working_dtype
from clusterplug.functional.subspace.frames import energies

__all__ = ['KSubspacesResult', 'k_subspaces']

# Up to this width the leading directions come from eigh of the second moments, above from subspace iteration.
_DENSE_WIDTH = 96


class KSubspacesResult(NamedTuple):
    """Clusters, each a linear subspace."""

    labels: Tensor  # (..., N) int64
    bases: Tensor  # (..., K, D, dim) with orthonormal columns, the leading direction first
    cost: Tensor  # (...) sum of squared distances to the own subspace
    num_iters: Tensor  # (...) rounds of the restart that was kept


@torch.no_grad()
def k_subspaces(
    x: Tensor,
    num_clusters: int,
    dim: int,
    *,
    num_restarts: int = 10,
    num_iters: int = 50,
    init: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> KSubspacesResult:
    r"""Split points over K linear subspaces of one dimension.

    .. math:: \min_{U_k^\top U_k = I,\ l} \sum_i \| x_i - U_{l_i} U_{l_i}^\top x_i \|^2

    by turns: labels of the largest projection, then bases of the leading directions of each cluster. Neither turn
    raises the cost. Several random starts run as one batch, and the best of each problem is kept. A cluster that
    lost all its points keeps its basis. The subspaces pass through the origin: center the points where they do not.

    Args:
        x: (..., N, D) floating. Computed in float64, since second moments square the ratio of large to small.
        num_clusters: K <= N.
        dim: Dimension of each subspace, <= D.
        num_restarts: Number of starts: at the span of a drawn point and of the ``dim - 1`` most parallel to it, in
            every second one at that of ``dim`` drawn points.
        num_iters: Maximum number of rounds; stops when no label changes.
        init: (..., K, D, dim) orthonormal bases to start at instead, or (K, D, dim) for all problems; then there is
            one start.
        generator: Draws the points of the starts.

    Returns:
        KSubspacesResult; the bases in the type of ``x``, the cost in fp32 at least.

    Raises:
        TypeError: If ``x`` is not a floating tensor.
        ValueError: If an option is out of range or ``x`` is not finite.

    Source: Bradley and Mangasarian, "k-plane clustering", 2000; Agarwal and Mustafa, "k-means projective clustering",
    2004 (the equivalent of training a mixture of low-rank denoisers, Wang et al. 2024, arXiv 2409.02426).

    Example:
        >>> lines = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat_interleave(3, 0)
        >>> x = lines * torch.tensor([1.0, -2.0, 3.0]).repeat(2)[:, None]
        >>> k_subspaces(x, 2, 1, generator=torch.Generator().manual_seed(0)).cost
        tensor(0.)
    """
    check_points(x)
    num_clusters = check_num_clusters(num_clusters, x.shape[-2])
    dim = check_count(dim, 'dim', 1, x.shape[-1])
    num_restarts, num_iters = check_count(num_restarts, 'num_restarts', 1), check_count(num_iters, 'num_iters', 1)
    check_finite(x)
    lead, (num_points, width) = x.shape[:-2], x.shape[-2:]
    with exact_products(x):
        points = x.reshape(math.prod(lead), num_points, width).double()
        size = points.abs().amax((-2, -1), keepdim=True)
        size = torch.where(size > 0, size, 1.0)
        points = points / size
        if init is None:
            bases = _drawn_bases(points, num_clusters, dim, num_restarts, generator)
        else:
            bases = _given_bases(init, x, num_clusters, dim)
        labels, bases, cost, rounds = _alternate(points, bases, num_iters)
        best = cost.argmin(-1)
        rows = torch.arange(len(points), device=x.device)
        labels, bases, cost, rounds = (each[rows, best] for each in (labels, bases, cost, rounds))
        cost = cost * size[:, 0, 0].square()
        largest = bases.gather(-2, bases.abs().argmax(-2, keepdim=True))
        bases = torch.where(largest < 0, -bases, bases)  # of the two signs, the one with a positive largest entry
    return KSubspacesResult(
        labels.reshape(*lead, num_points), bases.reshape(*lead, num_clusters, width, dim).to(x.dtype),
        cost.to(working_dtype(x.dtype)).reshape(lead), rounds.reshape(lead),
    )  # fmt: skip


def _drawn_bases(points: Tensor, num_clusters: int, dim: int, num_restarts: int, generator) -> Tensor:
    """(B, R, K, D, dim): spans of a drawn point and of those most parallel to it; of drawn points in every 2nd start.

    The next point is drawn in proportion to the energy that the subspaces so far leave it, as in k-means++.
    """
    batch, num_points = points.shape[:2]
    device = points.device if generator is None else generator.device
    lengths = points.norm(dim=-1, keepdim=True)
    unit = points / torch.where(lengths > 0, lengths, 1.0)
    left = points.square().sum(-1).unsqueeze(1).repeat(1, num_restarts, 1)  # (B, R, N)
    total, bases = left, []
    odd = torch.arange(num_restarts, device=points.device)[:, None] % 2 == 1
    for _ in range(num_clusters):
        chance = torch.where(left.sum(-1, keepdim=True) > 0, left, 1.0).flatten(0, 1).to(device)
        level = torch.rand(len(chance), 1, generator=generator, device=device, dtype=chance.dtype)
        running = chance.cumsum(-1)
        seed = torch.searchsorted(running, level * running[:, -1:]).clamp(max=num_points - 1)
        seed = seed.to(points.device).view(batch, num_restarts, 1)
        other = torch.randint(num_points, (batch, num_restarts, dim), generator=generator, device=device)
        cosines = _rows(unit, seed).squeeze(2) @ unit.mT
        near = cosines.abs().scatter_(-1, seed, 2.0).topk(min(dim, num_points), dim=-1).indices
        near = torch.nn.functional.pad(near, (0, dim - near.shape[-1]))
        drawn = torch.where(odd, other.to(points.device), near)
        bases.append(torch.linalg.qr(_rows(points, drawn).mT)[0])
        left = torch.minimum(left, (total - energies(points.unsqueeze(1), bases[-1].unsqueeze(2))[..., 0]).clamp_min(0))
    return torch.stack(bases, 2)


def _rows(points: Tensor, indices: Tensor) -> Tensor:
    """Rows (B, R, m, D) of points (B, N, D) at indices (B, R, m)."""
    rows = indices.flatten(1).unsqueeze(-1).expand(-1, -1, points.shape[-1])
    return points.gather(1, rows).view(*indices.shape, points.shape[-1])


def _given_bases(init: Tensor, x: Tensor, num_clusters: int, dim: int) -> Tensor:
    shape = (num_clusters, x.shape[-1], dim)
    check_points(init, 'init')
    if init.shape[-3:] != shape or init.shape[:-3] not in ((), x.shape[:-2]):
        raise ValueError(f'init must have shape {(*x.shape[:-2], *shape)} or {shape}, got {tuple(init.shape)}')
    check_finite(init, 'init')
    init = init.to(x.device, torch.float64).expand(*x.shape[:-2], *shape)
    return torch.linalg.qr(init)[0].reshape(math.prod(x.shape[:-2]), 1, *shape)


def _alternate(points: Tensor, bases: Tensor, num_iters: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rounds of all starts (B, R) at once, until no label of any moves."""
    batch, starts, num_clusters = bases.shape[:3]
    total = points.square().sum((-2, -1))[:, None]
    labels = points.new_full((batch, starts, points.shape[1]), -1, dtype=torch.long)
    rounds = torch.zeros(batch, starts, dtype=torch.long, device=points.device)
    for _ in range(num_iters):
        fresh = energies(points.unsqueeze(1), bases).argmax(-1)
        moved = (fresh != labels).any(-1)
        labels = fresh
        if not bool(moved.any()):
            break
        rounds += moved
        member = torch.nn.functional.one_hot(labels, num_clusters).to(points.dtype)
        bases = _refit(points, member, bases)
    energy = energies(points.unsqueeze(1), bases)
    labels = energy.argmax(-1)
    return labels, bases, (total - energy.amax(-1).sum(-1)).clamp_min(0), rounds


def _refit(points: Tensor, member: Tensor, bases: Tensor) -> Tensor:
    """Leading directions of the members of each cluster."""
    dim, width = bases.shape[-1], points.shape[-1]
    empty = (member.sum(-2) == 0)[..., None, None]
    if width <= _DENSE_WIDTH:
        rows = points.unsqueeze(1)
        # a cluster at a time: all at once would hold K copies of the points for every start
        moments = torch.stack([(rows * own.unsqueeze(-1)).mT @ rows for own in member.unbind(-1)], 2)
        fresh = torch.linalg.eigh(moments)[1][..., -dim:].flip(-1)
        return torch.where(empty, bases, fresh)
    fresh = bases
    for _ in range(4):
        along = torch.einsum('bnd,brkdm->brnkm', points, fresh) * member.unsqueeze(-1)
        fresh = torch.linalg.qr(torch.einsum('bnd,brnkm->brkdm', points, along) + 1e-6 * fresh)[0]
    return torch.where(empty, bases, fresh)
