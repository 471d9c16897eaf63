# SPDX-License-Identifier: Apache-2.0
"""Attaching losses to segmentors and detectors of mmdet3d and its relatives."""

from clusterplug.segmentors.subclass_prediction import (
    ScanSubclasses,
    check_predictable,
    nearest_subclass,
    predict_subclasses,
    true_classes,
)
from clusterplug.segmentors.with_clustering import ClusteringBranch, WithClustering

__all__ = [
    'ClusteringBranch',
    'ScanSubclasses',
    'WithClustering',
    'check_predictable',
    'nearest_subclass',
    'predict_subclasses',
    'true_classes',
]
