# SPDX-License-Identifier: Apache-2.0
"""Probability of a negative that spreads the distances of drawn pairs evenly."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_mask, check_number
from clusterplug.core.numerics import no_autocast, on_host, working_dtype

__all__ = ['distance_weights']


def distance_weights(
    distances: Tensor,
    dim: int | Tensor,
    *,
    mask: Tensor | None = None,
    cutoff: float = 0.5,
    max_distance: float = 1.4,
) -> Tensor:
    r"""Return the probability with which each candidate is drawn as a negative: inverse to the density of distances.

    .. math:: w \propto 1 / q(D), \qquad
              \log q(D) = (d - 2) \log D + \tfrac{d - 3}{2} \log\left(1 - \tfrac{D^2}{4}\right).

    q is the density of the distance of two random points of the unit sphere in d dimensions, which piles up at
    sqrt(2); drawn with 1 / q, the distances of negatives are spread evenly.

    Args:
        distances: (..., N) Euclidean distances of unit vectors, 0 to 2, floating; each row is one distribution.
        dim: d, dimension of the vectors, at least 2; an integer tensor (...) has one for each row.
        mask: (..., N) bool, True = candidate; None: all.
        cutoff: Smaller distances count as this one, so that a few close pairs do not take all draws.
        max_distance: Candidates beyond have probability 0: they are separated already.

    Returns:
        (..., N) in the type of ``distances``. Every row sums to 1, or is all 0 where no candidate is within
        ``max_distance``. Candidates of a distance that is NaN have probability 0.

    Raises:
        TypeError: ``distances`` is not floating, ``mask`` not bool.
        ValueError: ``dim`` below 2, limits outside 0 < cutoff <= max_distance < 2, a mask of another shape.

    Source: Wu et al., "Sampling Matters in Deep Embedding Learning", ICCV 2017, section 3.2 (arXiv 1706.07567), values
    as there; used by Adiga et al. (arXiv 2206.09068). **Differs from the authors' code**: the log weights are shifted
    by their maximum among the candidates, not among all distances, so that no row underflows.

    Example:
        >>> distance_weights(torch.tensor([[0.1, 0.5, 1.0, 1.5]]), 3)
        tensor([[0.4000, 0.4000, 0.2000, 0.0000]])
    """
    if not isinstance(distances, Tensor) or not distances.is_floating_point() or distances.dim() < 1:
        got = f'{distances.dtype} {tuple(distances.shape)}' if isinstance(distances, Tensor) else type(distances)
        raise TypeError(f'distances must be a floating tensor (..., N), got {got}')
    dims = _dims(dim, distances)
    max_distance = check_number(max_distance, 'max_distance', above=0, most=1.999)
    cutoff = check_number(cutoff, 'cutoff', above=0, most=max_distance)
    check_mask(mask, tuple(distances.shape), distances.device)
    with no_autocast(distances):
        d = distances.detach().to(working_dtype(distances.dtype))
        allowed = d <= max_distance  # NaN is not
        if mask is not None:
            allowed = allowed & mask
        d = torch.where(allowed, d, 1.0).clamp(min=cutoff)
        log_weights = (2 - dims) * d.log() - (dims - 3) / 2 * torch.log1p(-d.square() / 4)
        log_weights = log_weights.masked_fill(~allowed, -torch.inf)
        peak = log_weights.amax(-1, keepdim=True) if d.shape[-1] else log_weights.sum(-1, keepdim=True)
        weights = (log_weights - torch.where(peak > -torch.inf, peak, 0.0)).exp()
        total = weights.sum(-1, keepdim=True)
        return (weights / torch.where(total > 0, total, 1.0)).to(distances.dtype)


def _dims(dim: int | Tensor, distances: Tensor) -> int | Tensor:
    """Return the dimension, or those of the rows as a column."""
    if not isinstance(dim, Tensor):
        return check_count(dim, 'dim', 2)
    if dim.is_floating_point() or dim.shape != distances.shape[:-1]:
        raise ValueError(
            f'dim must be an int or integers {tuple(distances.shape[:-1])}, got {dim.dtype} {tuple(dim.shape)}'
        )
    if on_host(dim) and dim.numel() and bool((dim < 2).any()):
        raise ValueError(f'dim must be at least 2, got {int(dim.min())}')
    return dim.unsqueeze(-1)
