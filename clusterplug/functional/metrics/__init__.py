# SPDX-License-Identifier: Apache-2.0
"""How well labelings agree, which labels of one belong to which of the other, and losses that ask only for that."""

from clusterplug.functional.metrics.agreement import adjusted_rand_index, clustering_accuracy, normalized_mutual_info
from clusterplug.functional.metrics.assignment import Assignment, linear_assignment
from clusterplug.functional.metrics.matched_labels import matched_cross_entropy, pair_loss
from clusterplug.functional.metrics.rater_agreement import group_kappa, point_agreement, williams_index
from clusterplug.functional.metrics.unit_matching import match_units

__all__ = [
    'Assignment',
    'adjusted_rand_index',
    'clustering_accuracy',
    'group_kappa',
    'linear_assignment',
    'match_units',
    'matched_cross_entropy',
    'normalized_mutual_info',
    'pair_loss',
    'point_agreement',
    'williams_index',
]
