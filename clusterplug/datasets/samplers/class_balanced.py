# SPDX-License-Identifier: Apache-2.0
"""P classes x K samples: batches in which every class has the same number of samples."""

from typing import Any

import numpy as np

from clusterplug.core.checks import check_count
from clusterplug.datasets.samplers._base import EpochBatchSampler
from clusterplug.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class ClassBalancedBatchSampler(EpochBatchSampler):
    """Draw batches of P classes with K samples each, every class equally often.

    Classes come in random order until all have come, then in another one; so do the samples of a class. A sample stands
    in a batch twice only where its class has fewer than K, and then all of them about equally often. For losses that
    need positives in the batch (metric learning, several positives, pairs of classes), also over the clusters of an
    estimator.

    Args:
        labels: (N,) integers: array, tensor, list, or the path of a .npy file. Below 0 = ignored.
        num_classes: P, classes of a batch.
        samples_per_class: K, samples of each.
        seed: Seed of the order; batches follow from it and the epoch.
        num_batches: Batches of a rank in an epoch; default N / (P K) over all ranks, at least 1, of the labeled
            samples.
        sampler: What mmengine passes: only its ``dataset`` is used, to check the number of labels.
        batch_size: What mmengine passes: must be P K.
        rank: Rank; default that of torch.distributed.
        world_size: Number of ranks; default that of torch.distributed.

    Raises:
        ValueError: Fewer classes than P, or a ``batch_size`` that is not P K.

    Example:
        >>> sampler = ClassBalancedBatchSampler([0, 0, 0, 1, 1, 2], num_classes=2, samples_per_class=2)
        >>> [len(batch) for batch in sampler]
        [4]
    """

    def __init__(
        self,
        labels: Any,
        num_classes: int,
        samples_per_class: int,
        seed: int | None = 0,
        *,
        num_batches: int | None = None,
        sampler: Any = None,
        batch_size: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        self.num_classes = check_count(num_classes, 'num_classes', 1)
        self.samples_per_class = check_count(samples_per_class, 'samples_per_class', 1)
        self.num_batches = None if num_batches is None else check_count(num_batches, 'num_batches', 1)
        size = self.num_classes * self.samples_per_class
        if batch_size is not None and batch_size != size:
            raise ValueError(f'batch_size must be num_classes x samples_per_class, {size}, got {batch_size!r}')
        super().__init__(labels, size, seed, sampler, rank, world_size)

    def _changed(self) -> None:
        labeled = self.labels >= 0
        self.classes, codes = np.unique(self.labels[labeled], return_inverse=True)
        if len(self.classes) < self.num_classes:
            raise ValueError(
                f'num_classes must not exceed the number of classes in the labels, {len(self.classes)}, got '
                f'{self.num_classes}; take fewer classes a batch'
            )
        order = np.argsort(codes, kind='stable')
        members = np.flatnonzero(labeled)[order]
        self._members = np.split(members, np.cumsum(np.bincount(codes))[:-1])

    def __len__(self) -> int:
        """Batches of this rank an epoch."""
        if self.num_batches is not None:
            return self.num_batches
        return max(1, sum(map(len, self._members)) // (self.batch_size * self.world_size))

    def _batches(self, rng: np.random.Generator) -> list[np.ndarray]:
        count = len(self) * self.world_size
        classes = _passes(len(self.classes), count, self.num_classes, rng)
        samples = np.empty((count, self.num_classes, self.samples_per_class), dtype=np.int64)
        for number, members in enumerate(self._members):
            where = np.nonzero(classes == number)
            samples[where] = _passes(len(members), len(where[0]), self.samples_per_class, rng, members)
        return list(samples.reshape(count, -1))


def _passes(size: int, rows: int, width: int, rng: np.random.Generator, items: np.ndarray | None = None) -> np.ndarray:
    """Return (rows, width) of permutations one behind the other, with no item twice in a row as far as that can be."""
    items = np.arange(size) if items is None else items
    if not rows:
        return np.empty((0, width), dtype=np.int64)
    if width > size:  # every item as often as it goes into a row, and some once more
        times, more = divmod(width, size)
        rest = _passes(size, rows, more, rng, items) if more else np.empty((rows, 0), dtype=np.int64)
        return rng.permuted(np.concatenate([np.tile(items, (rows, times)), rest], 1), axis=1)
    drawn = []
    for total in range(0, rows * width, size):
        order, begun = rng.permutation(size), total % width
        if begun:
            head = order[~np.isin(order, drawn[-1][-begun:])][: width - begun]  # completes the row that was begun
            order = np.concatenate([head, rng.permutation(np.setdiff1d(order, head))])
        drawn.append(order)
    return items[np.concatenate(drawn)[: rows * width].reshape(rows, width)]
