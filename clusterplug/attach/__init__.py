# SPDX-License-Identifier: Apache-2.0
"""Attaching losses, heads and weights to segmentors and detectors of mmdet3d and its relatives."""

from clusterplug.attach.box_labels import BoxLabels
from clusterplug.attach.point_features import PointFeatures, ScanFeatures
from clusterplug.attach.subclass_prediction import (
    ScanSubclasses,
    check_predictable,
    nearest_subclass,
    predict_subclasses,
    subclasses_of,
    true_classes,
)
from clusterplug.attach.swap_classifier import classification_layers, swap_classifier
from clusterplug.attach.with_clustering import ClusteringBranch, WithClustering
from clusterplug.attach.with_sample_weights import SampleWeighting, WithSampleWeights

__all__ = [
    'BoxLabels',
    'ClusteringBranch',
    'PointFeatures',
    'SampleWeighting',
    'ScanFeatures',
    'ScanSubclasses',
    'WithClustering',
    'WithSampleWeights',
    'check_predictable',
    'classification_layers',
    'nearest_subclass',
    'predict_subclasses',
    'subclasses_of',
    'swap_classifier',
    'true_classes',
]
