# SPDX-License-Identifier: Apache-2.0
"""When a clustering loss sets in, how its weight rises, how its centers slow down."""

import warnings

from mmengine.hooks import Hook

from clusterplug.core.checks import check_count
from clusterplug.hooks._find import clustering_losses
from clusterplug.hooks.value_schedule import ValueScheduleHook
from clusterplug.registry import HOOKS


class _OfLosses(ValueScheduleHook):
    """The schedule of one value of every clustering loss of the model."""

    def __init__(self, attribute: str, **schedule):
        super().__init__(f'loss.{attribute}', **schedule)
        self.attribute = attribute

    def owners(self, model):
        return [(loss, self.attribute) for loss in clustering_losses(model, 'ClusterScheduleHook').values()]


@HOOKS.register_module()
class ClusterScheduleHook(Hook):
    """Set weight and momentum of every clustering loss before each training iteration.

    The weight is 0 before iteration ``begin`` (the memory learns all the same, so that there are subclasses when the
    loss sets in), rises linearly over ``ramp_iters`` iterations, and is then the ``loss_weight`` of the loss. The
    momentum goes from ``start_momentum`` to that of the loss along a half cosine over ``momentum_iters`` iterations,
    as centers that were just seeded should move faster than those of a trained network.

    Both are a :class:`~clusterplug.hooks.ValueScheduleHook`. Everything follows from the number of the iteration, so a
    resumed run goes on where it was. After the training every loss has the weight and momentum that it had before;
    where a training ended with an error, the next one begins with them.

    Args:
        begin: First iteration (counted from 0) with a weight above 0. Defaults to 0.
        ramp_iters: Iterations until the full weight. Defaults to 0.
        start_momentum: Momentum at iteration 0; by default that of the loss throughout.
        momentum_iters: Iterations until the momentum of the loss. Defaults to 1000.

    Raises:
        ValueError: A negative number of iterations, a momentum outside 0 to 1, or no clustering loss in the model.

    A training that ends before ``begin`` is named in a warning: the loss would have no weight in it.

    Example:
        ``custom_hooks = [dict(type='clusterplug.ClusterScheduleHook', begin=500, ramp_iters=500)]``
    """

    priority = 'NORMAL'

    def __init__(
        self, begin: int = 0, ramp_iters: int = 0, start_momentum: float | None = None, momentum_iters: int = 1000
    ):
        self.begin, self.ramp_iters = _iterations('begin', begin), _iterations('ramp_iters', ramp_iters)
        self.momentum_iters = _iterations('momentum_iters', momentum_iters)
        if start_momentum is not None and (isinstance(start_momentum, bool) or not 0 <= start_momentum <= 1):
            raise ValueError(f'start_momentum must be None or from 0 to 1, got {start_momentum}')
        self.start_momentum = None if start_momentum is None else float(start_momentum)
        # the first step of the ramp is in iteration `begin`, so that it starts from 0 one iteration earlier
        self._weight = _OfLosses('weight_factor', start=0.0, end=1.0, iters=self.ramp_iters + 1, shape='linear')
        self._weight.begin = self.begin - 1
        # without a start, that of the loss from the first iteration on
        moving = start_momentum is not None
        self._momentum = _OfLosses('momentum', start=start_momentum or 0.0, iters=self.momentum_iters if moving else 0)
        self.schedules = (self._weight, self._momentum)

    def weight_factor(self, iteration: int) -> float:
        """Factor on the weight in an iteration, 0 to 1."""
        return self._weight.value(iteration)

    def momentum(self, iteration: int, final: float) -> float:
        """Momentum in an iteration of a loss whose own momentum is ``final``."""
        return self._momentum.value(iteration, final)

    def before_train(self, runner) -> None:
        """Give each loss what it had before a training that was cut short, and remember it."""
        for schedule in self.schedules:
            schedule.before_train(runner)
        length = getattr(runner, 'max_iters', None)
        if length is not None and self.begin >= length:
            warnings.warn(
                f'ClusterScheduleHook: begin is {self.begin}, and the training has {length} iterations, so that the '
                f'clustering loss has no weight in it; choose a smaller begin',
                stacklevel=2,
            )

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set weight and momentum for this iteration."""
        for schedule in self.schedules:
            schedule.before_train_iter(runner, batch_idx, data_batch)

    def after_train(self, runner) -> None:
        """Give each loss what it had before the training."""
        for schedule in self.schedules:
            schedule.after_train(runner)


def _iterations(name: str, value: int) -> int:
    try:
        return check_count(value, name)
    except TypeError as error:  # of a config: one kind of error for all its values
        raise ValueError(str(error)) from None
