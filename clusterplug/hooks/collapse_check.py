# SPDX-License-Identifier: Apache-2.0
"""Say it when a clustering loss stays at the value of a collapsed model."""

import warnings

import torch
from mmengine.hooks import Hook

from clusterplug.core.checks import check_number
from clusterplug.registry import HOOKS


@HOOKS.register_module()
class CollapseCheckHook(Hook):
    """Warn when the loss stayed within one percent of that of a collapsed model for an epoch, with what to change.

    Args:
        tolerance: Relative distance to it. Defaults to 0.01.

    Losses that log ``ln_k`` say what they are where all samples have the same embedding: ln K of a
    :class:`~clusterplug.losses.SwAVLoss`, ln(2 B - 1) of a :class:`~clusterplug.losses.NTXentLoss`. They start near
    there; an epoch later they should not be there any more. Nothing is read before the end of the epoch.

    Example:
        ``custom_hooks = [dict(type='clusterplug.CollapseCheckHook')]``
    """

    def __init__(self, tolerance: float = 0.01):
        self.tolerance = check_number(tolerance, 'tolerance', above=0)
        self._farthest = None

    def before_train_epoch(self, runner) -> None:
        """Begin anew."""
        self._farthest = None

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Keep the largest distance, on the device."""
        outputs = outputs or {}
        names = [name for name in outputs if name.startswith('loss_')]
        if 'ln_k' not in outputs or not names:
            return
        loss = sum(torch.as_tensor(outputs[name]).detach() for name in names)
        distance = (loss / torch.as_tensor(outputs['ln_k']) - 1).abs()
        self._farthest = distance if self._farthest is None else torch.maximum(self._farthest, distance)

    def after_train_epoch(self, runner) -> None:
        """Compare it."""
        if self._farthest is not None and float(self._farthest) < self.tolerance:
            warnings.warn(
                f'the loss stayed within {self.tolerance:.0%} of ln K, its value at collapse, for epoch '
                f'{runner.epoch + 1}: the model tells samples no more apart than a collapsed one. Try a smaller '
                f'learning rate; with prototypes epsilon=0.03, a shorter queue or one that starts later, fewer of them',
                stacklevel=2,
            )
