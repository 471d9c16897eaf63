# SPDX-License-Identifier: Apache-2.0
"""Hooks: they schedule and watch; what is learnt belongs to the model."""

from clusterplug.hooks.cluster_refresh import ClusterRefreshHook
from clusterplug.hooks.cluster_schedule import ClusterScheduleHook
from clusterplug.hooks.cluster_stats import ClusterStatsHook, subclass_stats
from clusterplug.hooks.cluster_visualization import ClusterVisualizationHook
from clusterplug.hooks.collapse_check import CollapseCheckHook
from clusterplug.hooks.embedding_pictures import EmbeddingPicturesHook
from clusterplug.hooks.epoch_seed import EpochSeedHook
from clusterplug.hooks.freeze_params import FreezeParamsHook
from clusterplug.hooks.label_check import LabelCheckHook, label_faults
from clusterplug.hooks.learner_split import LearnerSplitHook
from clusterplug.hooks.queue_start import QueueStartHook
from clusterplug.hooks.token_clustering import TokenClusteringHook
from clusterplug.hooks.unit_moments import UnitMomentsHook
from clusterplug.hooks.unreadable_videos import UnreadableVideosHook
from clusterplug.hooks.value_schedule import ValueScheduleHook

__all__ = [
    'ClusterRefreshHook',
    'ClusterScheduleHook',
    'ClusterStatsHook',
    'ClusterVisualizationHook',
    'CollapseCheckHook',
    'EmbeddingPicturesHook',
    'EpochSeedHook',
    'FreezeParamsHook',
    'LabelCheckHook',
    'LearnerSplitHook',
    'QueueStartHook',
    'TokenClusteringHook',
    'UnitMomentsHook',
    'UnreadableVideosHook',
    'ValueScheduleHook',
    'label_faults',
    'subclass_stats',
]  # fmt: skip
