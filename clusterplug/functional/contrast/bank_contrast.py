# SPDX-License-Identifier: Apache-2.0
"""Contrast of anchors with equal-sized rings of remembered keys, in one in-place (A, S*T) buffer."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from clusterplug.core.checks import check_mask, check_points
from clusterplug.core.constants import arange, constant
from clusterplug.core.numerics import working_dtype
from clusterplug.functional.contrast.subclass_contrast import NEVER, absent_logit, check_rows, check_temperature

# Largest (rows, S*T) buffer of logits held at once; more anchors are taken in several passes.
_MAX_BYTES = 256 * 2**20


def _one_pass(anchors, ids, keys, bias, slots, temperature, absent):
    """Values (A,), number of positives (A,) and the gradient of each value with respect to ``anchor / temperature``.

    ``bias`` (S*T,) is minus the largest possible logit for a filled slot, so that exp never overflows, and ``absent``
    for an empty one. The GEMM adds it at no further pass over the logits.
    """
    logits = torch.addmm(bias, anchors, keys.mT, alpha=1 / temperature)
    own_columns = (ids * len(slots))[:, None] + slots
    own = logits.gather(1, own_columns)
    logits.scatter_(1, own_columns, absent)
    # filled slots have logits from -2 / temperature to 0
    filled = own >= absent / 2 - 1 / temperature
    count = filled.sum(1, keepdim=True)
    total = logits.exp_().sum(1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).tiny)
    gap = torch.where(filled, total.log() - own, constant(NEVER, own.dtype, own.device))
    share = count.clamp(min=1)
    values = F.softplus(gap).sum(1) / share[:, 0]
    # d value / d logit: sigmoid(gap) spread over the negatives by their softmax, and - sigmoid(gap) at each positive
    push = torch.sigmoid(gap).div_(share)
    logits.mul_(push.sum(1, keepdim=True).div_(total))
    logits.scatter_(1, own_columns, push.neg_())
    return values, count[:, 0], torch.mm(logits, keys)


def _one_sampled_pass(anchors, ids, bank, empty, negatives, temperature, absent):
    """As :func:`_one_pass`, with the slots ``negatives`` of every ring as negatives and all own slots as positives."""
    few, width = negatives.shape[0], bank.shape[1]
    keys = bank.index_select(1, negatives).flatten(0, 1)
    # each sampled negative stands for width / few of them
    bias = constant(math.log(width / few) - 1 / temperature, anchors.dtype, anchors.device)
    bias = bias.masked_fill(empty.index_select(1, negatives).flatten(), absent)
    logits = torch.addmm(bias, anchors, keys.mT, alpha=1 / temperature)
    logits.scatter_(1, (ids * few)[:, None] + arange(few, ids.device), absent)
    own_keys, empty = bank[ids], empty[ids]
    own = torch.bmm(own_keys, anchors[:, :, None])[..., 0] / temperature - 1 / temperature
    count = width - empty.sum(1, keepdim=True)
    total = logits.exp_().sum(1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).tiny)
    gap = (total.log() - own).masked_fill_(empty, NEVER)
    share = count.clamp(min=1)
    values = F.softplus(gap).sum(1) / share[:, 0]
    push = torch.sigmoid(gap).div_(share)
    grad = torch.mm(logits.mul_(push.sum(1, keepdim=True).div_(total)), keys)
    return values, count[:, 0], grad.sub_(torch.bmm(push[:, None], own_keys)[:, 0])


class _BankContrast(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchors, ids, bank, empty, temperature, negatives):
        if negatives is not None:
            absent = absent_logit(temperature) - 1 / temperature
            row = bank.shape[0] * len(negatives) + bank.shape[1] * bank.shape[2]
            rows = max(1, _MAX_BYTES // max(1, row * anchors.element_size()))
            parts = [
                _one_sampled_pass(a, i, bank, empty, negatives, temperature, absent)
                for a, i in zip(anchors.split(rows), ids.split(rows), strict=True)
            ]
            values, count, grad = parts[0] if len(parts) == 1 else (torch.cat(part) for part in zip(*parts))
            ctx.save_for_backward(grad)
            ctx.temperature = temperature
            ctx.mark_non_differentiable(count)
            return values, count
        slots = arange(bank.shape[1], ids.device)
        keys = bank.flatten(0, 1)
        absent = absent_logit(temperature) - 1 / temperature
        bias = constant(-1 / temperature, anchors.dtype, anchors.device).masked_fill(empty.flatten(), absent)
        rows = max(1, _MAX_BYTES // max(1, keys.shape[0] * anchors.element_size()))
        if anchors.shape[0] <= rows:
            values, count, grad = _one_pass(anchors, ids, keys, bias, slots, temperature, absent)
        else:
            parts = [
                _one_pass(a, i, keys, bias, slots, temperature, absent)
                for a, i in zip(anchors.split(rows), ids.split(rows), strict=True)
            ]
            values, count, grad = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(grad)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(count)
        return values, count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_values, _):
        (grad,) = ctx.saved_tensors
        return grad * (grad_values / ctx.temperature)[:, None], None, None, None, None, None


def bank_contrast_terms(
    anchors: Tensor,
    ids: Tensor,
    bank: Tensor,
    empty: Tensor,
    *,
    temperature: float,
    negatives: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Contrast each anchor with a bank of ``T`` slots for each of ``S`` subclasses.

    The same value as :func:`~clusterplug.functional.subclass_contrast` with the vectors in the bank as keys, but the
    (A, S*T) logits exist once, in place, and nothing of that size is kept for backward: the gradient with respect to
    the anchors is formed in the same pass (one more GEMM), as every term of it is at hand then.

    Args:
        anchors: (A, D) unit rows, floating; computed in fp32 at least.
        ids: (A,) int64 subclass of each anchor; anchors of no subclass name one whose slots are all empty.
        bank: (S, T, D) unit rows; gets no gradient.
        empty: (S, T) bool, True = the slot holds no vector.
        temperature: divides the dot products; from 0.025 on for full accuracy in fp32.
        negatives: (n,) int64 different slots, n <= T: of every ring only these are negatives, each counted T / n
            times (right in the mean over random slots), while all slots of the own ring are positives; None: all.

    Returns:
        ``(values, num_positives)``, both (A,), values in the dtype of ``anchors``; a value is 0 where there is no
        positive. No host synchronization.
        The gradient reaches ``anchors`` only, and can be taken once (no double backward).

    Raises:
        TypeError: ``anchors`` or ``bank`` not floating, ``ids`` not integer, ``empty`` not bool.
        ValueError: shapes, devices or temperature that do not fit.

    Source: as :func:`~clusterplug.functional.subclass_contrast`, the point-to-queue term.

    Differs from the authors' code: theirs builds about five (A, S*T) temporaries (logits, exp, masks).

    Example:
        >>> bank = torch.eye(2)[:, None].repeat(1, 3, 1)  # two subclasses with three equal keys each
        >>> empty = torch.zeros(2, 3, dtype=torch.bool)
        >>> values, count = bank_contrast_terms(torch.eye(2), torch.tensor([0, 1]), bank, empty, temperature=0.1)
        >>> count
        tensor([3, 3])
    """
    check_rows(anchors, ids, 'anchors', 'ids')
    check_points(bank, 'bank')
    if bank.dim() != 3 or bank.shape[2] != anchors.shape[1]:
        raise ValueError(f'bank must have shape (S, T, {anchors.shape[1]}), got {tuple(bank.shape)}')
    check_mask(empty, bank.shape[:2], bank.device, 'empty')
    check_temperature(temperature)
    dtype = working_dtype(anchors.dtype, bank.dtype)
    values, count = _BankContrast.apply(anchors.to(dtype), ids, bank.to(dtype), empty, temperature, negatives)
    return values.to(anchors.dtype), count
