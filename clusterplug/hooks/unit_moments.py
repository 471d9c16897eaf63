# SPDX-License-Identifier: Apache-2.0
"""How far the units of a model have moved from those of a reference, collected while it is validated."""

import copy
import warnings
from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from clusterplug.analysis import UnitMatching
from clusterplug.checkpoints import load_checkpoint_into
from clusterplug.core.checks import check_count
from clusterplug.registry import HOOKS


@HOOKS.register_module()
class UnitMomentsHook(Hook):
    """Compare the units of the model with those of a reference on every validation.

    The reference is a copy of the model: with the weights it had at the start, or with those of a checkpoint (of the
    same config). Second moments of both are collected on the validation batches (each runs twice), summed over ranks,
    and ``units/LAYER_bipartite``, ``_semi`` and ``_cka`` are logged.

    Args:
        layers: Names of modules.
        reference: ``'start'``, or a checkpoint. Defaults to ``'start'``.
        max_batches: Batches of a validation that are looked at. Defaults to all.
        pool: As for :class:`~clusterplug.analysis.UnitMatching`. Defaults to ``'positions'``.
        channels: Likewise. Defaults to ``'auto'``.

    Raises:
        ValueError: As :class:`~clusterplug.analysis.UnitMatching`.

    Example:
        ``custom_hooks = [dict(type='clusterplug.UnitMomentsHook', layers=['backbone.conv_input'])]``
    """

    priority = 'VERY_LOW'

    def __init__(
        self,
        layers: Sequence[str],
        reference: str = 'start',
        max_batches: int | None = None,
        pool: str = 'positions',
        channels: str = 'auto',
    ):
        self.layers = layers
        self.reference = reference
        self.max_batches = None if max_batches is None else check_count(max_batches, 'max_batches', 1)
        self.options = dict(pool=pool, channels=channels)
        self.matching = None
        self.summary = {}

    def before_run(self, runner) -> None:
        """Copy the model; load the checkpoint into the copy."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        other = copy.deepcopy(model).requires_grad_(False)
        if self.reference != 'start':
            load_checkpoint_into(other, self.reference)
        elif runner._resume:
            warnings.warn(
                "UnitMomentsHook: reference='start' of a resumed run is the model that was built, not the one that the "
                'run started from; pass that checkpoint as reference',
                stacklevel=2,
            )
        self.matching = UnitMatching(other, model, self.layers, **self.options)
        self._fresh = self.reference == 'start'

    def before_train(self, runner) -> None:
        """Take the weights at the start: those of init_cfg and load_from are there only now."""
        if self._fresh:
            self.matching.models[0].load_state_dict(self.matching.models[1].state_dict())

    def before_val_epoch(self, runner) -> None:
        """Begin anew."""
        self.matching.reset()

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Collect the moments of one batch."""
        if self.max_batches is None or batch_idx < self.max_batches:
            self.matching.add(data_batch)

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Sum over ranks and log."""
        for name, moments in self.matching.moments.items():
            self.matching.moments[name] = moments.over_ranks()
        self.summary = {}
        for name in self.matching.pairs:
            for method in ('semi', 'bipartite'):
                self.summary[f'units/{name}_{method}'] = float(self.matching.curve(name, method).mean())
            self.summary[f'units/{name}_cka'] = self.matching.cka(name)
        for name, value in self.summary.items():
            runner.message_hub.update_scalar(name, value)
        runner.logger.info('  '.join(f'{name}: {value:.4f}' for name, value in self.summary.items()))
