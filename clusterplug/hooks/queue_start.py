# SPDX-License-Identifier: Apache-2.0
"""A queue of features that sets in once they mean something."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from clusterplug.core.checks import check_count
from clusterplug.registry import HOOKS


@HOOKS.register_module()
class QueueStartHook(Hook):
    """Leave the queue of a :class:`~clusterplug.pretraining.MultiViewModel` alone for the first epochs or iterations.

    Features of an untrained network are all alike, and a queue of them makes the loss explode or stay at ln K. From
    ``begin`` on the queue is filled, and it is used once it is full.

    Args:
        begin: First epoch (or iteration) with the queue, counted from 0. SwAV: 15 at a batch of 256.
        by_epoch: Whether ``begin`` counts epochs.

    Raises:
        ValueError: A negative number, or a model without a queue.

    Source: ``epoch_queue_starts`` of facebookresearch/swav. **Differs from the authors' code**: a resumed run follows
    this number, too (theirs uses a saved queue whatever it says).

    Example:
        ``custom_hooks = [dict(type='clusterplug.QueueStartHook', begin=15)]``
    """

    priority = 'NORMAL'

    def __init__(self, begin: int = 15, by_epoch: bool = True):
        self.begin, self.by_epoch = check_count(begin, 'begin'), by_epoch

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Switch the queue on or off."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if getattr(model, 'queues', None) is None:
            raise ValueError(
                f'QueueStartHook found no queue in {type(model).__name__}; give MultiViewModel '
                f"queue=dict(type='clusterplug.FeatureQueue', length=3840, embed_dims=128), or remove the hook"
            )
        model.queue_enabled = (runner.epoch if self.by_epoch else runner.iter) >= self.begin
