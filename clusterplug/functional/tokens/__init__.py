# SPDX-License-Identifier: Apache-2.0
"""Tokens of a transformer: clustering, merging, and back to a full map."""

from clusterplug.functional.tokens._token_checks import check_grid as check_grid, check_settings as check_settings
from clusterplug.functional.tokens.chamfer import chamfer_similarity
from clusterplug.functional.tokens.cluster_vectors import cluster_vectors
from clusterplug.functional.tokens.merging import MergedTokens, TokenMatching, bipartite_matching, merge_tokens
from clusterplug.functional.tokens.segment_tokens import (
    segment_bounds as segment_bounds,
    segment_mean as segment_mean,
    shift_channels as shift_channels,
    sparse_token_index as sparse_token_index,
    split_segments as split_segments,
)
from clusterplug.functional.tokens.token_clustering import TokenClusters, cluster_labels, cluster_tokens, token_spread
from clusterplug.functional.tokens.token_merging import merge_tokens_to, size_biased_attention
from clusterplug.functional.tokens.token_reconstruction import (
    TokenNeighbors,
    combine_tokens,
    reconstruct_tokens,
    token_neighbors,
)
from clusterplug.functional.tokens.vector_encoding import fixed_dimensional_encoding
from clusterplug.functional.tokens.vector_pruning import spaced_vectors, tail_vectors

__all__ = [
    'MergedTokens',
    'TokenClusters',
    'TokenMatching',
    'TokenNeighbors',
    'bipartite_matching',
    'chamfer_similarity',
    'cluster_labels',
    'cluster_tokens',
    'cluster_vectors',
    'combine_tokens',
    'fixed_dimensional_encoding',
    'merge_tokens',
    'merge_tokens_to',
    'reconstruct_tokens',
    'size_biased_attention',
    'spaced_vectors',
    'tail_vectors',
    'token_neighbors',
    'token_spread',
]
