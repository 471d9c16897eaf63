# SPDX-License-Identifier: Apache-2.0
"""How well a clustering agrees with a group of raters who disagree among themselves."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clusterplug.core.checks import check_count
from clusterplug.functional.metrics.agreement import adjusted_rand_index

__all__ = ['group_kappa', 'point_agreement', 'williams_index']


def williams_index(candidate: Tensor, raters: Tensor | Sequence[Tensor]) -> float:
    r"""Return the mean agreement of a clustering with the raters, divided by that of the raters with each other.

    .. math::
        W = \frac{\frac{1}{R} \sum_r A(x, y_r)}{\frac{2}{R (R - 1)} \sum_{r < s} A(y_r, y_s)}, \qquad A = \text{ARI}

    Above 1 the clustering agrees with the raters better than they agree with each other: adding it to the group raises
    the agreement of the group. Noise (labels below 0) of a rater: the point is ignored wherever that rater takes part.
    Noise of the clustering: a cluster of its own for each such point, since such a point is together with none.

    Args:
        candidate: (N,) integer cluster of each point.
        raters: (R, N) integers, or a sequence of R tensors (N,); R >= 2. The order of the two arguments does not
            matter as long as one is (N,) and the other (R, N).

    Returns:
        A Python float; the larger the better. NaN where the raters do not agree better than by chance (the divisor is
        0 or below), or where a pair of raters has no point that both labeled: the index is undefined there.

    Raises:
        TypeError: A labeling is not an integer tensor.
        ValueError: Shapes do not fit, or there are fewer than two raters.

    Source: Williams, "Comparing the joint agreement of several raters with another rater", Biometrics 1976; used for
    clusterings of scatterplots as in Hartwig et al., arXiv 2304.14185 (whether the authors report this index could
    not be confirmed; official repository kopetri/HPSCAN without code or license). **Differs from the authors' code**:
    there is none. Cost: one contingency table a pair of raters, never N x N.

    Example:
        >>> raters = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 1, 1]])
        >>> round(williams_index(torch.tensor([3, 3, 5, 5, 5]), raters), 4)
        3.5
    """
    candidate, raters = _ordered(candidate, raters)
    if len(raters) < 2:
        raise ValueError(
            f'raters must be at least 2 for the Williams index, which compares with how they agree with each other, '
            f'got {len(raters)}; take group_kappa for one rater'
        )
    own = torch.where(
        candidate >= 0, candidate, candidate.amax().clamp_min(0) + 1 + torch.arange(len(candidate), device='cpu')
    )
    with_raters = [_index(own, each) for each in raters]
    among = [_index(raters[a], raters[b]) for a in range(len(raters)) for b in range(a)]
    base = sum(among) / len(among)
    return sum(with_raters) / len(with_raters) / base if base > 0 else math.nan


def group_kappa(candidate: Tensor, raters: Tensor | Sequence[Tensor], *, chunk_size: int = 2048) -> float:
    r"""Return the kappa between a clustering and a group of raters, on pairs of points.

    With x whether the clustering puts a pair together and p the share of raters who do,

    .. math::
        \kappa = \frac{\Pi_T - \Pi_E}{\Pi_M - \Pi_E}, \quad
        \Pi_T = \overline{p x + (1 - p)(1 - x)}, \quad
        \Pi_E = \bar p \bar x + (1 - \bar p)(1 - \bar x), \quad
        \Pi_M = \overline{\max(p, 1 - p)}

    1 is the best that any clustering could do with this group, 0 chance. With one rater it is Cohen's kappa of the
    pairs, which is the adjusted Rand index. Noise (labels below 0): a rater who left out one of a pair has no say in
    it, and pairs in which no rater has one are ignored; the clustering puts noise together with nothing.

    Args:
        candidate: (N,) integer cluster of each point.
        raters: (R, N) integers, or a sequence of R tensors (N,); R >= 1. The two arguments may be swapped, as in
            :func:`williams_index`.
        chunk_size: Rows of the table of different points at once. Points with the same labels from everybody are one
            row, so the table is small; the result does not depend on this.

    Returns:
        A Python float in (-inf, 1], in float64. 1 where chance and the best coincide and the clustering reaches it
        (all in one cluster for everybody), NaN where they coincide and it does not, or there is no pair.

    Raises:
        TypeError: A labeling is not an integer tensor.
        ValueError: Shapes do not fit, or there is no rater.

    Source: Vanbelle and Albert, "Agreement between an isolated rater and a group of raters", Statistica Neerlandica
    2009, on co-membership of pairs; for clusterings of scatterplots as in Hartwig et al., arXiv 2304.14185 (which
    index the authors report could not be confirmed; kopetri/HPSCAN, no code, no license). **Differs from the authors'
    code**: there is none.

    Example:
        >>> raters = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 2]])
        >>> group_kappa(torch.tensor([1, 1, 4, 4]), raters)
        1.0
    """
    candidate, raters = _ordered(candidate, raters)
    chunk_size = check_count(chunk_size, 'chunk_size', 1)
    rows, weights = torch.cat([candidate[None], raters]).T.unique(dim=0, return_counts=True)
    weights = weights.double()
    sums = torch.zeros(5, dtype=torch.float64, device='cpu')  # pairs, p, x, p x, max(p, 1 - p)
    for first in range(0, len(rows), chunk_size):
        part = rows[first : first + chunk_size]
        shared = rated = torch.zeros((), dtype=torch.float64, device=rows.device)
        for column in range(1, rows.shape[1]):
            both = (part[:, None, column] >= 0) & (rows[:, column] >= 0)
            shared = shared + (both & (part[:, None, column] == rows[:, column])).double()
            rated = rated + both.double()
        p = shared / rated.clamp_min(1)
        x = ((part[:, None, 0] == rows[:, 0]) & (part[:, None, 0] >= 0)).double()
        pairs = weights[first : first + chunk_size, None] * weights
        pairs.diagonal(first).sub_(weights[first : first + chunk_size])  # a point is no pair with itself
        pairs = torch.where(rated > 0, pairs, 0.0)
        sums += torch.stack([(pairs * each).sum() for each in (torch.ones_like(p), p, x, p * x, p.maximum(1 - p))])
    if sums[0] == 0:
        return math.nan
    share, own, both_share, best = (sums[1:] / sums[0]).tolist()
    reached, chance = 1 - share - own + 2 * both_share, share * own + (1 - share) * (1 - own)
    if best - chance <= 1e-12:
        return 1.0 if best - reached <= 1e-12 else math.nan
    return (reached - chance) / (best - chance)


def point_agreement(raters: Tensor, *, chunk_size: int = 1024) -> Tensor:
    r"""Return for each point how far raters agree on which others it belongs with.

    .. math:: a_n = \operatorname{mean}_{m \ne n} \max(q_{nm}, 1 - q_{nm})

    with q the share of raters who put n and m in one cluster, among those who labeled both.

    Args:
        raters: (..., R, N) integers; below 0 = noise, the rater has no say about pairs with that point.
        chunk_size: Rows of the N x N pairs at once.

    Returns:
        (..., N) fp32 from 0.5 to 1; 1 for one rater, and for points without a pair that anybody rated.

    Raises:
        TypeError: ``raters`` is not an integer tensor.
        ValueError: Fewer than two dimensions, or no rater.

    Source: the target of a per-point agreement in Hartwig et al., arXiv 2304.14185, as reconstructed from the
    abstract. **Differs from the authors' code**: there is none.

    Example:
        >>> point_agreement(torch.tensor([[0, 0, 1], [0, 0, 0]]))
        tensor([0.7500, 0.7500, 0.5000])
    """
    _check_labels(raters, 'raters')
    if raters.dim() < 2 or raters.shape[-2] == 0:
        raise ValueError(f'raters must have shape (..., R, N) with R >= 1, got {tuple(raters.shape)}')
    chunk_size = check_count(chunk_size, 'chunk_size', 1)
    num_points, found = raters.shape[-1], []
    columns = torch.arange(num_points, device=raters.device)
    for first in range(0, max(num_points, 1), chunk_size):
        rows = slice(first, first + chunk_size)
        shared = rated = torch.zeros((), device=raters.device)
        for labels in raters.unbind(-2):
            both = (labels[..., rows, None] >= 0) & (labels[..., None, :] >= 0)
            shared = shared + (both & (labels[..., rows, None] == labels[..., None, :])).float()
            rated = rated + both.float()
        q = shared / rated.clamp_min(1)
        counts = (rated > 0) & (columns != columns[rows, None])
        number = counts.sum(-1)
        mean = torch.where(counts, q.maximum(1 - q), 0.0).sum(-1) / number.clamp_min(1)
        found.append(torch.where(number > 0, mean, 1.0))
    return torch.cat(found, -1)


def _index(a: Tensor, b: Tensor) -> float:
    """Return the adjusted Rand index on the points that both labeled; NaN where there is none."""
    both = (a >= 0) & (b >= 0)
    return adjusted_rand_index(a[both], b[both]) if bool(both.any()) else math.nan


def _ordered(candidate: Tensor, raters: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the clustering (N,) and the raters (R, N) as int64 on the CPU."""
    one: Tensor | Sequence[Tensor] = candidate
    if isinstance(one, list | tuple) or (isinstance(one, Tensor) and one.dim() == 2):
        one, raters = raters, one
    if isinstance(raters, list | tuple):
        for number, each in enumerate(raters):
            _check_labels(each, f'raters[{number}]')
        if len({tuple(each.shape) for each in raters}) > 1:
            raise ValueError(f'raters must label the same points, got shapes {[tuple(each.shape) for each in raters]}')
        raters = torch.stack(list(raters)) if len(raters) else torch.zeros(0, 0, dtype=torch.int64, device='cpu')
    one, raters = _check_labels(one, 'candidate'), _check_labels(raters, 'raters')
    if one.dim() != 1 or raters.dim() != 2 or raters.shape[-1] != len(one) or 0 in raters.shape:
        raise ValueError(
            f'candidate must have shape (N,) and raters (R, N) with R, N >= 1, got {tuple(one.shape)} and '
            f'{tuple(raters.shape)}; score each plot by itself'
        )
    return one.cpu().long(), raters.cpu().long()


def _check_labels(labels: object, name: str) -> Tensor:
    if not isinstance(labels, Tensor):
        raise TypeError(f'{name} must be a torch.Tensor, got {type(labels).__name__}; convert it with torch.as_tensor')
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f'{name} must have an integer dtype, got {labels.dtype}; convert it with {name}.long()')
    return labels
