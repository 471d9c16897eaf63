# SPDX-License-Identifier: Apache-2.0
"""Progressive transport in which neighbors in a graph pull each other to the same cluster."""

import math
from typing import Any

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_number, check_points
from clusterplug.core.numerics import exact_products, working_dtype
from clusterplug.functional.graph._operator import GraphOperator, check_graph
from clusterplug.functional.transport import ProgressivePlan, progressive_transport

__all__ = ['semantic_transport']

_TIGHT_ITERS = 1000
_WIDE_ENTRIES = 2**22
# Entries of the plan, which are at most 1, settle to so many times the bound on the objective.
_PLAN = 100


@torch.no_grad()
def semantic_transport(
    scores: Tensor,
    *,
    epsilon: float,
    mass: float | Tensor,
    penalty: float,
    graph,
    strength: float,
    tol: float = 1e-6,
    max_iters: int = 100,
    inner_iters: int = 10,
    prior: Tensor | None = None,
    mask: Tensor | None = None,
    init: Tensor | None = None,
    full_output: bool = False,
) -> Tensor | ProgressivePlan:
    r"""Return soft labels by progressive transport that agree between neighbors in a graph (SP2OT).

    Adds :math:`-\lambda \langle S, Q Q^\top \rangle` to the problem of :func:`progressive_transport`. Each outer
    iteration replaces the scores by :math:`-C + \lambda (S + S^\top) Q_t` and takes ``inner_iters`` steps of that
    problem from the scalings of the one before. Once the full objective

    .. math:: F = \langle Q, C \rangle - \lambda \langle S, Q Q^\top \rangle + \gamma KL(Q^\top 1 \,\|\, m \pi)
              - \epsilon H(Q) - \epsilon H(\xi)

    moves by at most ``tol`` and no entry of the plan by more than 100 ``tol``, the inner problems are solved to the end
    and the iteration goes on until both move by no more again. F never rises when S is positive semidefinite and the
    inner problems are solved (large ``inner_iters``). Memory is O(N K + edges); no N x N matrix is made from a sparse
    graph.

    Args:
        scores: (..., N, K) log-probabilities, as in :func:`progressive_transport`.
        epsilon: Strength of the entropy term.
        mass: Share of the rows that gets labels, in (0, 1].
        penalty: Weight gamma of the size penalty.
        graph: S, non-negative similarities: a ``KNNGraph`` or a pair (indices, weights) of (..., N, m), a dense
            (..., N, N) or a sparse (N, N) tensor. Without leading dimensions it is shared by the batch (several heads
            or views). It need not be symmetric.
        strength: lambda >= 0, for a plan Q of total mass ``mass`` (entries of about mass / (N K)), as the authors
            count it: hence values up to 1,000. 0 is :func:`progressive_transport`.
        tol: Bound on the change of F, and of the plan (x 100); 0: exactly ``max_iters`` outer iterations, nothing
            read on the host.
        max_iters: Maximum number of outer iterations.
        inner_iters: Steps of each inner problem.
        prior: (K,) or (..., K), see :func:`progressive_transport`.
        mask: (..., N) bool, True = valid row; the others pull nobody.
        init: (..., K) ``potentials`` of an earlier call.
        full_output: Return a :class:`ProgressivePlan`, with ``objective`` F after every outer iteration.

    Returns:
        Plan (..., N, K) in the type of ``scores``: rows sum to at most 1, all to mass x (valid rows).

    Raises:
        TypeError, ValueError: As :func:`progressive_transport`; no graph, another number of points, negative weights,
            ``strength`` < 0.

    Source: Zhang, Ren and He, "SP2OT", arXiv 2404.03446; official code rhfeiyang/SPPOT (CC BY-NC 4.0; reimplemented
    from the equations). **Differs from the authors' code**: sparse graph instead of N x N, inexact inner problems
    with warm starts (theirs ran 99,153 inner iterations on 512 rows at strength 1,000), stops on F, of which theirs
    omits two terms and which is then no measure of descent.

    Example:
        >>> scores = torch.tensor([[0.9, 0.1], [0.45, 0.55], [0.1, 0.9]]).log()
        >>> pair = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]])  # the first two belong together
        >>> options = dict(epsilon=0.1, mass=1.0, penalty=0.1, graph=pair)
        >>> semantic_transport(scores, strength=0.0, **options).argmax(1).tolist()
        [0, 1, 1]
        >>> semantic_transport(scores, strength=3.0, **options).argmax(1).tolist()
        [0, 0, 1]
    """
    check_points(scores, 'scores')
    strength = check_number(strength, 'strength', 0)
    tol = check_number(tol, 'tol', 0, hint='0 runs all iterations')
    max_iters = check_count(max_iters, 'max_iters', 1)
    inner_iters = check_count(inner_iters, 'inner_iters', 1)
    if check_graph(graph) != scores.shape[-2]:
        raise ValueError(f'graph must be of the {scores.shape[-2]} rows of scores, got {check_graph(graph)} points')
    options: dict[str, Any] = {'epsilon': epsilon, 'mass': mass, 'penalty': penalty, 'prior': prior, 'mask': mask}
    tight: dict[str, Any] = {'tol': tol, 'max_iters': inner_iters if tol == 0 else _TIGHT_ITERS}
    if strength == 0:
        found = _progressive(scores, **options, init=init, **tight)
        return found if full_output else found.plan
    dtype = working_dtype(scores.dtype)
    if scores.device.type == 'cpu' and scores.numel() <= _WIDE_ENTRIES:
        dtype = torch.float64  # as progressive_transport
    wide = scores.detach().to(dtype)
    if mask is not None:
        wide = wide.masked_fill(~mask.unsqueeze(-1), 0.0)
    with exact_products(scores):
        pull = GraphOperator(graph, dtype, both=True, lead=tuple(scores.shape[:-2]))
        found, objective = _iterate(wide, pull, strength, options, tight, tol, max_iters, inner_iters, init)
    found = found._replace(plan=found.plan.to(scores.dtype), objective=objective)
    return found if full_output else found.plan


