# SPDX-License-Identifier: Apache-2.0
"""Which unit of one network is which of another."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_choice
from clusterplug.functional.metrics.assignment import linear_assignment

__all__ = ['match_units']

METHODS = ('bipartite', 'semi')


@torch.no_grad()
def match_units(corr: Tensor, method: str = 'bipartite', *, absolute: bool = False) -> Tensor:
    r"""Return for every unit of one network its partner in another.

    .. math:: \text{bipartite: } \max_\pi \sum_i c_{i \pi(i)} \ (\pi \text{ one-to-one}), \qquad
              \text{semi: } j(i) = \arg\max_j c_{ij} .

    The mean correlation of the semi-matching is never below that of the bipartite one.

    Args:
        corr: (..., C, D) from :func:`unit_correlation` or :func:`unit_mutual_information`, floating.
        method: ``'bipartite'``: every unit is used at most once, the sum is the largest possible. ``'semi'``: the best
            unit for each, which several may share.
        absolute: Match by \|c\|.

    Returns:
        (..., C) int64, columns of ``corr``; -1 where a unit has no partner: with ``'bipartite'`` those left over where
        C > D, with ``'semi'`` units of which all entries are 0 (dead). Dead columns are nobody's best.

    Raises:
        TypeError: ``corr`` is not floating.
        ValueError: Fewer than two dimensions, no units, NaN or infinity, an unknown method.

    Source: Li et al., "Convergent learning", ICLR 2016, arXiv 1511.07543, section 3.1; official code
    YixuanLi/convergent_learning (GPL-3.0; reimplemented from the paper). **Differs from the authors' code**: scipy's
    linear assignment instead of a matching of general graphs in Python.

    Example:
        >>> corr = torch.tensor([[0.9, 0.8], [0.8, 0.1]])
        >>> match_units(corr), match_units(corr, 'semi')
        (tensor([1, 0]), tensor([0, 0]))
    """
    if not isinstance(corr, Tensor) or not corr.is_floating_point():
        raise TypeError(f'corr must be a floating tensor, got {getattr(corr, "dtype", type(corr).__name__)}')
    if corr.dim() < 2 or 0 in corr.shape[-2:]:
        raise ValueError(f'corr must have shape (..., C, D) with units in both, got {tuple(corr.shape)}')
    check_choice(method, 'method', METHODS)
    if not bool(torch.isfinite(corr).all()):
        raise ValueError('corr must be finite, got NaN or infinity; unit_correlation gives 0 for dead units')
    corr = corr.detach().abs() if absolute else corr.detach()
    if method == 'semi':
        live = corr != 0
        best = corr.masked_fill(~live.any(-2, keepdim=True), -torch.inf).argmax(-1)
        return torch.where(live.any(-1), best, -1)
    rows, cols = linear_assignment(corr, maximize=True)
    return torch.full(corr.shape[:-1], -1, device=corr.device).scatter(-1, rows, cols)
