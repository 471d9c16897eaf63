# SPDX-License-Identifier: Apache-2.0
"""Prototypes of few labeled samples moved onto the queries by optimal transport (OpTA)."""

import math

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_device, check_finite, check_mask, check_number, check_points
from clusterplug.core.numerics import exact_products, working_dtype
from clusterplug.functional.distance import pairwise_distances
from clusterplug.functional.transport.partial import unbalanced_transport
from clusterplug.functional.transport.sinkhorn import sinkhorn

__all__ = ['align_by_transport']

# Iterations that converge at the default epsilon; a smaller one needs more.
_ITERS, _EPSILON, _MOST_ITERS = 200, 0.05, 5000


@torch.no_grad()
def align_by_transport(
    support: Tensor,
    queries: Tensor,
    *,
    num_passes: int,
    epsilon: float = 0.05,
    mix: float = 1.0,
    penalty: float = math.inf,
    num_iters: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Return prototypes moved to where the queries are, each to the mean of the queries transported to it.

    .. math:: C_{cq} = \|p_c - x_q\|^2 / \max C, \quad \pi = \mathrm{sinkhorn}(-C), \quad
              p_c \leftarrow \sum_q \frac{\pi_{cq}}{\sum_{q'} \pi_{cq'}} x_q

    repeated ``num_passes`` times; then the share ``mix`` of the result is mixed with 1 - ``mix`` of the prototypes that
    came. Every query carries the same mass. With ``penalty=inf`` so does every prototype, which **assumes that the
    queries are of about equally many per class**: with uneven ones (40, 15, 10, 5, 5) it is worse than not aligning. A
    finite penalty pulls the masses of prototypes to equal ones instead (Kullback-Leibler), and lets them follow the
    queries.

    Args:
        support: (..., W, D) one prototype for each class, e.g. the mean of its labeled samples.
        queries: (..., Q, D) with the same leading dimensions; Q >= W.
        num_passes: Number of passes, 0 = the prototypes as they came. The authors use 5 for one shot, 1 for five.
        epsilon: Strength of the entropy term, in units of the largest squared distance of each problem.
        mix: Share of the moved prototypes, 0 to 1 (the authors: 1 for one shot, 0.7 for five).
        penalty: Weight of the penalty on the masses of prototypes, > 0, in the unit of ``epsilon``; ``math.inf`` = all
            equal. For uneven queries 0.003, with ``epsilon=0.02`` and one pass.
        num_iters: Sinkhorn iterations of a pass; None: 10 / ``epsilon``, from 200 to 5,000, since a small ``epsilon``
            needs more.
        mask: (..., Q) bool, True = valid query.

    Returns:
        (..., W, D) in the type of ``support``. A problem without a valid query keeps its prototypes.

    Raises:
        TypeError: ``support`` or ``queries`` not floating, ``mask`` not bool.
        ValueError: Wrong shape or device, fewer queries than classes, an option out of range, NaN or inf.

    Source: Poulakakis-Daktylidis and Jamali-Rad, "BECLR", ICLR 2024, arXiv 2402.02444; official code stypoumic/BECLR
    (Apache-2.0). **Differs from the authors' code**: the cost is divided by the maximum of its own episode, not of the
    batch; more iterations (theirs stop 3e-4 short); unequal masses; batched.

    Example:
        >>> support = torch.tensor([[0.0], [1.0]])
        >>> queries = torch.tensor([[1.0], [1.2], [5.0], [5.2]])
        >>> moved = align_by_transport(support, queries, num_passes=3)
        >>> [round(each, 2) for each in moved.squeeze(-1).tolist()]
        [1.1, 5.1]
    """
    _check(support, queries, mask)
    num_passes = check_count(num_passes, 'num_passes')
    epsilon = check_number(epsilon, 'epsilon', above=0)
    if num_iters is None:
        num_iters = round(min(max(_ITERS, _ITERS * _EPSILON / epsilon), _MOST_ITERS))
    num_iters = check_count(num_iters, 'num_iters', 1)
    mix = check_number(mix, 'mix', 0, 1)
    penalty = check_number(penalty, 'penalty', above=0, finite=False, hint='math.inf means equal masses')
    dtype = working_dtype(support.dtype, queries.dtype)
    with exact_products(support):
        start, x = support.detach().to(dtype), queries.detach().to(dtype)
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        moved = start
        for _ in range(num_passes):
            moved = _pass(moved, x, epsilon, penalty, num_iters, mask)
        result = start if num_passes == 0 else mix * moved + (1 - mix) * start
    return result.to(support.dtype)


def _pass(prototypes, x, epsilon, penalty, num_iters, mask) -> Tensor:
    cost = pairwise_distances(x, prototypes, metric='sqeuclidean')  # (..., Q, W)
    valid = cost if mask is None else cost.masked_fill(~mask.unsqueeze(-1), 0.0)
    largest = valid.amax((-2, -1), keepdim=True)
    scores = -valid / torch.where(largest > 0, largest, 1.0)
    options = {'epsilon': epsilon, 'num_iters': num_iters, 'mask': mask}
    if math.isinf(penalty):
        plan = sinkhorn(scores, **options)
    else:
        plan = unbalanced_transport(scores, row_penalty=math.inf, col_penalty=penalty, **options)
    total = plan.sum(-2).unsqueeze(-1)
    means = (plan.mT @ x) / torch.where(total > 0, total, 1.0)
    return torch.where(total > 0, means, prototypes)


def _check(support: Tensor, queries: Tensor, mask: Tensor | None) -> None:
    check_points(support, 'support')
    check_points(queries, 'queries')
    check_device(queries, support.device, 'queries')
    if queries.shape[:-2] != support.shape[:-2] or queries.shape[-1] != support.shape[-1]:
        wanted = (*support.shape[:-2], 'Q', support.shape[-1])
        raise ValueError(f'queries must have shape {wanted} to fit support, got {tuple(queries.shape)}')
    if queries.shape[-2] < support.shape[-2]:
        raise ValueError(
            f'queries must be at least as many as classes, {support.shape[-2]}, got {queries.shape[-2]}; '
            f'classify so few by the nearest prototype'
        )
    check_mask(mask, queries.shape[:-1], queries.device)
    check_finite(support, 'support')
    check_finite(queries, 'queries', mask)
