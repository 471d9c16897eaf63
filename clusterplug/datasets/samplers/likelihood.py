# SPDX-License-Identifier: Apache-2.0
"""Samples drawn with a probability that falls with their likelihood, in place of weights in the loss."""

import itertools
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from clusterplug.core.checks import check_count
from clusterplug.core.distributed import rank as this_rank, world_size as number_of_ranks
from clusterplug.functional import likelihood_weights
from clusterplug.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class LikelihoodSampler(Sampler):
    """Draw samples with replacement, each with the weight that it would have in the loss.

    In expectation the gradient is that of :class:`~clusterplug.attach.WithSampleWeights`, up to the mean of the
    weights, and no head is touched. An epoch is as long as without it: as many draws as there are samples, dealt out
    to the ranks. Together with a data set that repeats rare classes (CBGS) the product of both weights is applied.

    Args:
        dataset: Of mmengine: ``get_data_info(index)`` gives the id of a sample.
        likelihood: What :func:`~clusterplug.datasets.transforms.read_likelihoods` takes: file, dict, estimator.
        eta: Floor of the weights. gamma: How fast they fall (:func:`~clusterplug.functional.likelihood_weights`).
        key: Where the sample has its id; by default what the file says, else ``'sample_idx'``, the index.
        seed: Of the draws, which follow from it and the epoch; the same on all ranks.

    Raises:
        ValueError: A sample without a likelihood; all weights 0.

    Example:
        ``train_dataloader = dict(sampler=dict(type='clusterplug.LikelihoodSampler', likelihood='likelihood.json'))``
    """

    def __init__(
        self,
        dataset: Sized,
        likelihood: Any,
        eta: float = 0.5,
        gamma: float = 5.0,
        key: str | None = None,
        seed: int | None = 0,
    ):
        from clusterplug.datasets.transforms.sample_values import look_up, read_likelihoods, sample_id

        table, known = read_likelihoods(likelihood)
        key = key or known or 'sample_idx'
        if key == 'sample_idx':
            ids = range(len(dataset))
        else:
            ids = [sample_id(dataset.get_data_info(index), key) for index in range(len(dataset))]
        p = torch.tensor([look_up(table, each, key) for each in ids], dtype=torch.float64)
        weights = likelihood_weights(p, eta=eta, gamma=gamma).numpy()
        if not weights.sum() > 0:
            raise ValueError('eta must be above 0 where all samples have the likelihood 1: all weights are 0')
        self.probabilities = weights / weights.sum()
        self.seed, self.epoch = check_count(0 if seed is None else seed, 'seed'), 0
        self.rank, self.world_size = this_rank(), number_of_ranks()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from which and from the seed the draws follow."""
        self.epoch = check_count(epoch, 'epoch')

    def __len__(self) -> int:
        """Samples of this rank an epoch."""
        return -(-len(self.probabilities) // self.world_size)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        drawn = rng.choice(len(self.probabilities), len(self) * self.world_size, p=self.probabilities)
        return itertools.islice(iter(drawn.tolist()), self.rank, None, self.world_size)
