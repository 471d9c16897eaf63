# SPDX-License-Identifier: Apache-2.0
"""One loss at every level of a nested head."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clusterplug.core.checks import check_choice, check_number
from clusterplug.heads import PrototypeScores
from clusterplug.registry import MODELS


@MODELS.register_module()
class NestedClusterLoss(nn.Module):
    r"""Sum (or mean) of a loss over the levels of :class:`~clusterplug.heads.MatryoshkaHead`.

    .. math:: L = \sum_j w_j\, \ell(S_j, \dots)

    Args:
        base_loss: module, config or function that compares the scores of one level, such as
            :class:`~clusterplug.losses.DINOLoss`, :class:`~clusterplug.losses.IBOTLoss` or
            :class:`~clusterplug.losses.SwAVLoss`.
        weights: w_j, one a level; None: 1 each (the paper).
        reduction: ``'sum'`` (the paper: five levels weigh five times one) or ``'mean'``.

    ``forward(*levels, **options)``: the first argument is a list over the levels, of what ``base_loss`` takes at that
    place: scores, or a list of scores of several views. So are the others, or one tensor, the same for all levels
    (class labels). ``options`` are given to every level as they are. Scores
    may be :class:`~clusterplug.heads.PrototypeScores` (``MatryoshkaHead(...).factors(x)``): then embeddings and
    prototypes are kept for the backward pass, and no logits of any level; they are made again, one level at a time.

    For :class:`~clusterplug.pretraining.MultiViewModel` use :class:`NestedViewLoss`.

    Returns:
        What ``base_loss`` returns: a tensor, or a dict of tensors (each summed).

    Raises:
        TypeError, ValueError: arguments that are no lists, or of different lengths; other numbers of weights.

    Source: Venkataramanan et al., "Franca", arXiv 2507.14137, section 3.2; official code valeoai/Franca (Apache-2.0).
    **Differs from the authors' code**: theirs keeps the logits of all levels, and slices the list of levels where it
    means rows.

    Example:
        >>> loss = NestedClusterLoss(torch.nn.functional.cross_entropy)
        >>> levels = [torch.zeros(3, 2), torch.zeros(3, 4)]
        >>> round(float(loss(levels, [torch.zeros(3, dtype=torch.int64)] * 2)), 4)  # ln 2 + ln 4
        2.0794
    """

    def __init__(self, base_loss: nn.Module | dict | Callable, weights: Sequence[float] | None = None,
                 reduction: str = 'sum'):  # fmt: skip
        super().__init__()
        self.base_loss = MODELS.build(base_loss) if isinstance(base_loss, dict) else base_loss
        if not callable(self.base_loss):
            raise TypeError(f'base_loss must be a module, a config or a function, got {type(base_loss).__name__}')
        self.weights = None if weights is None else tuple(check_number(each, 'weights') for each in weights)
        self.reduction = check_choice(reduction, 'reduction', ('sum', 'mean'))

    def forward(self, *levels: Sequence | Tensor, **options: Any) -> Tensor | dict[str, Tensor]:
        """The loss over all levels."""
        number = self._check(levels)
        weights = (1.0,) * number if self.weights is None else self.weights
        losses = [
            self._level([each if isinstance(each, Tensor) else each[j] for each in levels], options)
            for j in range(number)
        ]
        scale = 1.0 if self.reduction == 'sum' else 1.0 / number
        if isinstance(losses[0], dict):
            return {name: sum(w * each[name] for w, each in zip(weights, losses)) * scale for name in losses[0]}
        return sum(w * each for w, each in zip(weights, losses)) * scale

    def _level(self, arguments: list, options: dict) -> Any:
        if getattr(self.base_loss, 'takes_factors', False) or not _has_factors(arguments):
            return self.base_loss(*arguments, **options)
        if not torch.is_grad_enabled():
            return self.base_loss(*(_dense(each) for each in arguments), **options)
        # For a loss that knows nothing of factors: the whole level is made again.
        return checkpoint(self._dense_level, arguments, options, use_reentrant=False, preserve_rng_state=True)

    def _dense_level(self, arguments: list, options: dict) -> Any:
        return self.base_loss(*(_dense(each) for each in arguments), **options)

    def _check(self, levels: tuple) -> int:
        for place, each in enumerate(levels):
            if isinstance(each, PrototypeScores) or not isinstance(each, Sequence | Tensor if place else Sequence):
                raise TypeError(
                    f'the first argument must be a list over the levels, the others too or one tensor for all levels, '
                    f'got {type(each).__name__}'
                )
        numbers = {len(each) for each in levels if not isinstance(each, Tensor)}
        if len(numbers) != 1 or 0 in numbers:
            raise ValueError(f'the arguments must hold equally many levels, at least 1, got {sorted(numbers)}')
        number = numbers.pop()
        if self.weights is not None and len(self.weights) != number:
            raise ValueError(f'weights must hold one number for each of the {number} levels, got {len(self.weights)}')
        return number


@MODELS.register_module()
class NestedViewLoss(NestedClusterLoss):
    """:class:`NestedClusterLoss` for :class:`~clusterplug.pretraining.MultiViewModel`: scores come view by view.

    ``forward(scores, teacher_scores=None)``: lists over views of lists over levels.

    Args:
        base_loss, weights, reduction: as in :class:`NestedClusterLoss`.
        assign_views: views of the student that the teacher's views belong to (checked by the model to be full crops).

    Raises, Source, Differs from the authors' code: as :class:`NestedClusterLoss`.

    Example:
        >>> from clusterplug.losses import DINOLoss
        >>> views = [[torch.eye(4, 6), torch.eye(4, 8)] for _ in range(2)]
        >>> bool(NestedViewLoss(DINOLoss())(views, views) > 0)
        True
    """

    all_sets = True

    def __init__(self, base_loss, weights=None, reduction: str = 'sum', assign_views: Sequence[int] = (0, 1)):
        super().__init__(base_loss, weights, reduction)
        self.assign_views = tuple(assign_views)

    # MultiViewModel calls it by these names; the lists of levels of the loss itself have none.
    def forward(  # type: ignore[override]
        self, scores: Sequence, teacher_scores: Sequence | None = None
    ) -> Tensor | dict[str, Tensor]:
        """The loss over all levels of all views."""
        given = [scores] if teacher_scores is None else [scores, teacher_scores]
        return super().forward(*([list(level) for level in zip(*views, strict=True)] for views in given))


def _has_factors(value: Any) -> bool:
    if isinstance(value, PrototypeScores):
        return True
    return isinstance(value, list | tuple) and any(_has_factors(each) for each in value)


def _dense(value: Any) -> Any:
    if isinstance(value, PrototypeScores):
        return value.dense()
    return [_dense(each) for each in value] if isinstance(value, list | tuple) else value