def _progressive(scores: Tensor, **options) -> ProgressivePlan:
    found = progressive_transport(scores, **options, full_output=True)
    assert isinstance(found, ProgressivePlan)
    return found


def _iterate(scores, pull, strength, options, tight, tol, max_iters, inner_iters, init):
    """Return the last inner result, with all outer iterations counted, and F after every iteration."""
    num_rows, num_cols = scores.shape[-2:]
    mask = options['mask']
    count = float(num_rows) if mask is None else mask.sum(-1).clamp_min(1).double()[..., None, None]
    mass = options['mass']
    share = mass.double()[..., None, None] if isinstance(mass, Tensor) else mass
    plan = (scores.new_ones(scores.shape) * (share / (count * num_cols))).to(scores.dtype)
    if mask is not None:
        plan = plan * mask.unsqueeze(-1)
    pulled, history, steps = pull(plan), [], {'tol': tol, 'max_iters': inner_iters}
    still = torch.zeros(scores.shape[:-2], dtype=torch.bool, device=scores.device)
    for number in range(max_iters):
        found = _progressive(scores + strength * pulled, **options, init=init, **steps)
        moved = (found.plan - plan * count).abs().amax((-2, -1)) if tol > 0 else None
        plan, init = (found.plan / count).to(scores.dtype), found.potentials
        pulled = pull(plan)
        history.append(_objective(scores, plan, pulled, strength, options, share, count))
        if tol > 0 and number:
            # F is flat around its minimum, so the plan itself has to settle as well
            still = ((history[-1] - history[-2]).abs() <= tol) & (moved <= _PLAN * tol)
            if bool(still.all()) and steps is tight:
                break
            steps = tight if bool(still.all()) else steps
    iterations = torch.full_like(found.num_iters, len(history))
    return found._replace(num_iters=iterations, converged=found.converged & still), torch.stack(history)


def _objective(scores, plan, pulled, strength, options, share, count) -> Tensor:
    """Return F (...,) of a plan of total mass ``mass``, in float64."""
    epsilon, penalty, prior, mask = (options[name] for name in ('epsilon', 'penalty', 'prior', 'mask'))
    q = plan.double()
    value = -(q * scores).sum((-2, -1)) - 0.5 * strength * (q * pulled).sum((-2, -1))
    rest = (1 / count - q.sum(-1, keepdim=True)).clamp_min(0.0)
    if mask is not None:
        rest = rest * mask.unsqueeze(-1)
    value = value + epsilon * (torch.xlogy(q, q).sum((-2, -1)) + torch.xlogy(rest, rest).sum((-2, -1)))
    if 0 < penalty < math.inf:  # met exactly where it is infinite
        sizes = q.sum(-2)
        total = share.squeeze(-1) if isinstance(share, Tensor) else share
        wanted = total * (torch.full_like(sizes, 1 / sizes.shape[-1]) if prior is None else prior.double())
        wanted = wanted.expand_as(sizes)
        divergence = torch.xlogy(sizes, sizes) - torch.where(sizes > 0, torch.xlogy(sizes, wanted), 0.0)
        value = value + penalty * (divergence - sizes + wanted).sum(-1)
    return value
