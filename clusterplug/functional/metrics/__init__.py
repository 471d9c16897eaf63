# SPDX-License-Identifier: Apache-2.0
"""How well two labelings agree, and which labels of one belong to which of the other."""

from clusterplug.functional.metrics.agreement import adjusted_rand_index, clustering_accuracy, normalized_mutual_info
from clusterplug.functional.metrics.assignment import Assignment, linear_assignment
from clusterplug.functional.metrics.unit_matching import match_units

__all__ = [
    'Assignment',
    'adjusted_rand_index',
    'clustering_accuracy',
    'linear_assignment',
    'match_units',
    'normalized_mutual_info',
]
