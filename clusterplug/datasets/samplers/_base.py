# SPDX-License-Identifier: Apache-2.0
"""What the batch samplers share: labels of many kinds, one generator an epoch, batches dealt out to ranks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clusterplug.core.checks import check_count
from clusterplug.core.distributed import rank as this_rank, world_size as number_of_ranks


def read_labels(labels: Any, name: str = 'labels') -> np.ndarray:
    """Return ``labels`` (array, tensor, list, or the path of a .npy file) as int64 (N,); below 0 = no label."""
    if isinstance(labels, (str, Path)):
        if Path(labels).suffix != '.npy':
            raise ValueError(f'{name} must be an array or the path of a .npy file, got {str(labels)!r}')
        labels = np.load(labels, allow_pickle=False)
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f'{name} must have shape (N,) with N >= 1, one label a sample, got {labels.shape}')
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f'{name} must be integers, got {labels.dtype}; convert them with labels.astype(int)')
    return labels.astype(np.int64)


class EpochBatchSampler:
    """Batches that follow from (seed, epoch) alone, the same list on all ranks, of which each rank takes its share.

    It stands for ``batch_sampler`` of a torch ``DataLoader`` and of an mmengine config, whose ``sampler`` and
    ``batch_size`` it then gets. :meth:`set_epoch` is called by mmengine's DistSamplerSeedHook; by hand in a plain loop.
    """

    def __init__(
        self, labels: Any, batch_size: int, seed: int | None, sampler: Any, rank: int | None, size: int | None
    ):
        self.batch_size = check_count(batch_size, 'batch_size', 1)
        self.seed = check_count(0 if seed is None else seed, 'seed')
        self.epoch = 0
        self.world_size = check_count(number_of_ranks() if size is None else size, 'world_size', 1)
        self.rank = check_count(this_rank() if rank is None else rank, 'rank', 0, self.world_size - 1)
        dataset = getattr(sampler, 'dataset', None)
        self._expected = None if dataset is None else len(dataset)
        if labels is None:
            if self._expected is None:
                raise ValueError('labels must be given where no data set is known; an array of one integer a sample')
            labels = np.full(self._expected, -1)
        self.set_labels(labels)

    @property
    def sampler(self) -> 'EpochBatchSampler':
        """Itself: mmengine calls ``batch_sampler.sampler.set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from which and from the seed all batches follow."""
        self.epoch = check_count(epoch, 'epoch')

    def set_labels(self, labels: Any) -> None:
        """Replace the labels, as after clusters were recomputed; for the next epoch that is begun."""
        labels = read_labels(labels)
        if self._expected is not None and len(labels) != self._expected:
            raise ValueError(
                f'labels must have one entry a sample of the data set, {self._expected}, got {len(labels)}'
            )
        self.labels = labels
        self._changed()

    def _changed(self) -> None:
        """Check the labels, and derive what depends on them."""
        raise NotImplementedError

    def _batches(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Batches of this epoch for all ranks, one number of them for every rank: those of rank r are r::ranks."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        for batch in self._batches(rng)[self.rank :: self.world_size]:
            yield batch.tolist()
