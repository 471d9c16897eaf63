# SPDX-License-Identifier: Apache-2.0
"""Token reduction while a mm Runner validates or tests."""

import contextlib

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from clusterplug import patch
from clusterplug.registry import HOOKS


@HOOKS.register_module()
class TokenClusteringHook(Hook):
    """Run validation and test with fewer tokens inside the transformer; training and checkpoints do not change.

    A validation that failed or was interrupted leaves its patch in the model, as a Runner calls no hook then; the next
    validation, test or training step takes it away first.

    Args:
        method: ``'expedit'``, ``'tome'`` or ``'average'``. Defaults to ``'expedit'``.
        **options: As :func:`clusterplug.patch.apply`: ``start``, ``end``, ``grid`` or ``keep_ratio``, ...

    Raises:
        ValueError: When the run starts: no known transformer in the model, a model that is patched already, or a
            setting out of range.

    Example:
        ``custom_hooks = [dict(type='clusterplug.TokenClusteringHook', start=10, grid=(28, 28))]``
    """

    priority = 'NORMAL'

    def __init__(self, method: str = 'expedit', **options):
        self.method, self.options = method, options
        if 'grid' in options and options['grid'] is not None:
            self.options['grid'] = tuple(options['grid'])
        self._patched, self._running = None, set()

    def before_val(self, runner) -> None:
        """Apply."""
        self._begin(runner, 'val')

    def after_val(self, runner) -> None:
        """Remove."""
        self._end('val')

    def before_test(self, runner) -> None:
        """Apply."""
        self._begin(runner, 'test')

    def after_test(self, runner) -> None:
        """Remove."""
        self._end('test')

    def before_train(self, runner) -> None:
        """Remove what a validation that failed left."""
        self._clean()

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Remove what a validation that failed left."""
        self._clean()

    def after_run(self, runner) -> None:
        """Remove what a validation that failed left."""
        self._clean()

    def _begin(self, runner, kind: str) -> None:
        model = _model(runner)
        if kind in self._running or model is not self._patched:
            self._clean()
        if self._patched is None:
            patch.apply(model, self.method, **self.options)
            self._patched = model
        self._running.add(kind)

    def _end(self, kind: str) -> None:
        self._running.discard(kind)
        if not self._running:  # else a test inside a validation, which goes on
            self._clean()

    def _clean(self) -> None:
        model, self._patched = self._patched, None
        self._running.clear()
        if model is not None:
            # Somebody may have removed the patch by hand.
            with contextlib.suppress(ValueError):
                patch.remove(model)


def _model(runner):
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
