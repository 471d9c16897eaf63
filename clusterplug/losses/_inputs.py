"""What a clustering loss accepts, with messages that say what to do."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _check_kinds(features: Tensor, labels: Tensor) -> None:
    if not isinstance(features, Tensor) or not features.is_floating_point():
        got = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f'features must be a floating tensor (N, in_channels), got {got}')
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f'labels must be an integer tensor (N,), got {got}; convert them with labels.long()')
    if features.dim() != 2 or tuple(labels.shape) != (features.shape[0],):
        raise ValueError(
            f'features must be (N, in_channels) and labels (N,) with the same N, '
            f'got {tuple(features.shape)} and {tuple(labels.shape)}'
        )
    if labels.device != features.device:
        raise ValueError(f'labels must be on the device of the features, {features.device}, got {labels.device}')


def _to_classes(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Predicted classes (N,) int64 from classes or logits."""
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


def _check_range(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    allowed = f'labels must be 0 to {num_classes - 1} or ignore_index = {ignore_index}'
    if labels.device.type != 'cpu':
        # a device-side assert, as cross entropy has it: to look here would stop the device
        torch._assert_async((((labels >= 0) & (labels < num_classes)) | (labels == ignore_index)).all(), allowed)
        return
    labels = labels.numpy()
    wrong = labels[((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)]
    if wrong.size:
        raise ValueError(
            f'{allowed}, got {sorted(set(wrong.tolist()))[:10]} in {wrong.size} points; '
            f'check num_classes, ignore_index and the label mapping of the data set'
        )


def check_inputs(
    loss: nn.Module, features: Tensor, labels: Tensor, predictions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Checked features, int64 labels and predicted classes; an empty batch becomes one ignored row.

    With no row at all there would be nothing to gather and no gradient path; one row that takes no part keeps every
    rank on the same sequence of collectives.
    """
    _check_kinds(features, labels)
    if loss.in_channels is not None and features.shape[1] != loss.in_channels:
        raise ValueError(f'features must have in_channels = {loss.in_channels} columns, got {features.shape[1]}')
    labels = labels.long()
    _check_range(labels, loss.num_classes, loss.ignore_index)
    if predictions is not None:
        predictions = _to_classes(predictions, labels, loss.num_classes)
    if features.shape[0] == 0:
        features = F.pad(features, (0, 0, 0, 1))
        labels = F.pad(labels, (0, 1), value=-1)
        predictions = None if predictions is None else F.pad(predictions, (0, 1))
    return features, labels, predictions
