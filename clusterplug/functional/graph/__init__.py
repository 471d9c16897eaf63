# SPDX-License-Identifier: Apache-2.0
"""Clustering of graphs and trees: spectral, linkage."""

from clusterplug.functional.graph.linkage import LinkageTree, cut_linkage, cut_linkage_at, linkage
from clusterplug.functional.graph.spectral import spectral_clustering

__all__ = [
    'LinkageTree',
    'cut_linkage',
    'cut_linkage_at',
    'linkage',
    'spectral_clustering',
]
