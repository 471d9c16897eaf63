"""Attaching losses to segmentors and detectors of mmdet3d and its relatives."""

from clusterplug.segmentors.subclass_prediction import ScanSubclasses, nearest_subclass, predict_subclasses
from clusterplug.segmentors.with_clustering import ClusteringBranch, WithClustering

__all__ = ['ClusteringBranch', 'ScanSubclasses', 'WithClustering', 'nearest_subclass', 'predict_subclasses']
