"""Attaching losses to segmentors and detectors of mmdet3d and its relatives."""

from clusterplug.segmentors.with_clustering import ClusteringBranch, WithClustering

__all__ = ['ClusteringBranch', 'WithClustering']
