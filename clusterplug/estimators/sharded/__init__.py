# SPDX-License-Identifier: Apache-2.0
"""Clustering of more rows than memory holds: shards in a folder, checkpoints, several processes."""

from clusterplug.estimators.sharded.cluster import cluster_shards
from clusterplug.estimators.sharded.run import ALGORITHMS, ShardedOptions
from clusterplug.estimators.sharded.shards import ShardFolder
from clusterplug.estimators.sharded.top_labels import label_shards, top_centers

__all__ = ['ALGORITHMS', 'ShardFolder', 'ShardedOptions', 'cluster_shards', 'label_shards', 'top_centers']
