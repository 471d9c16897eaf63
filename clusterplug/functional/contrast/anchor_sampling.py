# SPDX-License-Identifier: Apache-2.0
"""Hard and easy anchors of every class, drawn without a loop over classes or a host synchronization."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_count
from clusterplug.core.numerics import host_checks_allowed

# Every group offers this many candidates more than twice what a class can take; the chance that random thinning
# leaves a group short of anchors is then below 1e-12.
_SPARE_CANDIDATES = 64


class AnchorSample(NamedTuple):
    """Anchors on a grid of ``C`` classes x ``V`` slots.

    Attributes:
        rows: (C, V) int64, row numbers into the input; where not ``valid`` any row, or -1.
        valid: (C, V) bool.
    """

    rows: Tensor
    valid: Tensor


@lru_cache(maxsize=32)
def _constants(num_groups: int, slots: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Counts before counting, the lower bound of each group among sorted keys, and the order of the slots."""
    with torch.inference_mode(False):  # kept for training steps as well
        # the groups of ignored rows start so high that next to none of their rows becomes a candidate
        counts = torch.ones(num_groups + 2, device=device, dtype=torch.float32)
        counts[:2] = 1e12
        bounds = torch.arange(2, num_groups + 3, device=device, dtype=torch.float64)
        # hard and easy anchors alternate, so that whoever takes only the first few of a class gets both kinds
        half = slots // 2
        order = torch.arange(slots, device=device)
        order[: 2 * half] = torch.arange(2 * half, device=device).view(2, half).mT.flatten()
        return counts, bounds, order


