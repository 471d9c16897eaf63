# SPDX-License-Identifier: Apache-2.0
"""Accuracy or IoU of frequent, medium and rare classes, and its mean over the classes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.evaluation._samples import labels_and_predictions
from clusterplug.registry import METRICS

KINDS = ('accuracy', 'iou')
_GROUPS = ('head', 'medium', 'tail')


class LongTail(NamedTuple):
    """Results by how frequent a class is in training.

    Attributes:
        head: Mean over the frequent classes; NaN where no class of the group has a value.
        medium: Mean over the classes between.
        tail: Mean over the rare classes.
        class_mean: Mean over all classes that have a value.
        overall: Share of all samples that are right, whatever the class.
        per_class: (C,) float64; NaN for a class without a sample.
    """

    head: float
    medium: float
    tail: float
    class_mean: float
    overall: float
    per_class: Tensor


def long_tail_groups(
    counts: Tensor | Sequence[int],
    *,
    shares: Sequence[float] = (0.3, 0.4, 0.3),
    thresholds: Sequence[int] | None = None,
) -> Tensor:
    """Return the group of each class: 0 head, 1 medium, 2 tail.

    Args:
        counts: (C,) number of training samples of each class, at least 0.
        shares: Shares of the classes, from the most frequent on, that are head, medium and tail; of equal counts the
            class with the lower number comes first. They sum to 1.
        thresholds: ``(100, 20)`` instead: head has more than the first, tail fewer than the second number.

    Returns:
        (C,) int64.

    Raises:
        ValueError: No class, a negative count, shares that do not sum to 1, thresholds that do not fall.

    Source: 30 / 40 / 30 % as in Zhang et al., "P2OT", ICLR 2024 (arXiv 2401.09266); thresholds as in Liu et al.,
    "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019 (arXiv 1904.05160).

    Example:
        >>> long_tail_groups([500, 100, 50, 10])
        tensor([0, 1, 1, 2])
    """
    counts = _counts(counts)
    if thresholds is not None:
        if len(thresholds) != 2 or thresholds[0] < thresholds[1] or thresholds[1] < 0:
            raise ValueError(f'thresholds must be two numbers, the larger first, got {thresholds!r}; pass (100, 20)')
        return 1 - (counts > thresholds[0]).long() + (counts < thresholds[1]).long()
    if len(shares) != 3:
        raise ValueError(f'shares must be three numbers that sum to 1, got {shares!r}; pass (0.3, 0.4, 0.3)')
    shares = [check_number(share, 'each of shares', 0, 1) for share in shares]
    if abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f'shares must sum to 1, got {shares}; pass (0.3, 0.4, 0.3)')
    number = len(counts)
    first, second = int(shares[0] * number + 0.5), int((shares[0] + shares[1]) * number + 0.5)
    ranks = torch.empty(number, dtype=torch.int64)
    ranks[torch.sort(counts, descending=True, stable=True).indices] = torch.arange(number)
    return (ranks >= first).long() + (ranks >= second).long()


def long_tail_accuracy(
    labels: Tensor,
    predictions: Tensor,
    counts: Tensor | Sequence[int],
    *,
    kind: str = 'accuracy',
    shares: Sequence[float] = (0.3, 0.4, 0.3),
    thresholds: Sequence[int] | None = None,
) -> LongTail:
    r"""Return the mean accuracy (or IoU) over frequent, medium and rare classes and over all of them.

    .. math:: a_c = \frac{|\{i : y_i = c, \hat y_i = c\}|}{|\{i : y_i = c\}|}, \qquad
              \text{class mean} = \frac{1}{C} \sum_c a_c.

    Args:
        labels: (N,) integer class; rows outside 0 .. C - 1 are ignored.
        predictions: (N,) integer class, or (N, C) scores (larger = better). A class outside 0 .. C - 1 is wrong.
        counts: (C,) number of training samples of each class.
        kind: ``'accuracy'``, or ``'iou'`` = right / (labeled + predicted - right), for segmentation.
        shares: Groups by share of the classes (see :func:`long_tail_groups`).
        thresholds: Groups by number of training samples instead.

    Returns:
        :class:`LongTail`; values from 0 to 1. A class without a labeled row has no value (NaN) and no part in means.

    Raises:
        TypeError: Labels or predictions are not integers (scores not floating).
        ValueError: Shapes that differ, NaN scores, no labeled row, or what :func:`long_tail_groups` raises.

    Example:
        >>> y, p = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 0, 1, 0, 0])
        >>> result = long_tail_accuracy(y, p, counts=[90, 9, 1])
        >>> result.head, result.medium, result.tail, result.class_mean
        (1.0, 0.5, 0.0, 0.5)
    """
    counts = _counts(counts)
    pairs = _pairs(labels, predictions, len(counts))
    return _summary(pairs, counts, check_choice(kind, 'kind', KINDS), shares, thresholds)


@METRICS.register_module()
class LongTailMetric(BaseMetric):
    """:func:`long_tail_accuracy` for mm Runners: image classifiers and point segmentors.

    Labels and predictions are found in a data sample under ``gt_label`` / ``pred_label`` or ``pred_score``
    (mmpretrain), or ``eval_ann_info.pts_semantic_mask`` (``gt_pts_seg``) / ``pred_pts_seg`` (mmdet3d).

    Args:
        counts: Number of training samples of each class.
        kind: ``'accuracy'`` or ``'iou'``.
        shares: Shares of the classes that are head, medium and tail.
        thresholds: ``(100, 20)``: groups by number of training samples instead.
        collect_device: Where results of ranks are gathered.
        prefix: Of the names.
        **options: Further arguments of mmengine's ``BaseMetric``.

    Raises:
        ValueError: As :func:`long_tail_accuracy`; a sample without labels or predictions.

    Example:
        ``val_evaluator = dict(type='clusterplug.LongTailMetric', counts=[500, 100, 50, 10])`` logs
        ``long_tail/head``, ``medium``, ``tail``, ``class_mean`` and ``overall``, in percent.
    """

    default_prefix = 'long_tail'

    def __init__(
        self,
        counts: Sequence[int],
        kind: str = 'accuracy',
        shares: Sequence[float] = (0.3, 0.4, 0.3),
        thresholds: Sequence[int] | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        **options,
    ):
        super().__init__(collect_device=collect_device, prefix=prefix, **options)
        self.counts, self.kind = _counts(counts), check_choice(kind, 'kind', KINDS)
        self.shares, self.thresholds = tuple(shares), thresholds
        long_tail_groups(self.counts, shares=self.shares, thresholds=thresholds)

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Count the pairs of label and prediction of each sample."""
        for sample in data_samples:
            labels, predictions = labels_and_predictions(sample)
            self.results.append(_pairs(labels, predictions, len(self.counts)))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Means over the samples of all ranks, in percent."""
        pairs = torch.cat(results) if results else torch.empty(0, 3, dtype=torch.int64)
        found = _summary(pairs, self.counts, self.kind, self.shares, self.thresholds)
        return {name: 100 * getattr(found, name) for name in (*_GROUPS, 'class_mean', 'overall')}


def _counts(counts) -> Tensor:
    counts = torch.as_tensor(counts)
    if counts.dim() != 1 or counts.numel() == 0 or counts.is_floating_point() or counts.dtype == torch.bool:
        raise ValueError(
            f'counts must hold one integer a class, got shape {tuple(counts.shape)} of {counts.dtype}; '
            f'pass the number of training samples of each class'
        )
    for value in counts.tolist():
        check_count(value, 'each of counts')
    return counts.long().cpu()


def _integers(values: Tensor, name: str) -> Tensor:
    values = torch.as_tensor(values)
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f'{name} must be integers, got {values.dtype}; convert them with .long()')
    return values.long()


def _pairs(labels, predictions, num_classes: int) -> Tensor:
    """(P, 3) int64 on the CPU: label, prediction (``num_classes`` = outside) and how often they occur together."""
    labels, predictions = _integers(labels, 'labels'), torch.as_tensor(predictions)
    if predictions.dim() == 2 and labels.dim() == 1:
        if not predictions.is_floating_point() or predictions.shape[1] != num_classes:
            raise ValueError(
                f'scores must be floating (N, {num_classes}), got {tuple(predictions.shape)} of {predictions.dtype}; '
                f'pass one score for each class'
            )
        if bool(predictions.isnan().any()):
            raise ValueError('predictions must not hold NaN scores; look at the model')
        predictions = predictions.argmax(1)
    predictions = _integers(predictions, 'predictions')
    if labels.dim() != 1 or labels.shape != predictions.shape:
        raise ValueError(
            f'labels and predictions must be (N,) of the same N, got {tuple(labels.shape)} and '
            f'{tuple(predictions.shape)}; flatten both'
        )
    labels, predictions = labels.cpu(), predictions.cpu()
    known = (labels >= 0) & (labels < num_classes)
    outside = (predictions < 0) | (predictions >= num_classes)
    predictions = predictions.masked_fill(outside, num_classes)[known]
    keys, times = torch.unique(labels[known] * (num_classes + 1) + predictions, return_counts=True)
    return torch.stack([keys // (num_classes + 1), keys % (num_classes + 1), times], 1)


def _summary(pairs: Tensor, counts: Tensor, kind: str, shares, thresholds) -> LongTail:
    if len(pairs) == 0:
        raise ValueError('labels must hold at least one row with a class in counts, got none; check the label map')
    number, times = len(counts), pairs[:, 2].double()
    groups = long_tail_groups(counts, shares=shares, thresholds=thresholds)
    right = torch.where(pairs[:, 0] == pairs[:, 1], times, 0.0)
    zeros = torch.zeros(number + 1, dtype=torch.float64)
    hits = zeros.index_add(0, pairs[:, 0], right)[:number]
    labelled = zeros.index_add(0, pairs[:, 0], times)[:number]
    predicted = zeros.index_add(0, pairs[:, 1], times)[:number]
    share = hits / (labelled if kind == 'accuracy' else labelled + predicted - hits)
    per_class = share.masked_fill(labelled == 0, torch.nan)
    means = [float(per_class[groups == group].nanmean()) for group in range(3)]
    return LongTail(*means, float(per_class.nanmean()), float(right.sum() / times.sum()), per_class)
