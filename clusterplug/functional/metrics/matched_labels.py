# SPDX-License-Identifier: Apache-2.0
"""Losses between predicted clusters and labels whose numbers mean nothing."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clusterplug.core.checks import check_choice, check_count, check_device, check_points
from clusterplug.core.numerics import exact_products, no_autocast, working_dtype
from clusterplug.functional.metrics.assignment import linear_assignment

__all__ = ['matched_cross_entropy', 'pair_loss']

_REDUCTIONS = ('mean', 'none')
_CLAMP = 1e-6


def matched_cross_entropy(
    logits: Tensor, labels: Tensor, *, noise_column: int | None = None, reduction: str = 'mean'
) -> Tensor:
    r"""Return the cross entropy of each set of points under the best one-to-one matching of labels to columns.

    .. math::
        C_{kc} = -\sum_{n: y_n = k} \log p_{nc}, \qquad \pi = \arg\min_\pi \sum_k C_{k \pi(k)}, \qquad
        L = \frac{1}{N} \sum_k C_{k \pi(k)}

    The matching has no gradient. Any renumbering of the labels of a set gives the same loss.

    Args:
        logits: (..., N, C) scores of the columns, floating; computed in fp32 at least.
        labels: (..., N) integers, any numbers from 0 on; each set (plot) has its own clusters. Below 0 = noise.
        noise_column: Column that noise belongs to and no cluster is matched to, -1 = the last one. None: points of
            noise are ignored, and N counts the others.
        reduction: 'mean' over the sets that have a point that counts, or 'none'.

    Returns:
        () for 'mean', (...) for 'none', in the type of ``logits``. A set without a point that counts is 0. A set with
        NaN in a row that counts, or +inf, is NaN; other sets are not touched by it. The costs of all sets go to the
        host in one copy: one synchronization a call.

    Raises:
        TypeError: ``logits`` is not floating, ``labels`` not integer.
        ValueError: Shapes, devices or options do not fit, or a set has more clusters than there are columns for them.

    Source: Hartwig et al., "ClusterNet: A Perception-Based Clustering Model for Scattered Data", arXiv 2304.14185;
    the loss is a reconstruction of what the abstract says, since the official repository (kopetri/HPSCAN, no license)
    holds no code. Matching: Kuhn 1955. **Differs from the authors' code**: there is none to compare with.

    Example:
        >>> logits = torch.tensor([[0.0, 5.0], [0.0, 5.0], [5.0, 0.0]])
        >>> round(matched_cross_entropy(logits, torch.tensor([7, 7, 3])).item(), 4)
        0.0067
    """
    _check(logits, labels, logits.shape[:-1] if isinstance(logits, Tensor) else ())
    check_choice(reduction, 'reduction', _REDUCTIONS)
    num_columns = logits.shape[-1]
    if noise_column is not None:
        noise_column = check_count(noise_column, 'noise_column', -num_columns, num_columns - 1) % num_columns
    columns = [column for column in range(num_columns) if column != noise_column]
    lead, num_points = logits.shape[:-2], logits.shape[-2]
    with exact_products(logits):
        log_p = logits.to(working_dtype(logits.dtype)).log_softmax(-1).reshape(math.prod(lead), num_points, num_columns)
        flat = labels.reshape(math.prod(lead), num_points).long()
        index = _dense_numbers(flat)
        target = _best_columns(log_p.detach(), index, columns)
        counts = index >= 0
        if noise_column is not None:
            target = torch.where(counts, target, noise_column)
            counts = torch.ones_like(counts)
        picked = log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        number = counts.sum(-1)
        losses = -torch.where(counts, picked, 0.0).sum(-1) / number.clamp_min(1)
        return _reduced(losses, number > 0, lead, reduction).to(logits.dtype)


def pair_loss(logits: Tensor, labels: Tensor, *, reduction: str = 'mean', chunk_size: int = 1024) -> Tensor:
    r"""Return the binary cross entropy of whether two points are in one cluster, over all pairs of each set.

    .. math::
        P_{nm} = \langle p_n, p_m \rangle, \qquad
        L = -\operatorname{mean}_{n \ne m} \left[ T_{nm} \log P_{nm} + (1 - T_{nm}) \log (1 - P_{nm}) \right]

    with p the softmax of the logits, P clamped to [1e-6, 1 - 1e-6], and T the share of raters who put both points in
    one cluster (for one rater, whether the labels are equal).

    Args:
        logits: (..., N, C) scores of the columns, floating; computed in fp32 at least.
        labels: (..., N) integers, or (..., R, N) of R raters. Below 0 = noise: pairs with it are ignored, of each
            rater by itself.
        reduction: 'mean' over the sets that have a pair that counts, or 'none'.
        chunk_size: Rows of the N x N pairs at once; more than one part is computed again in the backward pass.

    Returns:
        () for 'mean', (...) for 'none', in the type of ``logits``; 0 for a set without a pair. A set with NaN is NaN,
        others are not touched by it. No host synchronization.

    Raises:
        TypeError: ``logits`` is not floating, ``labels`` not integer.
        ValueError: Shapes, devices or options do not fit.

    Source: Hartwig et al., arXiv 2304.14185; a reconstruction, as :func:`matched_cross_entropy`. The target of several
    raters needs no drawing of one. **Differs from the authors' code**: there is none to compare with.

    Example:
        >>> logits = 20 * torch.eye(3)[torch.tensor([1, 1, 0])]
        >>> pair_loss(logits, torch.tensor([0, 0, 1])).item() < 1e-5
        True
    """
    several = isinstance(labels, Tensor) and isinstance(logits, Tensor) and labels.dim() == logits.dim()
    shape = logits.shape[:-1] if isinstance(logits, Tensor) else ()
    _check(logits, labels, (*shape[:-1], labels.shape[-2], *shape[-1:]) if several else shape)
    check_choice(reduction, 'reduction', _REDUCTIONS)
    chunk_size = check_count(chunk_size, 'chunk_size', 1)
    lead, num_points = logits.shape[:-2], logits.shape[-2]
    with exact_products(logits):
        p = logits.to(working_dtype(logits.dtype)).softmax(-1).reshape(math.prod(lead), num_points, logits.shape[-1])
        raters = labels.reshape(math.prod(lead), labels.shape[-2] if several else 1, num_points)
        total, number = p.new_zeros(len(p)), p.new_zeros(len(p))
        for first in range(0, num_points, chunk_size):
            if num_points > chunk_size and p.requires_grad and torch.is_grad_enabled():
                part = checkpoint(_pair_rows, p, raters, first, chunk_size, use_reentrant=False)
            else:
                part = _pair_rows(p, raters, first, chunk_size)
            total, number = total + part[0], number + part[1]
        return _reduced(total / number.clamp_min(1), number > 0, lead, reduction).to(logits.dtype)


def _pair_rows(p: Tensor, raters: Tensor, first: int, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Return the sum of the loss over some rows of pairs, and the number of pairs that count: two (B,)."""
    with no_autocast(p):
        rows = slice(first, first + chunk_size)
        num_rows, num_points = p[:, rows].shape[1], p.shape[1]
        together, rated = p.new_zeros(()), p.new_zeros(())
        for labels in raters.unbind(1):  # of raters there are a few
            valid = labels >= 0
            both = valid[:, rows, None] & valid[:, None]
            together = together + (both & (labels[:, rows, None] == labels[:, None]))
            rated = rated + both.to(p.dtype)
        itself = torch.arange(num_points, device=p.device) == torch.arange(num_rows, device=p.device)[:, None] + first
        counts = (rated > 0) & ~itself
        share = together / rated.clamp_min(1)
        q = (p[:, rows] @ p.mT).clamp(_CLAMP, 1 - _CLAMP)
        loss = -(share * q.log() + (1 - share) * (1 - q).log())
        return torch.where(counts, loss, 0.0).sum((1, 2)), counts.sum((1, 2)).to(p.dtype)


