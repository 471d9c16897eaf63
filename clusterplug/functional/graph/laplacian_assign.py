# SPDX-License-Identifier: Apache-2.0
"""Assignment of points to given prototypes that neighbors in a graph share: the bound optimizer, batched."""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_device, check_finite, check_number, check_points
from clusterplug.core.numerics import exact_products, host_checks_allowed, working_dtype
from clusterplug.functional.graph._operator import GraphOperator, check_graph

__all__ = ['LaplacianAssignment', 'laplacian_assign']

# Iterations between two looks at the host where a look is a synchronization.
_EVERY = 10
# Stopped problems leave a batch when at most this share is left.
_SHRINK = 0.5


class LaplacianAssignment(NamedTuple):
    """What ``laplacian_assign`` returns with ``full_output=True``."""

    memberships: Tensor  # (..., N, K), rows sum to 1
    energy: Tensor  # (...,) float64
    num_iters: Tensor  # (...,) int64


@torch.no_grad()
def laplacian_assign(
    distances: Tensor,
    graph,
    *,
    strength: float,
    fixed: Tensor | None = None,
    concave: bool = False,
    num_iters: int = 600,
    tol: float = 1e-7,
    full_output: bool = False,
) -> Tensor | LaplacianAssignment:
    r"""Return soft assignments to given prototypes that agree between neighbors.

    .. math:: E(Z) = \sum_{pk} z_{pk} a_{pk} - \frac{\lambda}{2} \sum_{pq} w_{pq} z_p^\top z_q
                     + \sum_{pk} z_{pk} \log z_{pk}, \qquad
              Z \leftarrow \mathrm{softmax}(-a + \lambda W Z)

    from Z = softmax(-a), all points at once. A step minimizes a bound of E where the pairwise term is concave (W
    symmetric and positive semidefinite): E then never rises. A directed graph of neighbors is neither, though in
    practice the iteration converges; ``concave=True`` makes W symmetric and adds its largest degree to the diagonal,
    which changes no hard assignment and cannot oscillate.

    Args:
        distances: a (..., N, K), floating, finite: cost of each prototype, e.g. squared distances.
        graph: W, non-negative: a ``KNNGraph`` or a pair (indices, weights) of (..., N, m), a dense (..., N, N) or a
            sparse (N, N) tensor; without leading dimensions shared by the batch.
        strength: lambda >= 0; 0 gives softmax(-a).
        fixed: (..., N) int64: the class of points whose label is known, kept in every iteration; -1 = free.
        concave: Use the symmetric graph with a shifted diagonal.
        num_iters: Maximum number of iterations.
        tol: A problem stops when E changes by at most this share; 0: after ``num_iters`` iterations.
        full_output: Return a :class:`LaplacianAssignment` with E (of the shifted graph if ``concave``).

    Returns:
        Z (..., N, K) in the type of ``distances``; rows sum to 1, those of fixed points are one-hot. A problem of a
        batch gets what it would get alone.

    Raises:
        TypeError: ``distances`` not floating, ``fixed`` not int64, no graph.
        ValueError: Wrong shape or device, another number of points, a class outside -1 .. K - 1, negative strength or
            weights, NaN or inf.

    Source: Ziko, Boudiaf, Dolz, Granger and Ben Ayed, "Transductive Few-Shot Learning: Clustering is All You Need?",
    arXiv 2106.09516 (official code imtiazziko/SLK-few-shot, no license; reimplemented), and "Laplacian Regularized
    Few-Shot Learning", ICML 2020. **Differs from the authors' code**: known labels are kept in every iteration, not
    only in the first (5-shot digits: .903 to .922); stops on E with lambda / 2, which the update descends, theirs on
    one with lambda, which may rise; batched.

    Example:
        >>> a = torch.tensor([[0.0, 9.0], [2.0, 1.9], [9.0, 0.0]])
        >>> line = (torch.tensor([[1], [0], [1]]), torch.ones(3, 1))  # the second point follows the first
        >>> laplacian_assign(a, line, strength=0.0).argmax(1).tolist()
        [0, 1, 1]
        >>> laplacian_assign(a, line, strength=1.0).argmax(1).tolist()
        [0, 0, 1]
    """
    _check(distances, graph, fixed)
    strength = check_number(strength, 'strength', 0)
    tol = check_number(tol, 'tol', 0)
    num_iters = check_count(num_iters, 'num_iters', 1)
    lead, dtype = distances.shape[:-2], working_dtype(distances.dtype)
    with exact_products(distances):
        # classes first: sums over a few classes run over long rows
        cost = distances.detach().to(dtype).movedim(-1, 0).contiguous()
        # what all classes share changes no assignment, and one far point would hide the changes of the others
        least = cost.amin(0)
        bias = least - cost
        if fixed is not None:  # a known class alone is finite: the softmax of its row is one-hot, whatever the graph
            classes = torch.arange(len(cost), device=cost.device).view(-1, *[1] * fixed.dim())
            bias.masked_fill_((fixed >= 0) & (fixed != classes), -math.inf)
        if strength == 0:
            start, level = _softmax(bias)
            energy = -level.sum(-1, dtype=torch.float64)
            found = LaplacianAssignment(start, energy, torch.ones(lead, dtype=torch.int64, device=cost.device))
        else:
            found = _iterate(bias, _Product(graph, dtype, lead, bool(concave)), strength, num_iters, tol)
    memberships = found.memberships.movedim(0, -1).to(distances.dtype).contiguous()
    if not full_output:
        return memberships
    return found._replace(memberships=memberships, energy=found.energy + least.sum(-1, dtype=torch.float64))


