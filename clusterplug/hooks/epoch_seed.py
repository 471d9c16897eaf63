# SPDX-License-Identifier: Apache-2.0
"""Random numbers of an epoch that do not depend on the epochs before it."""

import random

import numpy as np
import torch
from mmengine.hooks import Hook

from clusterplug.core.checks import check_count
from clusterplug.core.distributed import rank
from clusterplug.registry import HOOKS


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed the run's generators at the start of every epoch, so that a resumed run draws what an unbroken one draws.

    mmengine does not save the state of generators. With this hook, augmentation in the main process and dropout are
    functions of seed, epoch and rank; workers of a loader with ``persistent_workers=False`` are seeded anew in every
    epoch by mmengine, which makes them resumable without it.

    Args:
        seed: Seed; the same as ``randomness.seed`` or another.

    Example:
        ``custom_hooks = [dict(type='clusterplug.EpochSeedHook', seed=0)]``
    """

    # before everything that draws
    priority = 'VERY_HIGH'

    def __init__(self, seed: int = 0):
        self.seed = check_count(seed, 'seed')

    def before_train_epoch(self, runner) -> None:
        """Seed Python, NumPy and torch."""
        words = np.random.SeedSequence([self.seed, runner.epoch, rank()]).generate_state(2)
        random.seed(int(words[0]))
        np.random.seed(int(words[0]))
        torch.manual_seed(int(words[1]))
