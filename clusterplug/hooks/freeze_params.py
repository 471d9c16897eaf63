# SPDX-License-Identifier: Apache-2.0
"""Parameters that begin to learn later than the others."""

import re

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from clusterplug.core.checks import check_count
from clusterplug.registry import HOOKS


@HOOKS.register_module()
class FreezeParamsHook(Hook):
    """Keep some parameters as they are for the first iterations: no gradient reaches the optimizer.

    The gradients are dropped in the optimizer's step, so that neither momentum nor weight decay moves the parameters,
    and a distributed model sees the same set of parameters in every step. Everything follows from the number of the
    iteration, so that a resumed run goes on where it was.

    Args:
        params: Regular expression; parameters whose names have a match are meant. Defaults to the prototypes of all
            heads: ``head`` and ``volume_head``, of one set, several sets, or several levels.
        iters: Iterations; SwAV: about one epoch (313 at a batch of 4096, 5005 at 256). DeepCluster-v2 never
            trains its prototypes: a number above that of all iterations.

    Raises:
        ValueError: No parameter with such a name, or a negative number.

    Source: ``freeze_prototypes_niters`` of facebookresearch/swav.

    Example:
        ``custom_hooks = [dict(type='clusterplug.FreezeParamsHook', iters=313)]``
    """

    priority = 'NORMAL'

    def __init__(self, params: str = r'(^|[._])head\.(\w+\.)*prototypes(\.|$)', iters: int = 313):
        self.params, self.iters = params, check_count(iters, 'iters')
        self._handles = []

    def before_train(self, runner) -> None:
        """Watch the steps of the optimizers."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        frozen = [p for name, p in model.named_parameters() if re.search(self.params, name)]
        if not frozen:
            names = ', '.join(name for name, _ in list(model.named_parameters())[-5:])
            raise ValueError(
                f'FreezeParamsHook: no parameter of {type(model).__name__} has a name with {self.params!r}; the last '
                f'ones are {names}'
            )

        def drop_gradients(optimizer, args, kwargs):
            if runner.iter < self.iters:
                for parameter in frozen:
                    parameter.grad = None

        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if not hasattr(wrapper, 'optimizer') else [wrapper]
        self._handles = [each.optimizer.register_step_pre_hook(drop_gradients) for each in wrappers]

    def after_train(self, runner) -> None:
        """Leave the optimizers as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