def _softmax(score: Tensor) -> tuple[Tensor, Tensor]:
    """Return Z, the softmax of ``score`` over its first dimension, and sum_k z (score - log z) of each point."""
    z = score.softmax(0)
    # log sum exp = the largest score - log of the largest z
    return z, score.amax(0).sub_(z.amax(0).log_())


class _Product:
    """W Z for Z (K, ..., N)."""

    def __init__(self, graph, dtype: torch.dtype, lead: tuple, concave: bool):
        self.operator: GraphOperator | None = None
        self.shift: Tensor | None = None
        self.local: Tensor | None = None  # (m, ..., N), where there is no operator
        self.weights: Tensor | None = None  # None: all are 1
        self.rows: Tensor
        self.scale = 0.5 if concave else 1.0
        if not concave and isinstance(graph, tuple) and graph[0].shape[:-2] == lead and graph[0].shape[-1]:
            check_graph(graph)
            weights = graph[1].detach().to(dtype).movedim(-1, 0)
            ones = host_checks_allowed(weights) and bool((weights == 1).all())
            self._keep(graph[0].movedim(-1, 0), None if ones else weights)
            return
        self.operator = GraphOperator(graph, dtype, both=concave, lead=tuple(lead))
        if concave:
            device = graph[0].device if isinstance(graph, tuple) else graph.device
            degree = self.operator(torch.ones(*lead, self.operator.num_points, 1, dtype=dtype, device=device))
            self.shift = degree.amax(-2) / 2  # (..., 1)

    def _keep(self, indices: Tensor, weights: Tensor | None) -> None:
        self.local, self.weights = indices, None if weights is None else weights.contiguous()
        size = indices.shape[-1]
        first = torch.arange(math.prod(indices.shape[1:-1]), device=indices.device).view(*indices.shape[1:-1], 1) * size
        self.rows = (indices + first).flatten(1)  # (m, points of all problems)

    def __call__(self, z: Tensor) -> Tensor:
        if self.operator is not None:
            found = self.operator(z.movedim(0, -1).contiguous()).movedim(-1, 0).contiguous() * self.scale
            return found if self.shift is None else found + self.shift * z
        flat = z.flatten(1)
        total = flat.index_select(1, self.rows[0]).view_as(z)
        if self.weights is None:
            for rows in self.rows[1:]:
                total.add_(flat.index_select(1, rows).view_as(z))
            return total
        total.mul_(self.weights[0])
        for rows, weights in zip(self.rows[1:], self.weights[1:], strict=True):
            total.addcmul_(flat.index_select(1, rows).view_as(z), weights)
        return total

    def select(self, rows: Tensor) -> '_Product':
        """Return the product of some problems of a batch of lists."""
        assert self.local is not None, 'the graph is of lists'
        found = copy.copy(self)
        found._keep(self.local[:, rows], None if self.weights is None else self.weights[:, rows])
        return found


