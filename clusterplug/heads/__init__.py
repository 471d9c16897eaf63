# SPDX-License-Identifier: Apache-2.0
"""Heads: what turns a backbone feature into an embedding or a prediction."""

from clusterplug.heads.class_pair_gate import ClassPairGate
from clusterplug.heads.cluster_softmax_head import ClusterSoftmaxHead
from clusterplug.heads.grassmann_head import GrassmannHead
from clusterplug.heads.matryoshka import MatryoshkaHead, PrototypeScores
from clusterplug.heads.multi_label_cluster_head import MultiLabelClusterHead
from clusterplug.heads.projection_head import ProjectionHead
from clusterplug.heads.prototype_head import PrototypeHead
from clusterplug.heads.subspace_learner_head import SubspaceLearnerHead, normalize_slices

__all__ = [
    'ClassPairGate',
    'ClusterSoftmaxHead',
    'GrassmannHead',
    'MatryoshkaHead',
    'MultiLabelClusterHead',
    'ProjectionHead',
    'PrototypeHead',
    'PrototypeScores',
    'SubspaceLearnerHead',
    'normalize_slices',
]
