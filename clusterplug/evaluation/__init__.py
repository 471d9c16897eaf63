# SPDX-License-Identifier: Apache-2.0
"""Metrics over the results of models."""

from clusterplug.evaluation.clustering import ClusteringMetric
from clusterplug.evaluation.few_shot import FewShotEpisodes, nearest_class_mean
from clusterplug.evaluation.instance_grouping import PanopticQuality, group_instances, panoptic_quality
from clusterplug.evaluation.kmeans_within_classes import kmeans_within_classes
from clusterplug.evaluation.long_tail import LongTailMetric, long_tail_accuracy, long_tail_groups
from clusterplug.evaluation.probes import (
    LinearProbe,
    NearestNeighborProbe,
    Probe,
    effective_rank,
    linear_probe,
    nearest_neighbor_probe,
)
from clusterplug.evaluation.retrieval import RetrievalMetric
from clusterplug.evaluation.retrieval_ranks import rank_summary, ranks_of_targets, retrieval_ranks
from clusterplug.evaluation.subclass_agreement import SubclassAgreement, subclass_agreement
from clusterplug.evaluation.submission import SemanticKittiSubmission
from clusterplug.evaluation.subtype_agreement import SubtypeTable, subtype_agreement

__all__ = [
    'ClusteringMetric',
    'FewShotEpisodes',
    'LinearProbe',
    'LongTailMetric',
    'NearestNeighborProbe',
    'PanopticQuality',
    'Probe',
    'RetrievalMetric',
    'SemanticKittiSubmission',
    'SubclassAgreement',
    'SubtypeTable',
    'effective_rank',
    'group_instances',
    'kmeans_within_classes',
    'linear_probe',
    'long_tail_accuracy',
    'long_tail_groups',
    'nearest_class_mean',
    'nearest_neighbor_probe',
    'panoptic_quality',
    'rank_summary',
    'ranks_of_targets',
    'retrieval_ranks',
    'subclass_agreement',
    'subtype_agreement',
]  # fmt: skip
