# SPDX-License-Identifier: Apache-2.0
"""Soft assignments of samples to prototypes that use all prototypes about equally: the codes of SwAV."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.checks import check_mask
from clusterplug.core.numerics import no_autocast, working_dtype
from clusterplug.functional.transport._sinkhorn_checks import check_options
from clusterplug.functional.transport._sinkhorn_problem import largest_score
from clusterplug.functional.transport.sinkhorn import sinkhorn

__all__ = ['balanced_codes']


@torch.no_grad()
def balanced_codes(scores: Tensor, *, epsilon: float, num_iters: int, mask: Tensor | None = None, group=None) -> Tensor:
    r"""Return the conditional plan of :func:`sinkhorn`: rows that sum to 1, columns of about equal sums.

    .. math:: Q = \mathrm{diag}(u)\, e^{S / \epsilon}\, \mathrm{diag}(v), \qquad
              v \leftarrow 1 / (E^\top u), \quad u \leftarrow 1 / (E v), \quad u_0 = 1.

    Prototypes first, samples last: after few iterations the rows sum to 1 exactly and the columns only about. No
    gradient passes, which is how the codes are used. The number of samples cancels out, so that over ranks an
    iteration is one collective of K numbers a problem, whatever number of rows each rank has, and nothing else.

    Args:
        scores: (..., N, K), floating, any finite values; computed in fp32 or better. N = 0 is allowed with ``group``.
        epsilon: strength of the entropy term, > 0; towards 0 the rows become one-hot, towards infinity uniform.
        num_iters: iterations, >= 1.
        mask: (..., N) bool, True = valid row; other rows are 0 in the result and may hold NaN.
        group: torch.distributed group that the rows are spread over; every rank calls with the same K and batch shape.

    Returns:
        (..., N, K) in the type of ``scores``.

    Raises:
        ValueError, TypeError: as :func:`sinkhorn`.

    Source: Caron et al., NeurIPS 2020, arXiv 2006.09882, section 3.1. **Differs from the authors' code**: the same
    numbers after the same iterations, without the division by the global sum (one collective), without overflow for
    raw logits, and right where ranks hold different numbers of rows.

    Example:
        >>> codes = balanced_codes(torch.tensor([[0.9, 0.1], [0.8, 0.3]]), epsilon=0.05, num_iters=3)
        >>> codes.sum(1)
        tensor([1.0000, 1.0000])
        >>> codes.argmax(1)  # one each, though both rows like the first column better
        tensor([0, 1])
    """
    epsilon, num_iters = check_options(scores, epsilon, num_iters, group)
    check_mask(mask, scores.shape[:-1], scores.device)
    with no_autocast(scores):
        x = scores.detach().to(working_dtype(scores.dtype))
        if group is not None:
            codes = _over_ranks(x, epsilon, num_iters, mask, group)
        else:
            codes = sinkhorn(x, epsilon=epsilon, num_iters=num_iters, mask=mask)
            codes = codes.mul_(x.shape[-2]) if mask is None else F.normalize(codes, p=1, dim=-1)
    return codes.to(scores.dtype)


def _over_ranks(x: Tensor, epsilon: float, num_iters: int, mask: Tensor | None, group) -> Tensor:
    """Codes of the rows of this rank."""
    bound = largest_score(epsilon)
    x = x.clamp(-bound, bound)
    maxima = x.amax(-1, keepdim=True)
    if mask is not None:
        maxima = torch.where(mask[..., None], maxima, -bound)
    logits = (x - maxima) / epsilon
    # The first column sums weigh each row by exp(its maximum / epsilon). The maxima are kept apart, as adding them
    # would cost the small differences inside a row their digits; the largest one of each rank travels with the sums.
    peak = F.pad(maxima, (0, 0, 0, 1), value=-bound).amax(-2, keepdim=True)
    sums = _log_column_sums(logits + (maxima - peak) / epsilon, mask)
    every = _gather(torch.cat([sums, peak], -1), group)
    sums, peaks = every[..., :-1], every[..., -1:]
    logits = logits - torch.logsumexp(sums + (peaks - peaks.amax(0)) / epsilon, 0)
    for _ in range(num_iters - 1):
        logits = logits.log_softmax(-1)
        logits = logits - torch.logsumexp(_gather(_log_column_sums(logits, mask), group), 0)
    codes = logits.softmax(-1)
    return codes if mask is None else torch.where(mask[..., None], codes, 0.0)


def _log_column_sums(logits: Tensor, mask: Tensor | None) -> Tensor:
    """(..., 1, K) logarithms of the column sums over valid rows, -inf without one."""
    if mask is not None:
        logits = torch.where(mask[..., None], logits, -torch.inf)
    return torch.logsumexp(logits, -2, keepdim=True)


def _gather(values: Tensor, group) -> Tensor:
    """``values`` of all ranks of the group, stacked."""
    values = values.contiguous()
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, values, group=group)
    return torch.stack(parts)
