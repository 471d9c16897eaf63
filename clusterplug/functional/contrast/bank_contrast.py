# SPDX-License-Identifier: Apache-2.0
"""Contrast of anchors with equal-sized rings of remembered keys, formed with its gradient in the same passes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.checks import check_mask, check_points
from clusterplug.core.constants import arange, constant
from clusterplug.core.numerics import working_dtype
from clusterplug.functional.contrast._negatives import (
    absent_logit,
    different,
    exponentials_,
    joined,
    ring_numbers,
    rows_in_a_pass,
)
from clusterplug.functional.contrast.fused_contrast import fused_contrast
from clusterplug.functional.contrast.subclass_contrast import NEVER, check_rows, check_temperature


class BankProblem:
    """Anchors against rings of keys; the gradient reaches the anchors alone.

    Args:
        ids: (A,) ring of each anchor; one that holds nothing for anchors of no subclass.
        keys: (M, D) unit rows, the negatives of anchors of other rings.
        rings: (M,) the ring of each, in the type of the keys.
        bias: (M,) log of the number of keys that each key stands for; below -80 where the slot is empty.
        positives: (S, p, D), the positives of the anchors of each ring.
        held: (S, p) bool, which of them are there; or (S, 1): all or none, and they count as one, by their mean.
        temperature: divides the dot products.
    """

    def __init__(
        self,
        ids: Tensor,
        keys: Tensor,
        rings: Tensor,
        bias: Tensor,
        positives: Tensor,
        held: Tensor,
        temperature: float,
    ):
        self.ids, self.keys, self.rings, self.bias = ids, keys, rings, bias
        self.positives, self.held, self.temperature = positives, held, temperature
        self.numbers: Tensor | None = None  # the ids in the type of the keys, where the caller has them already

    def solve(self, anchors: Tensor, _) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over positives (A,), their numbers (A,), gradient of each sum with respect to anchor / temperature."""
        rows = rows_in_a_pass(len(self.keys) + self.positives[0].numel(), anchors)
        numbers = self.ids.to(anchors.dtype) if self.numbers is None else self.numbers
        parts = zip(anchors.split(rows), self.ids.split(rows), numbers.split(rows), strict=True)
        return joined([self._one_pass(*part) for part in parts])

    def _one_pass(self, anchors: Tensor, ids: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = torch.addmm(self.bias, anchors, self.keys.mT, alpha=1 / self.temperature)
        kept = different(numbers, self.rings, logits)
        total, log_total = exponentials_(logits, self.temperature, kept, some=len(self.held) > 1)
        own, held = self.positives[ids], self.held[ids]
        gap = torch.baddbmm(log_total[..., None], own, anchors[..., None], alpha=-1 / self.temperature)[..., 0]
        gap = torch.where(held, gap, constant(NEVER, gap.dtype, gap.device))
        # d sum / d logit: sigmoid(gap) spread over negatives by their softmax, and - sigmoid(gap) at each positive
        push, values = torch.sigmoid(gap), F.softplus(gap)
        slope = torch.mm(logits, self.keys)
        if held.shape[1] == gap.shape[1]:
            slope.mul_(push.sum(1, keepdim=True).div_(total))
            return values.sum(1), held.sum(1), torch.baddbmm(slope[:, None], push[:, None], own, alpha=-1)[:, 0]
        slope.mul_(push.mean(1, keepdim=True).div_(total))
        slope = torch.baddbmm(slope[:, None], push[:, None], own, alpha=-1 / gap.shape[1])[:, 0]
        return values.mean(1), held[:, 0], slope


def sampled_bank(
    ids: Tensor,
    bank: Tensor,
    num_enqueued: Tensor,
    temperature: float,
    *,
    num_negatives: int,
    num_positives: int,
    generator: torch.Generator | None = None,
) -> BankProblem:
    """:class:`BankProblem` with some random slots of each ring, the same on average over draws as with all.

    Args:
        ids: (A,) ring of each anchor.
        bank: (S, T, D) unit rows, which must not change before the problem is solved.
        num_enqueued: (S,) integer, of which the first so many slots of each ring are filled, or all.
        temperature: divides the dot products.
        num_negatives: slots of each ring that are negatives, drawn with replacement.
        num_positives: slots of each ring that are positives of its own anchors, among them the negatives of others.
        generator: on the device of the bank.
    """
    rings, width, _ = bank.shape
    filled, held = num_enqueued.clamp(1, width), num_enqueued > 0
    number = max(num_negatives, num_positives)
    draws = torch.randint(2**31, (number, 1), generator=generator, device=bank.device)
    keys = bank[arange(rings, bank.device), draws.remainder(filled)]  # (number, S, D)
    absent = constant(absent_logit(temperature), bank.dtype, bank.device)
    bias = torch.where(held.expand(num_negatives, -1), (filled / num_negatives).log_().to(bank.dtype), absent)
    numbers = ring_numbers(rings, num_negatives, True, bank.dtype, bank.device)
    return BankProblem(
        ids,
        keys[:num_negatives].flatten(0, 1),
        numbers,
        bias.flatten(),
        keys.transpose(0, 1),
        held[:, None],
        temperature,
    )


def whole_bank(ids: Tensor, bank: Tensor, held: Tensor, temperature: float) -> BankProblem:
    """:class:`BankProblem` with all that rings (S, T, D) hold, ``held`` (S, T) bool."""
    zero, absent = (constant(value, bank.dtype, bank.device) for value in (0.0, absent_logit(temperature)))
    numbers = ring_numbers(*held.shape, False, bank.dtype, bank.device)
    bias = torch.where(held, zero, absent).flatten()
    return BankProblem(ids, bank.flatten(0, 1), numbers, bias, bank, held, temperature)


class CenterProblem:
    """Anchors against centers, one of them the positive of each: a cross entropy; the gradient reaches the anchors.

    Args:
        ids: (A,) center of each anchor; one that is not used for anchors of no subclass.
        centers: (S, D) unit rows, which must not change before the problem is solved.
        used: (S,) bool.
        temperature: divides the dot products.
    """

    def __init__(self, ids: Tensor, centers: Tensor, used: Tensor, temperature: float):
        self.ids, self.centers, self.used, self.temperature = ids, centers, used, temperature

    def solve(self, anchors: Tensor, _) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`BankProblem.solve`."""
        zero, never = (constant(value, anchors.dtype, anchors.device) for value in (0.0, NEVER))
        used, bias = self.used.to(anchors.dtype), torch.where(self.used, zero, never)
        rows = rows_in_a_pass(len(bias), anchors)
        parts = zip(anchors.split(rows), self.ids.split(rows), strict=True)
        return joined([self._one_pass(each, ids, used, bias) for each, ids in parts])

    def _one_pass(self, anchors: Tensor, ids: Tensor, used: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = torch.addmm(bias, anchors, self.centers.mT, alpha=1 / self.temperature).log_softmax(1)
        values, count = F.nll_loss(logits, ids, used, reduction='none'), used[ids]
        # d value / d logit: the softmax, less 1 at the positive
        minus = constant(-1.0, logits.dtype, logits.device).expand(len(ids), 1)
        slope = torch.mm(logits.exp_().scatter_add_(1, ids[:, None], minus), self.centers)
        return values, count, slope.mul_(count[:, None])


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
    (A, S*T) logits exist for one pass of anchors at a time, in place, and nothing of that size is kept for backward:
    the gradient with respect to the anchors is formed in the same pass (one more product of matrices), as every term of
    it is at hand then.

    Args:
        anchors: (A, D) unit rows, floating; computed in fp32 at least.
        ids: (A,) int64 subclass of each anchor; anchors of no subclass name one whose slots are all empty.
        bank: (S, T, D) unit rows; gets no gradient.
        empty: (S, T) bool, True = the slot holds no vector.
        temperature: divides the dot products; any positive number.
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
    bank = bank.detach().to(dtype)
    held = ~empty
    problem = whole_bank(ids, bank, held, temperature)
    if negatives is not None:
        bias = problem.bias.view(held.shape)[:, negatives] + math.log(bank.shape[1] / len(negatives))
        numbers = ring_numbers(len(bank), len(negatives), False, dtype, bank.device)
        keys = bank[:, negatives].flatten(0, 1)
        problem = BankProblem(ids, keys, numbers, bias.flatten(), bank, held, temperature)
    (values,), (count,) = fused_contrast(anchors.to(dtype), [problem], temperature=temperature)
    return values.to(anchors.dtype), count
