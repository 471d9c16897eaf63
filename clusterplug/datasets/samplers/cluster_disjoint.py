# SPDX-License-Identifier: Apache-2.0
"""Batches in which no two samples are of one cluster."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from clusterplug.core.checks import check_choice
from clusterplug.datasets.samplers._base import EpochBatchSampler, read_labels
from clusterplug.datasets.samplers._disjoint import (
    deal,
    fill_up,
    leftovers,
    most_batches,
    shuffled_by_cluster,
    take,
    thin,
    thin_evenly,
)
from clusterplug.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class ClusterDisjointBatchSampler(EpochBatchSampler):
    r"""Draw batches of samples from distinct clusters, so that a contrastive loss has no negatives of one cluster.

    The number of batches an epoch is the largest that there can be,

    .. math:: T = \max \{t : \sum_c \min(n_c, t) \ge B t\},

    and every epoch draws others. For N samples an epoch costs O(N).

    Args:
        labels: (N,) integers: array, tensor, list, or the path of a .npy file. Below 0 = a cluster of its own. None
            where the data set is known (``sampler``): all of their own, until :meth:`set_labels`.
        batch_size: B, samples of a batch on one rank.
        leftover: What becomes of samples that find no position in full batches: ``'drop'``; ``'small'``: further
            batches of fewer samples, so that an epoch has every sample once; ``'repeat'``: further full batches,
            filled up with as few samples for a second time as possible.
        seed: Seed of the order; batches follow from it and the epoch.
        disjoint: ``'rank'``: the batch of each rank is disjoint. ``'all'``: those of all ranks together are, as a loss
            needs that gathers negatives from all ranks; there must be that many clusters.
        sampler: What mmengine passes: only its ``dataset`` is used, to check the number of labels.
        rank: Rank; default that of torch.distributed.
        world_size: Number of ranks; default that of torch.distributed.

    Raises:
        ValueError: A batch larger than the number of clusters, or labels of another number than samples.
        TypeError: Labels that are not integers.

    All ranks have the same number of batches: with ``'drop'`` the last few are dropped, else the first of the epoch
    come again. Where labels change between epochs, so may ``len``.

    Source: Chakraborty, Gosthipaty, Paul, "G-SimCLR: Self-Supervised Contrastive Learning with Guided Projection via
    Pseudo Labelling", ICDM Workshops 2020, arXiv 2009.12007; official code ariG23498/G-SimCLR (Apache-2.0).

    Differs from the authors' code: theirs sorts by the rank of each sample in its cluster and cuts slices, once for all
    epochs; with clusters of unequal size most slices are not disjoint, and the last ones are of one cluster.

    Example:
        >>> sampler = ClusterDisjointBatchSampler([0, 0, 0, 1, 1, 2, 2, 2], batch_size=2, seed=0)
        >>> len(sampler), sampler.coverage
        (4, 1.0)
        >>> sampler.set_epoch(1)
        >>> sorted(i for batch in sampler for i in batch)
        [0, 1, 2, 3, 4, 5, 6, 7]
    """

    def __init__(
        self,
        labels: Any,
        batch_size: int,
        leftover: str = 'drop',
        seed: int | None = 0,
        *,
        disjoint: str = 'rank',
        sampler: Any = None,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        self.leftover = check_choice(leftover, 'leftover', ('drop', 'small', 'repeat'))
        self.disjoint = check_choice(disjoint, 'disjoint', ('rank', 'all'))
        super().__init__(labels, batch_size, seed, sampler, rank, world_size)

    def _changed(self) -> None:
        single = self.labels < 0
        # ids 0 .. K - 1 without empty ones; samples without a label follow, each a cluster
        self.clusters = np.empty_like(self.labels)
        found, self.clusters[~single] = np.unique(self.labels[~single], return_inverse=True)
        self.clusters[single] = len(found) + np.arange(int(single.sum()))
        self.sizes = np.bincount(self.clusters)
        self._together = self.batch_size * (self.world_size if self.disjoint == 'all' else 1)
        if self._together > len(self.sizes):
            of_all = f' x {self.world_size} ranks' if self._together > self.batch_size else ''
            raise ValueError(
                f'batch_size must not exceed the number of clusters, {len(self.sizes)}, as every sample of a batch is '
                f'of another one, got {self.batch_size}{of_all}; take batches of at most {len(self.sizes)}, or '
                f'cluster into at least {self._together}'
            )
        self._full = most_batches(self.sizes, self._together)
        if self.leftover == 'repeat':
            self._full = max(-(-len(self.labels) // self._together), int(self.sizes.max()))
        # the number of smaller batches is that of any draw
        self._num_small = len(self._small(*self._plan(np.random.default_rng(0))))

    @property
    def coverage(self) -> float:
        """Share of the samples that an epoch of all ranks has at least once."""
        return self._covered / len(self.labels)

    @property
    def _covered(self) -> int:
        if self.leftover != 'drop':
            return len(self.labels)
        if self.disjoint == 'all':
            return self._full * self._together
        return self._full // self.world_size * self.world_size * self.batch_size

    def report(self) -> dict:
        """Return what an epoch is: samples, clusters, their sizes, batches of a rank, coverage, repeated samples."""
        batches = self._batches(np.random.default_rng((self.seed, self.epoch)))
        return dict(
            num_samples=len(self.labels),
            num_clusters=len(self.sizes),
            smallest_cluster=int(self.sizes.min()),
            largest_cluster=int(self.sizes.max()),
            num_batches=len(self),
            coverage=self.coverage,
            num_repeats=sum(map(len, batches)) - self._covered,
        )

    def __len__(self) -> int:
        """Batches of this rank an epoch."""
        count = self._full
        if self.leftover == 'small':
            count += self._num_small
        if self.disjoint == 'all':
            return count
        return count // self.world_size if self.leftover == 'drop' else -(-count // self.world_size)

    def _plan(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Samples cluster by cluster, their sizes, and how many of each cluster full batches take."""
        samples, sizes = shuffled_by_cluster(self.clusters, rng)
        total = self._full * self._together
        pick = dict(drop=thin, small=thin_evenly, repeat=fill_up)[self.leftover]
        return samples, sizes, pick(sizes, total, self._full, rng)

    def _small(self, samples: np.ndarray, sizes: np.ndarray, used: np.ndarray) -> list[np.ndarray]:
        if self.leftover != 'small' or len(samples) == int(used.sum()):
            return []
        return leftovers(samples, sizes, used, self._together)

    def _batches(self, rng: np.random.Generator) -> list[np.ndarray]:
        samples, sizes, used = self._plan(rng)
        batches = list(deal(take(samples, sizes, used), used, self._together, rng)) if self._full else []
        small = self._small(samples, sizes, used)
        if small:
            batches += small
            batches = [batches[number] for number in rng.permutation(len(batches))]
        if self.disjoint == 'all':
            # each joint batch becomes one batch a rank; a small one gives every rank at least a sample, some again
            return [part for batch in batches for part in _split(batch, self.world_size)]
        ranks, extra = self.world_size, len(batches) % self.world_size
        if not extra:
            return batches
        if self.leftover == 'drop':
            return batches[: len(batches) - extra]
        return [*batches, *(batches * ranks)[: ranks - extra]]


def _split(batch: np.ndarray, ranks: int) -> list[np.ndarray]:
    per_rank = -(-len(batch) // ranks)
    return list(np.resize(batch, per_rank * ranks).reshape(per_rank, ranks).T)


def same_label_rate(batches: Iterable[Any], labels: Any) -> float:
    """Return the share of pairs of samples in one batch that have one label: false negatives of a contrastive loss.

    Args:
        batches: Indices of each batch, such as a batch sampler.
        labels: (N,) integers; below 0 = like no other.

    Example:
        >>> same_label_rate([[0, 1], [2, 3]], [5, 5, 6, 7])
        0.5
    """
    labels = read_labels(labels)
    same = pairs = 0
    for batch in batches:
        found = labels[np.asarray(batch, dtype=np.int64)]
        counts = np.unique(found[found >= 0], return_counts=True)[1]
        same += int((counts * (counts - 1)).sum())
        pairs += len(found) * (len(found) - 1)
    return same / pairs if pairs else 0.0
