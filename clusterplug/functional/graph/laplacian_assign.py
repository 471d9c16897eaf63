# SPDX-License-Identifier: Apache-2.0
"""Assignment of points to given prototypes that neighbors in a graph share: the bound optimizer, batched."""

from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_device, check_finite, check_number, check_points
from clusterplug.core.numerics import exact_products, host_checks_allowed, working_dtype
from clusterplug.functional.graph._operator import GraphOperator, check_graph

__all__ = ['LaplacianAssignment', 'laplacian_assign']

# Iterations between two looks at the host where a look is a synchronization.
_EVERY = 10


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
        tol: A problem stops when E changes by at most this share.
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
        cost = distances.detach().to(dtype)
        # what all classes share changes no assignment, and one far point would hide the changes of the others
        least = cost.amin(-1, keepdim=True)
        cost = cost - least
        anchored = known = None
        if fixed is not None:
            known = (fixed >= 0).unsqueeze(-1)
            anchored = torch.nn.functional.one_hot(fixed.clamp_min(0), distances.shape[-1]).to(dtype)
        start = _anchor((-cost).softmax(-1), known, anchored)
        if strength == 0:
            energy = _energy(start, cost, torch.zeros_like(start), 0.0)
            used = torch.ones(lead, dtype=torch.int64, device=cost.device)
            found = LaplacianAssignment(start, energy, used)
        else:
            found = _iterate(start, cost, graph, strength, known, anchored, bool(concave), num_iters, tol)
    memberships = found.memberships.to(distances.dtype)
    if not full_output:
        return memberships
    return found._replace(memberships=memberships, energy=found.energy + least.double().sum((-2, -1)))


def _iterate(z, cost, graph, strength, known, anchored, concave, num_iters, tol) -> LaplacianAssignment:
    lead = z.shape[:-2]
    product = GraphOperator(graph, z.dtype, both=concave, lead=tuple(lead))
    scale, shift = (0.5, _largest_degree(product, z) / 2) if concave else (1.0, 0.0)
    active = torch.ones(lead, dtype=torch.bool, device=z.device)
    used = torch.zeros(lead, dtype=torch.int64, device=z.device)
    pulled = product(z) * scale + shift * z
    energy = _energy(z, cost, pulled, strength)
    host = host_checks_allowed(z)
    for number in range(num_iters):
        new = _anchor((strength * pulled - cost).softmax(-1), known, anchored)
        z = torch.where(active[..., None, None], new, z)
        pulled = product(z) * scale + shift * z
        before, energy = energy, _energy(z, cost, pulled, strength)
        used += active
        if number > 0:
            active = active & ((energy - before).abs() > tol * before.abs())
        if (host or number % _EVERY == _EVERY - 1) and not bool(active.any()):
            break
    return LaplacianAssignment(z, energy, used)


def _anchor(z: Tensor, known: Tensor | None, anchored: Tensor | None) -> Tensor:
    return z if known is None else torch.where(known, anchored, z)


def _energy(z: Tensor, cost: Tensor, pulled: Tensor, strength: float) -> Tensor:
    inside = torch.xlogy(z, z) + z * (cost - 0.5 * strength * pulled)
    return inside.sum((-2, -1), dtype=torch.float64)


def _largest_degree(product: GraphOperator, z: Tensor) -> Tensor:
    """Return the largest degree of W + W^T of each problem, (..., 1, 1)."""
    return product(torch.ones_like(z[..., :1])).amax(-2, keepdim=True)


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
