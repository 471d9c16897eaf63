"""When a clustering loss sets in, how its weight rises, how its centers slow down."""

import math

from mmengine.hooks import Hook

from clusterplug.hooks._find import clustering_losses
from clusterplug.registry import HOOKS


@HOOKS.register_module()
class ClusterScheduleHook(Hook):
    """Set weight and momentum of every clustering loss before each training iteration.

    The weight is 0 before iteration ``begin`` (the memory learns all the same, so that there are subclasses when the
    loss sets in), rises linearly over ``ramp_iters`` iterations, and is then the ``loss_weight`` of the loss. The
    momentum goes from ``start_momentum`` to that of the loss along a half cosine over ``momentum_iters`` iterations,
    as centers that were just seeded should move faster than those of a trained network.

    Everything follows from the number of the iteration, so a resumed run goes on where it was.

    Args:
        begin (int): First iteration (counted from 0) with a weight above 0. Defaults to 0.
        ramp_iters (int): Iterations until the full weight. Defaults to 0.
        start_momentum (float, optional): Momentum at iteration 0; by default that of the loss throughout.
        momentum_iters (int): Iterations until the momentum of the loss. Defaults to 1000.

    Raises:
        ValueError: A negative number of iterations, a momentum outside 0 to 1, or no clustering loss in the model.

    Example:
        ``custom_hooks = [dict(type='clusterplug.ClusterScheduleHook', begin=500, ramp_iters=500)]``
    """

    priority = 'NORMAL'

    def __init__(
        self, begin: int = 0, ramp_iters: int = 0, start_momentum: float | None = None, momentum_iters: int = 1000
    ):
        for name, value in (('begin', begin), ('ramp_iters', ramp_iters), ('momentum_iters', momentum_iters)):
            if not isinstance(value, int) or value < 0:
                raise ValueError(f'{name} must be an int of at least 0, got {value!r}')
        if start_momentum is not None and not 0 <= start_momentum <= 1:
            raise ValueError(f'start_momentum must be None or from 0 to 1, got {start_momentum}')
        self.begin, self.ramp_iters = begin, ramp_iters
        self.start_momentum, self.momentum_iters = start_momentum, momentum_iters
        self._momentum = {}

    def weight_factor(self, iteration: int) -> float:
        """Factor on the weight in an iteration, 0 to 1."""
        if iteration < self.begin:
            return 0.0
        return min(1.0, (iteration - self.begin + 1) / (self.ramp_iters + 1))

    def momentum(self, iteration: int, final: float) -> float:
        """Momentum in an iteration of a loss whose own momentum is ``final``."""
        if self.start_momentum is None or iteration >= self.momentum_iters:
            return final
        done = (1 - math.cos(math.pi * iteration / self.momentum_iters)) / 2
        return self.start_momentum + (final - self.start_momentum) * done

    def before_train(self, runner) -> None:
        """Remember the momentum that the config gave each loss."""
        losses = clustering_losses(runner.model, type(self).__name__)
        self._momentum = {name: loss.momentum for name, loss in losses.items()}

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set weight and momentum for this iteration."""
        for name, loss in clustering_losses(runner.model, type(self).__name__).items():
            loss.weight_factor = self.weight_factor(runner.iter)
            loss.momentum = self.momentum(runner.iter, self._momentum[name])
