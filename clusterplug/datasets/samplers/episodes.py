# SPDX-License-Identifier: Apache-2.0
"""Few-shot episodes: some classes, some labeled samples of each, and queries."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from clusterplug.core.checks import check_count
from clusterplug.datasets.samplers._base import EpochBatchSampler
from clusterplug.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class EpisodeSampler(EpochBatchSampler):
    """Draw episodes: ``num_ways`` classes, of each ``num_shots`` supports and ``num_queries`` other samples.

    A batch is one episode: first the supports class by class, ``num_ways * num_shots``, then the queries class by
    class, ``num_ways * num_queries``. No sample stands in an episode twice. Each episode follows from (seed, epoch,
    its number) alone, so that it is the same on any number of ranks.

    Args:
        labels: (N,) integers: array, tensor, list, or the path of a .npy file. Below 0 = ignored. Classes of fewer than
            ``num_shots + num_queries`` samples are never drawn.
        num_ways: Classes of an episode.
        num_shots: Supports of each class.
        num_queries: Queries of each class.
        num_episodes: Episodes an epoch, over all ranks.
        seed: Seed of the draws.
        sampler: What mmengine passes: only its ``dataset`` is used, to check the number of labels.
        batch_size: What mmengine passes: must be the number of samples of an episode.
        rank: Rank; default that of torch.distributed.
        world_size: Number of ranks; default that of torch.distributed.

    Raises:
        ValueError: Fewer classes with enough samples than ``num_ways``.

    The last ranks repeat the first episodes where ``num_episodes`` is not a multiple of the ranks.

    Example:
        >>> sampler = EpisodeSampler([0, 0, 0, 1, 1, 1, 2], num_ways=2, num_shots=1, num_queries=2, num_episodes=3)
        >>> [len(episode) for episode in sampler]
        [6, 6, 6]
    """

    def __init__(
        self,
        labels: Any,
        num_ways: int = 5,
        num_shots: int = 1,
        num_queries: int = 15,
        num_episodes: int = 600,
        seed: int | None = 0,
        *,
        sampler: Any = None,
        batch_size: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        self.num_ways = check_count(num_ways, 'num_ways', 1)
        self.num_shots = check_count(num_shots, 'num_shots', 1)
        self.num_queries = check_count(num_queries, 'num_queries', 0)
        self.num_episodes = check_count(num_episodes, 'num_episodes', 1)
        size = self.num_ways * (self.num_shots + self.num_queries)
        if batch_size is not None and batch_size != size:
            raise ValueError(
                f'batch_size must be that of an episode, num_ways x (num_shots + num_queries) = {size}, got '
                f'{batch_size!r}'
            )
        super().__init__(labels, size, seed, sampler, rank, world_size)

    def _changed(self) -> None:
        needed = self.num_shots + self.num_queries
        order = np.argsort(self.labels, kind='stable')
        order = order[self.labels[order] >= 0]
        starts = np.flatnonzero(np.diff(self.labels[order], prepend=-1))
        groups = [group for group in np.split(order, starts[1:]) if len(group) >= needed] if len(order) else []
        if len(groups) < self.num_ways:
            raise ValueError(
                f'num_ways must not exceed the number of classes of at least {needed} samples, {len(groups)}, got '
                f'{self.num_ways}; take fewer ways, shots or queries'
            )
        self._groups = groups

    def __len__(self) -> int:
        """Episodes of this rank an epoch."""
        return -(-self.num_episodes // self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        for place in range(self.rank, len(self) * self.world_size, self.world_size):
            yield self._episode(place % self.num_episodes).tolist()

    def _episode(self, number: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, self.epoch, number))
        needed = self.num_shots + self.num_queries
        ways = rng.choice(len(self._groups), self.num_ways, replace=False)
        drawn = np.stack([rng.choice(self._groups[way], needed, replace=False) for way in ways])
        return np.concatenate([drawn[:, : self.num_shots].ravel(), drawn[:, self.num_shots :].ravel()])
