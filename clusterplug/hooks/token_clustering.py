"""Token reduction while a mm Runner validates or tests."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from clusterplug import patch
from clusterplug.registry import HOOKS


@HOOKS.register_module()
class TokenClusteringHook(Hook):
    """Run validation and test with fewer tokens inside the transformer; training and checkpoints do not change.

    Args:
        method (str): ``'expedit'``, ``'tome'`` or ``'average'``. Defaults to ``'expedit'``.
        **options: As :func:`clusterplug.patch.apply`: ``start``, ``end``, ``grid`` or ``keep_ratio``, ...

    Raises:
        ValueError: When the run starts: no known transformer in the model, or a setting out of range.

    Example:
        ``custom_hooks = [dict(type='clusterplug.TokenClusteringHook', start=10, grid=(28, 28))]``
    """

    priority = 'NORMAL'

    def __init__(self, method: str = 'expedit', **options):
        self.method, self.options = method, options
        if 'grid' in options and options['grid'] is not None:
            self.options['grid'] = tuple(options['grid'])

    def before_val(self, runner) -> None:
        """Apply."""
        patch.apply(_model(runner), self.method, **self.options)

    def after_val(self, runner) -> None:
        """Remove."""
        patch.remove(_model(runner))

    before_test, after_test = before_val, after_val


def _model(runner):
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
