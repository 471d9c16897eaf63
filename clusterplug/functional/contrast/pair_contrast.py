# SPDX-License-Identifier: Apache-2.0
"""Contrast of anchors with each other, by subclass, with one buffer for all pairs."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from clusterplug.core.constants import constant
from clusterplug.core.numerics import working_dtype
from clusterplug.functional.contrast.subclass_contrast import NEVER, absent_logit, check_temperature

# Largest buffer of logits held at once (backward holds two); more classes of anchors are taken in several passes.
_MAX_BYTES = 256 * 2**20
# Up to this size the buffer is kept for backward, else made again there.
_MAX_KEPT_BYTES = 64 * 2**20


class _Problem:
    """What all passes share."""

    def __init__(self, ids, keys, key_ids, no_key, temperature, self_offset, self_is_negative):
        self.ids, self.keys, self.key_ids, self.no_key = ids, keys, key_ids, no_key.flatten()
        self.temperature, self.self_is_negative, self.others = temperature, self_is_negative, None
        # what stands for "no key" lies far below any logit, once the largest possible one is taken off
        self.absent = absent_logit(temperature) - 1 / temperature
        self.bias = constant(-1 / temperature, keys.dtype, keys.device).masked_fill(self.no_key, self.absent)
        if self_offset is not None:
            self.others = _others(ids.shape[1], keys.shape[1], self_offset, ids.device)

    def block(self, logits: Tensor, classes: slice) -> Tensor:
        """View (c, V, B) of logits (c V, C B) of some classes: the pairs within a class."""
        pairs = logits.view(classes.stop - classes.start, self.ids.shape[1], *self.keys.shape[:2])
        return pairs[:, :, classes].diagonal(0, 0, 2).movedim(2, 0)

    def one_pass(self, anchors: Tensor, classes: slice) -> tuple[Tensor, ...]:
        """For some classes.

        Returns:
            values (c, V); numbers of positives (c, V); exp of the logits of negatives (c V, C B), nearly 0 elsewhere;
            their sums (c V, 1); log of the sum less the logit for each positive (c, V, B), far below 0 elsewhere.
        """
        logits = torch.addmm(self.bias, anchors.flatten(0, 1), self.keys.flatten(0, 1).mT, alpha=1 / self.temperature)
        block = self.block(logits, classes)
        own = block.clone()
        same = positive = self.ids[classes, :, None] == self.key_ids[classes, None]
        if self.others is not None:
            positive = same & self.others
        block.masked_fill_(positive if self.self_is_negative else same, self.absent)
        total = logits.exp_().sum(1, keepdim=True)
        if self.absent < -99:
            total.clamp_(min=torch.finfo(logits.dtype).tiny)  # their exp is 0, and there may be nothing else
        never = constant(NEVER, logits.dtype, logits.device)
        gap = torch.where(positive, total.log().view(*own.shape[:2], 1) - own, never)
        count = positive.sum(2)
        return F.softplus(gap).sum(2) / count.clamp(min=1), count, logits, total, gap

    def slopes(self, classes: slice, count: Tensor, exponentials: Tensor, total: Tensor, gap: Tensor) -> Tensor:
        """Slope of each value with respect to its logits, (c V, C B)."""
        # sigmoid(gap) spread over the negatives by their softmax, and - sigmoid(gap) at each positive
        push = torch.sigmoid(gap).div_(count.clamp(min=1)[..., None])
        slopes = exponentials * (push.sum(2).view(-1, 1) / total)
        self.block(slopes, classes).sub_(push)
        return slopes


@lru_cache(maxsize=64)
def _others(anchors: int, keys: int, offset: int, device: torch.device) -> Tensor:
    """(V, B) bool that must not be written to: False where the key is the anchor."""
    with torch.inference_mode(False):
        return torch.arange(keys, device=device) != torch.arange(anchors, device=device)[:, None] + offset


def _slices(number: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, number)) for start in range(0, number, size)]


class _PairContrast(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchors, ids, keys, key_ids, no_key, settings):
        problem = _Problem(ids, keys, key_ids, no_key, *settings)
        row = anchors.shape[1] * keys.shape[0] * keys.shape[1] * keys.element_size()
        ctx.classes = max(1, _MAX_BYTES // max(1, row))
        ctx.kept = any(ctx.needs_input_grad) and row * len(anchors) <= min(_MAX_KEPT_BYTES, _MAX_BYTES)
        parts = []
        for classes in _slices(len(anchors), ctx.classes):
            results = problem.one_pass(anchors[classes], classes)
            parts.append(results if ctx.kept else results[:2])
        values, count = parts[0][:2] if len(parts) == 1 else (torch.cat(each) for each in zip(*parts))
        ctx.settings = settings
        ctx.save_for_backward(anchors, ids, keys, key_ids, no_key, *(parts[0][1:] if ctx.kept else ()))
        ctx.mark_non_differentiable(count)
        return values, count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_values, _):
        anchors, ids, keys, key_ids, no_key, *kept = ctx.saved_tensors
        problem = _Problem(ids, keys, key_ids, no_key, *ctx.settings)
        weight = (grad_values / problem.temperature)[..., None]
        to_anchors, to_keys = [], None
        for classes in _slices(len(anchors), ctx.classes):
            part, share = anchors[classes], weight[classes]
            slopes = problem.slopes(classes, *(kept if ctx.kept else problem.one_pass(part, classes)[1:]))
            to_anchors.append((slopes @ keys.flatten(0, 1)).view(part.shape) * share)
            weighted = (part * share).flatten(0, 1)
            to_keys = slopes.mT @ weighted if to_keys is None else to_keys.addmm_(slopes.mT, weighted)
        assert to_keys is not None, 'there is a class'
        to_keys = to_keys.masked_fill_(problem.no_key[:, None], 0).view(keys.shape)
        return to_anchors[0] if len(to_anchors) == 1 else torch.cat(to_anchors), None, to_keys, None, None, None


def pair_contrast_terms(
    anchors: Tensor,
    anchor_ids: Tensor,
    keys: Tensor,
    key_ids: Tensor,
    no_key: Tensor,
    *,
    temperature: float,
    self_offset: int | None = None,
    count_self_as_negative: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`~clusterplug.functional.subclass_contrast_terms` for points that come class by class.

    The logits exist once: their exponentials are summed in place and become the slopes, and only the pairs within a
    class, in which the positives lie, are looked at one by one. Gradients can be taken once (no double backward).

    Args:
        anchors: (C, V, D) unit rows, floating; computed in fp32 at least.
        anchor_ids: (C, V) int64; no id in two classes.
        keys: (C, B, D) unit rows.
        key_ids: (C, B) int64.
        no_key: (C, B) bool, True = not a key. Anchors with the id of such a row get a meaningless, finite value.
        temperature: divides the dot products; from 0.03 on for full accuracy in fp32.
        self_offset: anchor (c, v) is key (c, v + self_offset), left out of its positives and negatives.
        count_self_as_negative: take the anchor itself as a negative, as the authors' code does.

    Returns:
        ``(values, num_positives)``, both (C, V), values in the dtype of ``anchors``; a value is 0 where there is no
        positive, and below 1e-8 where there is no negative. No host synchronization.

    Raises:
        ValueError: shapes or temperature that do not fit.

    Source: as :func:`~clusterplug.functional.subclass_contrast`, the point-to-point term.

    Differs from the authors' code: theirs builds masks, logits, exponentials and products for all pairs.

    Example:
        >>> x = torch.eye(2)[:, None].repeat(1, 5, 1)  # two classes of one subclass with five equal points each
        >>> ids, no_key = torch.arange(2)[:, None].repeat(1, 5), torch.zeros(2, 5, dtype=torch.bool)
        >>> values, count = pair_contrast_terms(x, ids, x, ids, no_key, temperature=0.1, self_offset=0)
        >>> values[0, 0].item(), count[0, 0].item()  # doctest: +ELLIPSIS
        (0.00022..., 4)
    """
    check_temperature(temperature)
    for name, each, like in (('anchor_ids', anchor_ids, anchors), ('key_ids', key_ids, keys), ('no_key', no_key, keys)):
        if each.shape != like.shape[:2]:
            raise ValueError(
                f'{name} must have one entry for each row, {tuple(like.shape[:2])}, got {tuple(each.shape)}'
            )
    if anchors.dim() != 3 or keys.dim() != 3 or (len(anchors), anchors.shape[2]) != (len(keys), keys.shape[2]):
        raise ValueError(
            f'anchors and keys must have shapes (C, V, D) and (C, B, D), got {tuple(anchors.shape)} and '
            f'{tuple(keys.shape)}'
        )
    settings = (temperature, self_offset, count_self_as_negative)
    if anchors.shape[0] == 0:
        return anchors.sum(-1), torch.zeros_like(anchor_ids)
    dtype = working_dtype(anchors.dtype, keys.dtype)
    values, count = _PairContrast.apply(anchors.to(dtype), anchor_ids, keys.to(dtype), key_ids, no_key, settings)
    return values.to(anchors.dtype), count
