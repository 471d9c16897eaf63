# SPDX-License-Identifier: Apache-2.0
"""InfoNCE over any scores: which keys are positives and which are candidates are two masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.checks import check_device, check_mask, check_number
from clusterplug.core.numerics import host_checks_allowed, no_autocast, working_dtype

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def info_nce(scores: Tensor, positive: Tensor, candidate: Tensor | None = None, *, temperature: float) -> Tensor:
    r"""Return one contrastive loss an anchor, from its scores with all keys.

    .. math::
        L_i = \frac{1}{|P_i|} \sum_{p \in P_i} \Big[ \log \sum_{c \in C_i \cup \{p\}} e^{s_{ic} / \tau} - s_{ip} / \tau
        \Big]

    A positive always stands in its own denominator; the other positives of the anchor do only where they are
    candidates. So NT-Xent, the symmetric form, several positives and neighbor graphs are masks over one function:

    - ``candidate=None``: all keys are candidates (SupCon's outer mean).
    - candidates = everything but the anchor itself: NT-Xent.
    - candidates = the negatives only: each positive against the negatives, not against other positives (SimLAP).

    Args:
        scores: (..., A, M) similarities, not yet divided by the temperature.
        positive: (..., A, M) bool, True = positive of the anchor; or (..., A) integers, the key that is its only
            positive, below 0 = none.
        candidate: (..., A, M) bool, True = takes part in the denominator. Scores that are neither positive nor
            candidate may be anything, NaN too.
        temperature: Divides the scores.

    Returns:
        (..., A) losses in the type of ``scores``, computed in fp32 at least. 0 for an anchor without positives, and for
        one whose positive has no competitor. NaN or infinity among the scores of an anchor that count stays in its
        loss. No host synchronization.

    Raises:
        TypeError: A tensor of another kind.
        ValueError: Shapes, devices or a temperature that do not fit.

    Source: van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", arXiv 1807.03748;
    several positives: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, arXiv 2004.11362, equation 2.

    Example:
        >>> scores = torch.tensor([[1.0, 0.0, 0.0]])
        >>> round(info_nce(scores, torch.tensor([0]), temperature=1.0).item(), 4)  # log(1 + 2 / e)
        0.5514
    """
    temperature = check_number(temperature, 'temperature', above=0)
    positive = _check_keys(scores, positive, candidate)
    dtype = working_dtype(scores.dtype)
    if 0 in scores.shape[-2:]:
        return scores.sum(-1)
    with no_autocast(scores):
        never = torch.finfo(dtype).min / 4
        member = positive if candidate is None else positive | candidate
        logits = scores.to(dtype) / temperature
        if candidate is not None:
            logits = logits.masked_fill(~member, never)
        # relative to the largest, so that a small loss keeps its digits; the loss does not change with a shift of a row
        logits = logits - logits.detach().amax(-1, keepdim=True).clamp(min=never)
        if candidate is None:
            terms = logits.logsumexp(-1, keepdim=True) - logits
        else:
            rivals = logits.masked_fill(~candidate, never).logsumexp(-1, keepdim=True)
            terms = torch.where(candidate, rivals - logits, F.softplus(rivals - logits))
        total = terms.masked_fill(~positive, 0.0).sum(-1)
        return (total / positive.sum(-1).clamp(min=1)).to(scores.dtype)


def _check_keys(scores: Tensor, positive: Tensor, candidate: Tensor | None) -> Tensor:
    """Check the shapes, and return the positives as a mask."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f'scores must be a floating tensor (..., A, M), got {got}; convert it with scores.float()')
    if scores.dim() < 2:
        raise ValueError(f'scores must have shape (..., A, M), got {tuple(scores.shape)}; add the missing dimension')
    check_mask(candidate, scores.shape, scores.device, 'candidate')
    if isinstance(positive, Tensor) and positive.dtype in _INTEGERS:
        if positive.shape != scores.shape[:-1]:
            raise ValueError(
                f'positive must have shape {tuple(scores.shape[:-1])} as indices or {tuple(scores.shape)} as a mask, '
                f'got {tuple(positive.shape)}'
            )
        check_device(positive, scores.device, 'positive')
        if not host_checks_allowed(scores):
            torch._assert_async((positive < scores.shape[-1]).all())
        elif positive.numel() and int(positive.max()) >= scores.shape[-1]:
            raise ValueError(
                f'positive must be below the number of keys, {scores.shape[-1]}, got {int(positive.max())}'
            )
        return positive[..., None] == torch.arange(scores.shape[-1], device=scores.device)
    if positive is None:
        raise TypeError('positive must be a bool tensor (True = positive) or integer indices, got NoneType')
    check_mask(positive, scores.shape, scores.device, 'positive')
    return positive
