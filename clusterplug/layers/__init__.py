"""Layers without parameters that go between the blocks of a network."""

from clusterplug.layers.segment_token_clustering import SegmentTokenClustering, SegmentTokens
from clusterplug.layers.token_clustering import TokenClustering
from clusterplug.layers.token_reconstruction import TokenReconstruction

__all__ = ['SegmentTokenClustering', 'SegmentTokens', 'TokenClustering', 'TokenReconstruction']
