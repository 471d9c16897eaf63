# SPDX-License-Identifier: Apache-2.0
"""Graphs of points: nearest neighbors, Laplacians, spectral clustering, linkage."""

from clusterplug.functional.graph.connected_cells import connected_cells as connected_cells
from clusterplug.functional.graph.degree_linkage import co_association, graph_degree_linkage
from clusterplug.functional.graph.laplacian import (
    SpectralEmbedding,
    adjacency_power,
    normalized_laplacian,
    spectral_embedding,
)
from clusterplug.functional.graph.laplacian_assign import LaplacianAssignment, laplacian_assign
from clusterplug.functional.graph.linkage import LinkageTree, cut_linkage, cut_linkage_at, linkage
from clusterplug.functional.graph.neighbors import KNNGraph, affinity, knn_graph
from clusterplug.functional.graph.pool_vectors import pool_vectors
from clusterplug.functional.graph.semantic_transport import semantic_transport
from clusterplug.functional.graph.spanning import minimum_spanning_scale
from clusterplug.functional.graph.spectral import spectral_clustering

__all__ = [
    'KNNGraph',
    'LaplacianAssignment',
    'LinkageTree',
    'SpectralEmbedding',
    'adjacency_power',
    'affinity',
    'co_association',
    'cut_linkage',
    'cut_linkage_at',
    'graph_degree_linkage',
    'knn_graph',
    'laplacian_assign',
    'linkage',
    'minimum_spanning_scale',
    'normalized_laplacian',
    'pool_vectors',
    'semantic_transport',
    'spectral_clustering',
    'spectral_embedding',
]
