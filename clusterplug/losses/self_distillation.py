# SPDX-License-Identifier: Apache-2.0
"""Self-distillation over prototypes: a student predicts the balanced codes of its averaged teacher."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clusterplug.core.checks import check_count, check_number
from clusterplug.core.distributed import sum_over_ranks, world_size
from clusterplug.core.numerics import exact_products
from clusterplug.heads import PrototypeScores
from clusterplug.losses._prototype_scores import as_scores, column_bias, soft_cross_entropy
from clusterplug.registry import MODELS

Scores = Tensor | PrototypeScores


class _Distillation(nn.Module):
    """The options that both losses have."""

    takes_factors = True

    def __init__(self, student_temperature: float = 0.1, teacher_temperature: float = 0.07, num_iters: int = 3):
        super().__init__()
        self.student_temperature = check_number(student_temperature, 'student_temperature', above=0)
        self.teacher_temperature = check_number(teacher_temperature, 'teacher_temperature', above=0)
        self.num_iters = check_count(num_iters, 'num_iters', 1)

    def _bias(self, teacher: Tensor, mask: Tensor | None) -> Tensor:
        return column_bias(teacher, self.teacher_temperature, self.num_iters, mask)

    def _compare(self, student: Scores, teacher: Scores, bias: Tensor) -> Tensor:
        return soft_cross_entropy(student, teacher, bias, self.student_temperature, self.teacher_temperature)


@MODELS.register_module()
class DINOLoss(_Distillation):
    r"""Each view of an image predicts the codes that the teacher gives to every *other* full view of it.

    .. math:: L = \operatorname{mean}_{s \ne t} \operatorname{mean}_i
              \Big(-\sum_k q_{ik}^t \log \operatorname{softmax}(s_i / T_s)_k\Big),

    with q the codes of Sinkhorn over the teacher's rows of all full views and all ranks. With 2 full and 8 local views
    that are the 2 + 16 pairs of DINOv2.

    Args:
        student_temperature: T_s.
        teacher_temperature: T_t of the codes; warm it up from 0.04 with
            :class:`~clusterplug.hooks.ValueScheduleHook` (``target='loss_function.teacher_temperature'``).
        num_iters: Sinkhorn iterations.

    Shapes of ``forward``: ``scores``, list of V (B, K) of the student, full views first; ``teacher_scores``, list of T
    <= V (B, K), view t of the teacher belongs to view t of the student. Each a tensor or a
    :class:`~clusterplug.heads.PrototypeScores`, of which nothing of the size B x K is kept for the backward pass.
    Returns a 0-dim tensor. Samples with a score that is not finite are ignored.

    Distributed: the mean over ranks of losses and gradients is that of one process with the joined batch.

    Raises:
        ValueError, TypeError: no pair of different views, other shapes, options out of range.

    Source: Oquab et al., "DINOv2", arXiv 2304.07193; as used by Venkataramanan et al., "Franca", arXiv 2507.14137,
    official code valeoai/Franca (Apache-2.0). **Differs from the authors' code**: Sinkhorn in the log domain, as logits
    above 3.5 overflow in theirs; no 5 logit tensors are stored.

    Example:
        >>> loss = DINOLoss()
        >>> views = [torch.eye(4, 6) for _ in range(3)]
        >>> bool(loss(views, views[:2]) > 0)
        True
    """

    def forward(self, scores: Sequence[Scores], teacher_scores: Sequence[Scores]) -> Tensor:
        """Mean over pairs of views."""
        _check_views(scores, teacher_scores)
        first = scores[0]
        with exact_products(first.embeddings if isinstance(first, PrototypeScores) else first):
            with torch.no_grad():
                teacher = torch.cat([as_scores(each).detach() for each in teacher_scores])
                usable = torch.isfinite(teacher).all(1).view(len(teacher_scores), -1).all(0) & _finite(scores)
                bias = self._bias(teacher, usable.repeat(len(teacher_scores)))
            losses = [
                self._compare(student, target, bias)
                for t, target in enumerate(teacher_scores)
                for s, student in enumerate(scores)
                if s != t
            ]
            total = torch.where(usable, torch.stack(losses), 0.0).mean(0)
            return total.sum() / _share_of_all(usable)


@MODELS.register_module()
class IBOTLoss(_Distillation):
    r"""The student predicts, at masked tokens, the codes of the teacher, which saw them.

    .. math:: L = \sum_r w_r \Big(-\sum_k q_{rk} \log \operatorname{softmax}(s_r / T_s)_k\Big) \Big/ \sum_r w_r

    Args:
        student_temperature, teacher_temperature, num_iters: as in :class:`DINOLoss`.

    Shapes of ``forward``: ``scores`` and ``teacher_scores`` (R, K) of the same tokens, tensors or
    :class:`~clusterplug.heads.PrototypeScores`; ``weights`` (R,), 1 / (masked tokens of the image) weighs images
    equally (default 1 each); ``mask`` (R,) bool, False for rows that only pad the buffer: they are in neither the codes
    nor the loss. :func:`masked_tokens` makes rows, weights and mask of any token masks, in one size.

    Distributed, Raises, Source: as :class:`DINOLoss`; Zhou et al., "iBOT", arXiv 2111.07832. **Differs from the
    authors' code**: padding rows enter their codes (the slice that should drop them is taken of the list of levels).

    Example:
        >>> scores = torch.eye(4, 6)
        >>> mask = torch.tensor([True, True, True, False])
        >>> bool(IBOTLoss()(scores, scores, mask=mask) == IBOTLoss()(scores[:3], scores[:3]))
        True
    """

    def forward(
        self, scores: Scores, teacher_scores: Scores, weights: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Weighted mean over tokens."""
        _check_same('scores', scores, teacher_scores)
        number = scores.shape[0]
        for name, values in (('weights', weights), ('mask', mask)):
            if values is not None and not isinstance(values, Tensor):
                raise TypeError(f'{name} must be a tensor ({number},), got {type(values).__name__}')
            if values is not None and tuple(values.shape) != (number,):
                raise ValueError(f'{name} must have shape ({number},), got {tuple(values.shape)}')
        if mask is not None and mask.dtype != torch.bool:
            raise TypeError(f'mask must be a bool tensor (True = a token, False = padding), got {mask.dtype}')
        with exact_products(scores.embeddings if isinstance(scores, PrototypeScores) else scores):
            with torch.no_grad():
                teacher = as_scores(teacher_scores).detach()
                usable = torch.isfinite(teacher).all(1) & _finite([scores])
                usable = usable if mask is None else usable & mask
                bias = self._bias(teacher, usable)
            losses = self._compare(scores, teacher_scores, bias)
            weights = losses.new_ones(number) if weights is None else weights.to(losses.dtype)
            weights = torch.where(usable, weights, 0.0)
            return (torch.where(usable, losses, 0.0) * weights).sum() / _share_of_all(weights)