def _hard_easy_quota(hard: Tensor, easy: Tensor, budget: Tensor | int) -> tuple[Tensor, Tensor]:
    """How many hard rows, and how many rows in all: half of each kind, and what one lacks is taken from the other."""
    if isinstance(budget, int):
        take_hard = torch.minimum(hard, (budget - easy).clamp_min_(budget // 2))
        return take_hard, (hard + easy).clamp_max_(budget)
    take_hard = torch.minimum(hard, torch.maximum(budget - easy, budget // 2))
    return take_hard, torch.minimum(hard + easy, budget)


def _candidates(group: Tensor, start_counts: Tensor, bounds: Tensor, cap: int, generator) -> tuple[Tensor, Tensor]:
    """At least ``min(count, cap / 2)`` random rows of each group, ordered by group, at random within one.

    Sorting all rows would cost more than the whole rest of the loss, so rows of large groups are thinned first: a row
    is kept when its random key is below ``cap / count``. The rows with the smallest keys of each group all pass, hence
    the order at the head of each group is that of a full sort.

    Returns:
        (M,) int64 rows, M fixed by the arguments; the start of each group in them, and their end.
    """
    num_rows, num_groups = group.shape[0], bounds.shape[0] - 1
    random = torch.rand(num_rows, device=group.device, dtype=torch.float32, generator=generator)
    size = num_groups * cap + 10 * int((num_groups * cap) ** 0.5)
    if num_rows <= size:
        keys, rows = (group + random.double()).sort()
        return rows, torch.searchsorted(keys, bounds)
    counts = start_counts.index_add(0, group, start_counts[2].expand(num_rows))
    keep = random * counts.index_select(0, group) < cap
    rows = torch.nonzero_static(keep, size=size, fill_value=-1).squeeze(1)
    # -1 reads the last row; its key is pushed behind all others
    keys, order = (group[rows].masked_fill_(rows < 0, num_groups + 3) + random[rows].double()).sort()
    return rows[order], torch.searchsorted(keys, bounds)


def sample_anchors(
    labels: Tensor,
    predictions: Tensor | None,
    *,
    num_classes: int,
    num_anchors_per_class: int,
    max_anchors: int | None = None,
    num_slots: int | None = None,
    generator: torch.Generator | None = None,
) -> AnchorSample:
    """Draw up to ``V`` random rows of every class, half of them wrongly predicted where there are enough.

    For a class with ``h`` hard rows (prediction differs from label) and ``e`` easy ones, and a budget
    ``V = min(num_anchors_per_class, max_anchors // number of classes present)``: both at least V/2 - V//2 hard and
    the rest easy; only one kind at least V/2 - all of the other kind, filled up with it; neither - all rows.
    The whole batch counts as one set. About 35 launches, no host synchronization, O(N) work.

    Args:
        labels: (N,) int64 from 0 to num_classes - 1, or -1 for rows that are ignored. N >= 1.
        predictions: (N,) int64 predicted classes, or None: all rows are easy.
        num_classes: C.
        num_anchors_per_class: V.
        max_anchors: bound on the anchors of all present classes together, None = C * V.
        num_slots: slots of a class in the result, at least V (default); those beyond V stay empty.
        generator: random numbers, on the device of the labels.

    Returns:
        :class:`AnchorSample`.

    Raises:
        TypeError: Labels or predictions are not integer.
        ValueError: Shapes or counts that do not fit; on the CPU also labels outside -1 to C - 1.

    Source: Feng et al., ICCV 2023, anchor sampling of the official code (FengZicai/Cluster3DSeg, MIT), the rule of
    ContrastiveSeg.

    Differs from the authors' code: theirs loops over classes with several host synchronizations each. No present class
    (division by zero there) gives no anchors here, and more classes than ``max_anchors`` (no anchors at all there)
    still gives one anchor to each.

    Example:
        >>> labels, predictions = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 0, 1])
        >>> sample_anchors(labels, predictions, num_classes=2, num_anchors_per_class=2).valid
        tensor([[ True,  True],
                [ True, False]])
    """
    _check(labels, predictions, num_classes, num_anchors_per_class, num_slots, max_anchors)
    return draw_anchors(
        labels,
        predictions,
        num_classes=num_classes,
        num_anchors_per_class=num_anchors_per_class,
        max_anchors=max_anchors,
        num_slots=num_slots,
        generator=generator,
    )


def _check(labels, predictions, num_classes, num_anchors_per_class, num_slots, max_anchors) -> None:
    for value, name in ((labels, 'labels'), (predictions, 'predictions')):
        if value is None and name == 'predictions':
            continue
        if not isinstance(value, Tensor) or value.is_floating_point() or value.dtype == torch.bool:
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f'{name} must be an integer tensor (N,), got {got}; convert it with {name}.long()')
        if value.dim() != 1 or value.shape != labels.shape or not len(value):
            raise ValueError(f'{name} must have shape (N,), N >= 1, as labels, got {tuple(value.shape)}')
    check_count(num_classes, 'num_classes')
    check_count(num_anchors_per_class, 'num_anchors_per_class')
    if max_anchors is not None:
        check_count(max_anchors, 'max_anchors')
    if num_slots is not None and check_count(num_slots, 'num_slots') < num_anchors_per_class:
        raise ValueError(f'num_slots must be at least num_anchors_per_class, {num_anchors_per_class}, got {num_slots}')
    if host_checks_allowed(labels):
        lowest, highest = labels.aminmax()
        if lowest < -1 or highest >= num_classes:
            raise ValueError(
                f'labels must be -1 (ignored) or 0 to {num_classes - 1}, got {int(lowest)} to {int(highest)}; '
                f'set what is to be ignored to -1'
            )


def draw_anchors(
    labels: Tensor,
    predictions: Tensor | None,
    *,
    num_classes: int,
    num_anchors_per_class: int,
    max_anchors: int | None = None,
    num_slots: int | None = None,
    generator: torch.Generator | None = None,
) -> AnchorSample:
    """:func:`sample_anchors` without input validation, for a training step whose labels were checked before."""
    slots = num_slots or num_anchors_per_class
    counts, bounds, slot = _constants(2 * num_classes, slots, labels.device)
    # two groups a class, and two in front for the ignored rows
    easy = labels == predictions if predictions is not None else torch.ones_like(labels)
    group = torch.add(easy, labels, alpha=2).add_(2)
    cap = 2 * num_anchors_per_class + _SPARE_CANDIDATES
    candidates, starts = _candidates(group, counts, bounds, cap, generator)

    hard_count, easy_count = starts.diff().view(num_classes, 2, 1).unbind(1)
    budget: int | Tensor = num_anchors_per_class
    if max_anchors is not None:
        present = (hard_count + easy_count > 0).sum()
        budget = (max_anchors // present.clamp_min(1)).clamp(1, num_anchors_per_class)
    num_hard, number = _hard_easy_quota(hard_count, easy_count, budget)
    first_hard, first_easy = starts[:-1].view(num_classes, 2, 1).unbind(1)
    start = torch.where(slot < num_hard, first_hard, first_easy - num_hard)
    rows = candidates[(start + slot).clamp_max_(candidates.shape[0] - 1)]
    return AnchorSample(rows, slot < number)
