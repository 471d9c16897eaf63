"""Layers without parameters that go between the blocks of a network."""

from clusterplug.layers.token_clustering import TokenClustering
from clusterplug.layers.token_reconstruction import TokenReconstruction

__all__ = ['TokenClustering', 'TokenReconstruction']
