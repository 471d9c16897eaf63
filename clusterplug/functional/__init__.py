# SPDX-License-Identifier: Apache-2.0
"""Clustering kernels: maths on tensors, in torch alone.

Batched (..., N, D), masked, weighted, on any device; computed in fp32 at least, returned in the type of the input.
"""

from clusterplug.functional.anchor_sampling import AnchorSample, sample_anchors
from clusterplug.functional.bank_contrast import bank_contrast_terms
from clusterplug.functional.compose_labels import compose_labels
from clusterplug.functional.contrast import subclass_contrast, subclass_contrast_terms
from clusterplug.functional.distances import pairwise_distances
from clusterplug.functional.feature_clustering import (
    FeatureClusters,
    cluster_encode,
    cluster_pool,
    soft_cluster_encode,
)
from clusterplug.functional.gather import gather_ranks
from clusterplug.functional.kmeans import KMeansResult, kmeans, nearest_center
from clusterplug.functional.kmeans_init import kkz, kmeans_plus_plus
from clusterplug.functional.kmedoids import KMedoidsResult, kmedoids
from clusterplug.functional.kmedoids_swap import kmedoids_swap
from clusterplug.functional.linkage import LinkageTree, cut_linkage, cut_linkage_at, linkage
from clusterplug.functional.merging import MergedTokens, TokenMatching, bipartite_matching, merge_tokens
from clusterplug.functional.metrics import adjusted_rand_index, clustering_accuracy, normalized_mutual_info
from clusterplug.functional.minibatch_kmeans import (
    MiniBatchKMeansState,
    MiniBatchKMeansStep,
    minibatch_kmeans_start,
    minibatch_kmeans_update,
)
from clusterplug.functional.pair_contrast import pair_contrast_terms
from clusterplug.functional.point_cells import PointCells, cell_means, point_cells
from clusterplug.functional.point_clustering import cluster_points, spread_clusters
from clusterplug.functional.sinkhorn import sinkhorn, sinkhorn_log_plan
from clusterplug.functional.spectral import spectral_clustering
from clusterplug.functional.subclasses import assign_subclasses
from clusterplug.functional.token_clustering import TokenClusters, cluster_labels, cluster_tokens, token_spread
from clusterplug.functional.token_merging import merge_tokens_to, size_biased_attention
from clusterplug.functional.token_reconstruction import (
    TokenNeighbors,
    combine_tokens,
    reconstruct_tokens,
    token_neighbors,
)
from clusterplug.functional.transport import partial_transport, unbalanced_transport

__all__ = [
    'AnchorSample', 'FeatureClusters', 'KMeansResult', 'KMedoidsResult', 'LinkageTree', 'MergedTokens',
    'MiniBatchKMeansState', 'MiniBatchKMeansStep', 'PointCells', 'TokenClusters', 'TokenMatching', 'TokenNeighbors',
    'adjusted_rand_index', 'assign_subclasses', 'bank_contrast_terms', 'bipartite_matching', 'cell_means',
    'cluster_encode', 'cluster_labels', 'cluster_points', 'cluster_pool', 'cluster_tokens', 'clustering_accuracy',
    'combine_tokens', 'compose_labels', 'cut_linkage', 'cut_linkage_at', 'gather_ranks', 'kkz', 'kmeans',
    'kmeans_plus_plus', 'kmedoids', 'kmedoids_swap', 'linkage', 'merge_tokens', 'merge_tokens_to',
    'minibatch_kmeans_start', 'minibatch_kmeans_update', 'nearest_center', 'normalized_mutual_info',
    'pair_contrast_terms', 'pairwise_distances', 'partial_transport', 'point_cells', 'reconstruct_tokens',
    'sample_anchors', 'sinkhorn', 'sinkhorn_log_plan', 'size_biased_attention', 'soft_cluster_encode',
    'spectral_clustering', 'spread_clusters', 'subclass_contrast', 'subclass_contrast_terms', 'token_neighbors',
    'token_spread', 'unbalanced_transport',
]  # fmt: skip