def _iterate(bias: Tensor, product: _Product, strength, num_iters, tol) -> LaplacianAssignment:
    """Iterate all problems; one that has stopped keeps what it has."""
    host = host_checks_allowed(bias)
    if host and product.local is not None and bias.dim() == 3:
        return _iterate_and_leave(bias, product, strength, num_iters, tol)
    z = bias.softmax(0)
    active = torch.ones(bias.shape[1:-1], dtype=torch.bool, device=bias.device)
    used = torch.zeros_like(active, dtype=torch.int64)
    energy, pulled = torch.zeros_like(active, dtype=torch.float64), product(z)
    for number in range(num_iters):
        new, new_pulled, new_energy = _step(bias, pulled, product, strength)
        z, pulled = (torch.where(active[..., None], *each) for each in ((new, z), (new_pulled, pulled)))
        before, energy = energy, torch.where(active, new_energy, energy)
        used += active
        if number > 0 and tol > 0:
            active = active & ((energy - before).abs() > tol * before.abs())
        if (host or number % _EVERY == _EVERY - 1) and not bool(active.any()):
            break
    return LaplacianAssignment(z, energy, used)


def _iterate_and_leave(bias: Tensor, product: _Product, strength, num_iters, tol) -> LaplacianAssignment:
    """Iterate a batch (K, B, N); problems that have stopped are written out and leave the batch many at once."""
    z = bias.softmax(0)
    found = LaplacianAssignment(z, z.new_zeros(z.shape[1], dtype=torch.float64), torch.zeros_like(z[0, :, 0]).long())
    members = torch.arange(z.shape[1], device=z.device)
    active, energy, pulled = torch.ones_like(members, dtype=torch.bool), found.energy, product(z)
    for number in range(num_iters):
        z, pulled, new = _step(bias, pulled, product, strength)
        before, energy = energy, new
        moving = (energy - before).abs() > tol * before.abs() if number > 0 and tol > 0 else active
        moving = moving & active if number + 1 < num_iters else torch.zeros_like(active)
        stopped = (active & ~moving).nonzero()[:, 0]
        active = moving
        if len(stopped) == 0:
            continue
        rows = members[stopped]
        found.memberships[:, rows], found.energy[rows], found.num_iters[rows] = (
            z[:, stopped],
            energy[stopped],
            number + 1,
        )
        left = active.nonzero()[:, 0]
        if len(left) == 0:
            break
        if len(left) <= _SHRINK * len(active):
            members, energy, active = members[left], energy[left], active[left]
            pulled, bias, product = pulled[:, left], bias[:, left], product.select(left)
    return found


def _step(bias: Tensor, pulled: Tensor, product: _Product, strength: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the next Z, W Z and E."""
    z, level = _softmax(torch.add(bias, pulled, alpha=strength))
    new = product(z)
    # sum z (cost + log z) = sum z strength pulled - level
    inside = torch.sub(pulled, new, alpha=0.5).mul_(z).sum(0).mul_(strength).sub_(level)
    return z, new, inside.sum(-1, dtype=torch.float64)


def _check(distances: Tensor, graph, fixed: Tensor | None) -> None:
    check_points(distances, 'distances')
    num_points, num_classes = distances.shape[-2:]
    if check_graph(graph) != num_points:
        raise ValueError(f'graph must be of the {num_points} points of distances, got {check_graph(graph)} points')
    check_finite(distances, 'distances')
    if fixed is None:
        return
    if not isinstance(fixed, Tensor) or fixed.dtype != torch.int64:
        got = fixed.dtype if isinstance(fixed, Tensor) else type(fixed).__name__
        raise TypeError(f'fixed must be an int64 tensor of classes, -1 = free, got {got}; convert it with .long()')
    if fixed.shape != distances.shape[:-1]:
        raise ValueError(f'fixed must have shape {tuple(distances.shape[:-1])}, got {tuple(fixed.shape)}')
    check_device(fixed, distances.device, 'fixed')
    if fixed.numel() and host_checks_allowed(fixed):
        low, high = (int(each) for each in fixed.aminmax())
        if low < -1 or high >= num_classes:
            raise ValueError(f'fixed must hold classes -1 (free) .. {num_classes - 1}, got {low} .. {high}')
