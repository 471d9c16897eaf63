# SPDX-License-Identifier: Apache-2.0
"""Which samples meet in a batch."""

from clusterplug.datasets.samplers.class_balanced import ClassBalancedBatchSampler
from clusterplug.datasets.samplers.cluster_disjoint import ClusterDisjointBatchSampler, same_label_rate
from clusterplug.datasets.samplers.episodes import EpisodeSampler
from clusterplug.datasets.samplers.likelihood import LikelihoodSampler

__all__ = [
    'ClassBalancedBatchSampler',
    'ClusterDisjointBatchSampler',
    'EpisodeSampler',
    'LikelihoodSampler',
    'same_label_rate',
]