def masked_tokens(mask: Tensor, num_rows: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, weights and validity of the masked tokens, in a buffer whose size does not depend on the data.

    Args:
        mask: (B, L) bool or (B, H, W), **True = visible**, as :class:`~clusterplug.datasets.transforms.CyclicMask`
            gives it.
        num_rows: R, size of the buffer, at least the number of masked tokens; None: B L. More masked tokens than R
            lose the last ones, on the CPU they are an error.

    Returns:
        ``index`` (R,) int64 rows in B L tokens, ``weights`` (R,) 1 / (masked tokens of the image) / B, 0 for padding,
        and ``valid`` (R,) bool.

    Raises:
        TypeError: ``mask`` is not bool.
        ValueError: Fewer than 2 dimensions; on the CPU more masked tokens than rows.

    Example:
        >>> index, weights, valid = masked_tokens(torch.tensor([[True, False, False], [True, True, False]]), 4)
        >>> index[:3].tolist(), weights.tolist(), valid.tolist()
        ([1, 2, 5], [0.25, 0.25, 0.5, 0.0], [True, True, True, False])
    """
    if mask.dtype != torch.bool:
        raise TypeError(f'mask must be a bool tensor (True = visible), got {mask.dtype}')
    if mask.dim() < 2:
        raise ValueError(f'mask must have shape (B, L) or (B, H, W), got {tuple(mask.shape)}')
    hidden = ~mask.flatten(1)
    num_rows = hidden.numel() if num_rows is None else min(check_count(num_rows, 'num_rows', 0), hidden.numel())
    if mask.device.type == 'cpu' and int(hidden.sum()) > num_rows:
        raise ValueError(f'num_rows must be at least the number of masked tokens, {int(hidden.sum())}, got {num_rows}')
    flat = hidden.flatten()
    index = flat.to(torch.uint8).argsort(descending=True, stable=True)[:num_rows]
    valid = flat[index]
    share = 1.0 / hidden.sum(1).clamp(min=1) / max(1, len(hidden))
    weights = torch.where(valid, share[index // hidden.shape[1]], 0.0)
    return index, weights, valid


def _finite(scores: Sequence[Scores]) -> Tensor:
    """(B,) rows that are finite in all views; of factors, their embeddings."""
    with torch.no_grad():
        values = [each.embeddings if isinstance(each, PrototypeScores) else each for each in scores]
        return torch.stack([torch.isfinite(each).all(1) for each in values]).all(0)


def _share_of_all(amount: Tensor) -> Tensor:
    """Return the sum over all ranks of ``amount`` divided by their number: DDP takes the mean of gradients."""
    ranks = world_size()
    dtype = amount.dtype if amount.is_floating_point() else torch.float32
    total = sum_over_ranks(amount.sum(dtype=dtype), dist.group.WORLD if ranks > 1 else None) / ranks
    return torch.where(total > 0, total, 1.0)


def _check_same(name: str, scores: Scores, others: Scores) -> None:
    for each in (scores, others):
        if not isinstance(each, Tensor | PrototypeScores):
            raise TypeError(f'{name} must be tensors or PrototypeScores, got {type(each).__name__}')
        if len(each.shape) != 2:
            raise ValueError(f'{name} must have shape (N, K), got {tuple(each.shape)}')
        dtype = each.embeddings.dtype if isinstance(each, PrototypeScores) else each.dtype
        if not dtype.is_floating_point:
            raise TypeError(f'{name} must be floating, got {dtype}')
    if tuple(scores.shape) != tuple(others.shape):
        raise ValueError(
            f'{name} of student and teacher must have one shape, got {tuple(scores.shape)} and {tuple(others.shape)}'
        )


def _check_views(scores: Sequence[Scores], teacher_scores: Sequence[Scores]) -> None:
    for name, views in (('scores', scores), ('teacher_scores', teacher_scores)):
        if isinstance(views, PrototypeScores) or not isinstance(views, Sequence):
            raise TypeError(f'{name} must be a list of (B, K), one a view, got {type(views).__name__}')
    if not teacher_scores or len(scores) < 2 or len(teacher_scores) > len(scores):
        raise ValueError(
            f'scores must hold at least 2 views, and teacher_scores 1 to as many, got {len(scores)} and '
            f'{len(teacher_scores)}; a view never predicts itself'
        )
    for each in [*scores, *teacher_scores]:
        _check_same('scores', each, scores[0])