def _dense_numbers(labels: Tensor) -> Tensor:
    """Number the labels of each row (B, N) from 0 on, in ascending order; those below 0 become -1."""
    ordered, order = labels.sort(-1)
    new = (ordered[:, 1:] != ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    first = ordered[:, :1] >= 0
    number = torch.cat([first, new], 1).long().cumsum(-1) - 1
    number = torch.where(ordered >= 0, number, -1)
    return torch.empty_like(labels).scatter_(-1, order, number)


@torch.no_grad()
def _best_columns(log_p: Tensor, index: Tensor, columns: list[int]) -> Tensor:
    """Return the column that each point's cluster is matched to, (B, N); of noise any."""
    num_clusters = len(columns)
    if log_p.numel() == 0 or num_clusters == 0:
        if num_clusters == 0 and bool((index >= 0).any()):
            raise ValueError('labels must hold noise alone where logits have the noise column alone; add columns')
        return torch.zeros_like(index)
    # One more row for what has no column, and one more column for the number of points.
    slot = torch.where(index >= 0, index.clamp(max=num_clusters), num_clusters + 1)
    member = F.one_hot(slot, num_clusters + 2)[..., :-1].to(log_p.dtype)
    worst = torch.finfo(log_p.dtype).min / (4 * log_p.shape[1])
    picked = log_p if num_clusters == log_p.shape[-1] else log_p[..., columns]
    values = torch.cat(
        [-picked.nan_to_num(nan=0.0, neginf=worst).clamp_min(worst), torch.ones_like(log_p[..., :1])], -1
    )
    table = (member.mT @ values).cpu()
    if bool((table[:, -1, -1] > 0).any()):
        most = [int(index[number].max()) + 1 for number in (table[:, -1, -1] > 0).nonzero().flatten().tolist()]
        raise ValueError(
            f'labels must hold at most {num_clusters} clusters in a set, a column for each, got {max(most)}; take more '
            f'columns or fewer clusters'
        )
    matched = linear_assignment(table[:, :-1, :-1]).cols.to(index.device)
    matched = torch.tensor(columns, device=index.device)[matched]
    return matched.gather(-1, index.clamp(0))


def _reduced(losses: Tensor, counts: Tensor, lead: tuple, reduction: str) -> Tensor:
    """Return the losses in the shape of the sets, or the mean of those that count."""
    if reduction == 'none':
        return losses.reshape(lead)
    return torch.where(counts, losses, 0.0).sum() / counts.sum().clamp_min(1)


def _check(logits: Tensor, labels: Tensor, shape: tuple) -> None:
    check_points(logits, 'logits', allow_empty=True)
    if logits.shape[-1] == 0:
        raise ValueError(f'logits must have at least one column, got shape {tuple(logits.shape)}')
    if not isinstance(labels, Tensor):
        raise TypeError(f'labels must be a torch.Tensor, got {type(labels).__name__}; convert it with torch.as_tensor')
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f'labels must have an integer dtype, got {labels.dtype}; convert it with labels.long()')
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(
            f'labels must have shape {tuple(shape)}, one for each row of logits, got {tuple(labels.shape)}'
        )
    check_device(labels, logits.device, 'labels')
