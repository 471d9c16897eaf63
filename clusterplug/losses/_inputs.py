# SPDX-License-Identifier: Apache-2.0
"""What a clustering loss accepts, with messages that say what to do."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


def _check_kinds(features: Tensor, labels: Tensor, feature_rows: Tensor | None) -> None:
    if not isinstance(features, Tensor) or not features.is_floating_point():
        got = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f'features must be a floating tensor (N, in_channels), got {got}')
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f'labels must be an integer tensor (N,), got {got}; convert them with labels.long()')
    if feature_rows is not None:
        if features.dim() != 2 or feature_rows.dtype != torch.int64 or feature_rows.shape != labels.shape:
            raise ValueError(
                f'features must be (M, in_channels) and feature_rows (N,) int64 like the labels, got '
                f'{tuple(features.shape)}, {tuple(feature_rows.shape)} {feature_rows.dtype} and {tuple(labels.shape)}'
            )
    elif features.dim() != 2 or tuple(labels.shape) != (features.shape[0],):
        raise ValueError(
            f'features must be (N, in_channels) and labels (N,) with the same N, '
            f'got {tuple(features.shape)} and {tuple(labels.shape)}'
        )
    if labels.device != features.device:
        raise ValueError(f'labels must be on the device of the features, {features.device}, got {labels.device}')


def _to_classes(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Predicted classes (N,) int64 from classes or logits."""
    if not isinstance(predictions, Tensor):
        raise TypeError(f'predictions must be a tensor of classes or logits, got {type(predictions).__name__}')
    if predictions.dim() == 2:
        if predictions.shape[1] != num_classes:
            raise ValueError(
                f'num_classes is {num_classes} but the predictions have {predictions.shape[1]} columns; '
                f'set num_classes of the loss to that of the model'
            )
        predictions = predictions.detach().argmax(1)
    if predictions.shape != labels.shape:
        raise ValueError(
            f'predictions must be (N,) classes or (N, num_classes) logits with N = {labels.shape[0]}, '
            f'got {tuple(predictions.shape)}'
        )
    return predictions


def _to_classes_or_ignored(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Labels (N,) from 0 to C-1 or -1 for ignored ones; an error for all others, without host synchronization.

    On CUDA the error is a device-side assert, as in cross entropy.
    """
    ignored = labels == ignore_index
    known = labels.clamp(0, num_classes - 1) == labels
    try:
        torch._assert_async((known | ignored).all(), 'labels outside the classes, and not ignore_index')
    except RuntimeError:
        if labels.device.type != 'cpu':
            raise
        wrong = labels[~(known | ignored)]
        raise ValueError(
            f'labels must be 0 to {num_classes - 1} or ignore_index = {ignore_index}, '
            f'got {sorted(set(wrong.tolist()))[:10]} in {wrong.numel()} points; '
            f'check num_classes, ignore_index and the label mapping of the data set'
        ) from None
    return labels.masked_fill(ignored, -1)


class Settings(Protocol):
    """What the checks need to know of the loss."""

    num_classes: int
    in_channels: int | None
    ignore_index: int
    regions: str


def _check_regions(loss: Settings, labels: Tensor, regions: Tensor | None) -> None:
    if regions is None:
        if loss.regions != 'point':
            raise ValueError(
                f'regions must be given (N,), as the loss was built with regions={loss.regions!r}; '
                f"WithClustering finds them, or build the loss with regions='point'"
            )
    elif regions.dtype != torch.int64 or regions.shape != labels.shape or regions.device != labels.device:
        raise ValueError(
            f'regions must be (N,) int64 like the labels, got {tuple(regions.shape)} {regions.dtype} on '
            f'{regions.device} and {tuple(labels.shape)} on {labels.device}'
        )


def check_cells(features: Tensor, cells: Tensor | None) -> Tensor:
    """Coordinates (M, 1 to 3) int64 of the features in their grid; those of no row become those of an ignored one."""
    if cells is None:
        raise ValueError(
            'cells must be given (M, 1 to 3), the coordinates of the features in their grid, as the assigner has a '
            'position_period; WithClustering finds them where the tap has a grid, or leave position_period out'
        )
    if cells.dtype != torch.int64 or cells.dim() != 2 or not 1 <= cells.shape[1] <= 3 or len(cells) != len(features):
        raise ValueError(
            f'cells must be (M, 1 to 3) int64 for M = {len(features)} features, got {tuple(cells.shape)} {cells.dtype}'
        )
    return cells if len(cells) else cells.new_zeros(1, cells.shape[1])


def check_inputs(
    loss: Settings,
    features: Tensor,
    labels: Tensor,
    predictions: Tensor | None,
    feature_rows: Tensor | None,
    regions: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Checked features, int64 labels (-1 = ignored), predicted classes, rows, regions; no row becomes an ignored one.

    With no row at all there would be nothing to gather and no gradient path; one ignored row keeps every
    rank on the same sequence of collectives.
    """
    _check_kinds(features, labels, feature_rows)
    if loss.in_channels is not None and features.shape[1] != loss.in_channels:
        raise ValueError(f'features must have in_channels = {loss.in_channels} columns, got {features.shape[1]}')
    labels = labels.long()
    classes = _to_classes_or_ignored(labels, loss.num_classes, loss.ignore_index) if labels.numel() else labels
    _check_regions(loss, labels, regions)
    if predictions is not None:
        predictions = _to_classes(predictions, labels, loss.num_classes)
    if features.shape[0] == 0 or labels.shape[0] == 0:
        features = F.pad(features, (0, 0, 0, 1))
        classes = classes.new_full((1,), -1)
        predictions = None if predictions is None else classes
        feature_rows = None if feature_rows is None else torch.zeros_like(classes)
        regions = None if regions is None else classes
    return features, classes, predictions, feature_rows, regions
