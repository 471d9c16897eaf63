# SPDX-License-Identifier: Apache-2.0
"""Contrast of anchors with each other, by subclass, formed with its gradient in passes over the anchors."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.constants import constant
from clusterplug.core.numerics import working_dtype
from clusterplug.functional.contrast._negatives import (
    absent_logit,
    different,
    exponentials_,
    joined,
    rows_in_a_pass,
)
from clusterplug.functional.contrast.fused_contrast import fused_contrast
from clusterplug.functional.contrast.subclass_contrast import NEVER, check_temperature

# Exponentials up to this size are kept for backward, else made again there.
_MOST_KEPT_BYTES = 64 * 2**20


class PairProblem:
    """Anchors against anchors, those of one class in one row of a grid; the gradient reaches the keys, too.

    All pairs are compared for the negatives; positives are of one class, so they are looked for pair by pair within the
    rows of the grid.

    Args:
        anchor_ids: (C, V) subclass of each anchor.
        key_grid: (C, B, D) keys, without gradient.
        key_ids: (C, B) subclass of each key.
        no_key: (C, B) bool, slots without a key.
        temperature: divides the dot products.
        self_offset: anchor (c, v) is key (c, v + self_offset), and is not compared with itself; None: no key.
        self_is_negative: yet it counts among its own negatives.
        negatives: (first, step): the keys in these slots of every row alone are negatives, each for ``step`` of them;
            all are positives.
    """

    def __init__(
        self,
        anchor_ids: Tensor,
        key_grid: Tensor,
        key_ids: Tensor,
        no_key: Tensor,
        temperature: float,
        self_offset: int | None = None,
        self_is_negative: bool = False,
        negatives: tuple[int, int] = (0, 1),
    ):
        self.key_grid, self.no_key, self.temperature = key_grid, no_key, temperature
        self.kept: list[Tensor] | None = None
        self.part, self.stands_for = slice(negatives[0], None, negatives[1]), negatives[1]
        self.ids = anchor_ids.flatten().to(key_grid.dtype)
        self.key_ids = self.ids
        if key_ids is not anchor_ids or self.stands_for > 1:
            self.key_ids = key_ids[:, self.part].flatten().to(key_grid.dtype)
        self.positive = (anchor_ids[..., None] == key_ids[:, None]) > no_key[:, None]
        self.own_key = None
        if self_offset is not None:
            others, own_key = _others(*anchor_ids.shape, key_ids.shape[1], self_offset, no_key.device)
            self.positive = self.positive.logical_and_(others)
            self.own_key = own_key if self_is_negative else None

    def solve(self, anchors: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over positives (A,), their numbers (A,), gradient of each sum with respect to anchor / temperature."""
        weight, never, absent = (
            constant(value, keys.dtype, keys.device)
            for value in (math.log(self.stands_for), NEVER, absent_logit(self.temperature))
        )
        self.keys, self.bias = keys, torch.where(self.no_key[:, self.part].flatten(), absent, weight)
        if self.stands_for > 1:
            self.keys = keys.view_as(self.key_grid)[:, self.part].flatten(0, 1)
        self.rows = rows_in_a_pass(len(self.keys), keys)
        parts = [self._one_pass(each, start) for each, start in self._passes(anchors)]
        keep = len(anchors) * len(self.keys) * keys.element_size() <= _MOST_KEPT_BYTES
        self.kept = [part[0] for part in parts] if keep else None
        total, log_total, mean = joined([part[1:] for part in parts])
        # the positives, in the grid
        grid = self.positive.shape[:2]
        log_total, rows = log_total.view(*grid, 1), anchors.view(*grid, -1)
        gap = torch.baddbmm(log_total, rows, self.key_grid.mT, alpha=-1 / self.temperature)
        gap = torch.where(self.positive, gap, never)
        # d sum / d logit: sigmoid(gap) spread over negatives by their softmax, and - sigmoid(gap) at each positive
        self.push = torch.sigmoid(gap)
        self.factor = self.push.sum(2).view(-1, 1).div(total)
        slope = torch.baddbmm(mean.mul_(self.factor).view(rows.shape), self.push, self.key_grid, alpha=-1)
        return F.softplus(gap).sum(2).flatten(), self.positive.sum(2).flatten(), slope.flatten(0, 1)

    def to_keys(self, anchors: Tensor, weights: Tensor) -> Tensor:
        """Gradient (M, D) with respect to the keys; ``weights`` (A,) is that of the sums, over the temperature."""
        weighted = anchors * weights[:, None]
        spread, grad = weighted * self.factor, None
        for number, (each, start) in enumerate(self._passes(anchors)):
            exponentials = self._exponentials(each, start)[0] if self.kept is None else self.kept[number]
            part = spread[start : start + len(each)]
            grad = exponentials.mT @ part if grad is None else grad.addmm_(exponentials.mT, part)
        assert grad is not None, 'there is a key'
        self.kept = None  # made again if the graph is kept for another backward pass
        weighted = weighted.view(*self.positive.shape[:2], -1)
        grad = grad.view(len(weighted), -1, weighted.shape[2])
        if self.stands_for > 1:
            some, grad = grad, torch.zeros_like(self.key_grid)
            grad[:, self.part] = some
        grad = torch.baddbmm(grad, self.push.mT, weighted, alpha=-1)
        return grad.masked_fill_(self.no_key[..., None], 0).flatten(0, 1)

    def _passes(self, anchors: Tensor):
        return [(anchors[start : start + self.rows], start) for start in range(0, len(anchors), self.rows)]

    def _exponentials(self, anchors: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        logits = torch.addmm(self.bias, anchors, self.keys.mT, alpha=1 / self.temperature)
        part = slice(start, start + len(anchors))
        kept = different(self.ids[part], self.key_ids, logits)
        if self.own_key is not None:
            kept.scatter_(1, self.own_key[part, None], 1)
        return logits, *exponentials_(logits, self.temperature, kept)

    def _one_pass(self, anchors: Tensor, start: int) -> tuple[Tensor, ...]:
        exponentials, total, log_total = self._exponentials(anchors, start)
        return exponentials, total, log_total, torch.mm(exponentials, self.keys)


@lru_cache(maxsize=64)
def _others(classes: int, anchors: int, keys: int, offset: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(V, B) bool: False where the key is the anchor; (C V,) the key that each anchor is. Not to be written to."""
    with torch.inference_mode(False):
        own = torch.arange(anchors, device=device) + offset
        first = torch.arange(classes, device=device)[:, None] * keys
        return torch.arange(keys, device=device) != own[:, None], (first + own).flatten()


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
        temperature: divides the dot products; any positive number.
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
    if anchors.shape[0] == 0 or anchors.shape[1] == 0:
        return anchors.sum(-1), torch.zeros_like(anchor_ids)
    dtype = working_dtype(anchors.dtype, keys.dtype)
    flat, flat_keys = anchors.to(dtype).flatten(0, 1), keys.to(dtype).flatten(0, 1)
    grid = flat_keys.detach().view(keys.shape)
    problem = PairProblem(anchor_ids, grid, key_ids, no_key, temperature, self_offset, count_self_as_negative)
    (values,), (count,) = fused_contrast(flat, [problem], flat_keys, temperature=temperature)
    return values.view(anchor_ids.shape).to(anchors.dtype), count.view(anchor_ids.shape)
