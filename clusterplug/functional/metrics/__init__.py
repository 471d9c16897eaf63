# SPDX-License-Identifier: Apache-2.0
"""How well two labelings agree."""

from clusterplug.functional.metrics.agreement import adjusted_rand_index, clustering_accuracy, normalized_mutual_info

__all__ = [
    'adjusted_rand_index',
    'clustering_accuracy',
    'normalized_mutual_info',
]
