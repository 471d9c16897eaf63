# SPDX-License-Identifier: Apache-2.0
"""What the subclasses do during training, as numbers in the log."""

import torch
from mmengine.hooks import Hook
from torch import Tensor

from clusterplug.core.checks import check_count
from clusterplug.hooks._find import clustering_losses
from clusterplug.memory import SubclassMemory
from clusterplug.registry import HOOKS


def subclass_stats(memory: SubclassMemory, previous_centers: Tensor | None = None) -> dict[str, float]:
    """Numbers that tell whether the subclasses of a memory live.

    Args:
        memory: the memory; read on the host, so call this every few iterations only.
        previous_centers: (C, K, D) an earlier copy of its centers.

    Returns:
        ``seeded``: share of all centers (of classes seen so far) that are in use. ``used``: share of the seeded
        centers that have taken at least a tenth of their fair share of the recent anchors of their class. ``balance``:
        mean over classes of the entropy of the sizes over the largest possible one, 1 = equal. ``worst``: the largest
        share that one subclass has of a class with two centers or more, over all such classes, and ``collapsed``: the
        number of those where it is above 0.9 (the mean hides them). ``filled``: share of the queue slots of seeded
        centers that hold an embedding. ``drift``: mean of 1 - cosine between the centers now and before, if given. All
        0 while no class has been seen.
    """
    seen = memory.num_seeded > 0
    seeded = ~memory.layout.without_dummy(memory.unused)
    number = seeded.sum().clamp(min=1)
    sizes = memory.layout.without_dummy(memory.sizes) * seeded
    share = sizes / sizes.sum(1, keepdim=True).clamp(min=1e-12)
    fair = 1 / memory.num_seeded.clamp(min=1)[:, None]
    entropy = -(share * share.clamp(min=1e-12).log()).sum(1) / memory.num_seeded.clamp(min=2).log()
    # a class with one center is as balanced as it can be
    entropy = torch.where(memory.num_seeded == 1, 1.0, entropy)
    largest = share.amax(1) * (memory.num_seeded > 1)
    stats = {
        'seeded': seeded.sum() / memory.clusters_of[seen].sum().clamp(min=1),
        'used': ((share >= 0.1 * fair) & seeded).sum() / number,
        'balance': (entropy * seen).sum() / seen.sum().clamp(min=1),
        'worst': largest.max(),
        'collapsed': (largest > 0.9).sum(),
        'filled': (memory.num_filled * seeded).sum() / (number * memory.queue_len),
    }
    if previous_centers is not None:
        both = seeded & (previous_centers.abs().sum(-1) > 0)
        drift = (1 - (memory.centers * previous_centers).sum(-1)).clamp(min=0)
        stats['drift'] = (drift * both).sum() / both.sum().clamp(min=1)
    return {name: float(value) for name, value in stats.items()}


@HOOKS.register_module()
class ClusterStatsHook(Hook):
    """Write the numbers of :func:`subclass_stats` as ``cluster_*`` into the log and to the visualizer back-ends.

    They go through mmengine's message hub, so the logger prints them with the losses and every back-end of the
    visualizer (TensorBoard, local files ...) gets them. ``cluster_drift`` is measured from one writing to the next.

    Args:
        interval: Iterations between two writings; reading the numbers waits for the device. Defaults to 50.

    Raises:
        ValueError: An interval below 1, or no clustering loss in the model.

    Example:
        ``custom_hooks = [dict(type='clusterplug.ClusterStatsHook')]``
    """

    # before LoggerHook (BELOW_NORMAL), which collects what the hub holds
    priority = 'NORMAL'

    def __init__(self, interval: int = 50):
        try:
            self.interval = check_count(interval, 'interval', 1)
        except TypeError as error:  # of a config: one kind of error for all its values
            raise ValueError(str(error)) from None
        self._centers = {}

    def before_train(self, runner) -> None:
        """Look for the losses at once, and not only after the first interval."""
        clustering_losses(runner.model, type(self).__name__)
        self._centers = {}  # those of an earlier training would count as drift

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Write the numbers every ``interval`` iterations."""
        if not self.every_n_train_iters(runner, self.interval):
            return
        for name, loss in clustering_losses(runner.model, type(self).__name__).items():
            for key, value in subclass_stats(loss.memory, self._centers.get(name)).items():
                runner.message_hub.update_scalar(f'train/{name}cluster_{key}', value)
            self._centers[name] = loss.memory.centers.clone()
