# SPDX-License-Identifier: Apache-2.0
"""Layers that cluster: between the blocks of a network, or as its blocks."""

from clusterplug.layers.denoising_unet import DenoisingUNet
from clusterplug.layers.feature_clustering import FeatureClustering
from clusterplug.layers.feature_clustering_block import FeatureClusteringBlock
from clusterplug.layers.feature_clustering_pool import FeatureClusteringPool
from clusterplug.layers.householder import HouseholderProjector, register_householder
from clusterplug.layers.inter_slice_encoder import InterSliceEncoder
from clusterplug.layers.low_rank_denoiser import LowRankDenoiser
from clusterplug.layers.multi_vector_clustering import MultiVectorClustering
from clusterplug.layers.noisy_clean_encoder import NoisyCleanEncoder, NoisyCleanFeatures
from clusterplug.layers.point_feature_clustering import PointFeatureClusteringBlock, PointFeatureClusteringPool
from clusterplug.layers.segment_token_clustering import SegmentTokenClustering, SegmentTokens
from clusterplug.layers.spatial_attention import SpatialAttention
from clusterplug.layers.token_clustering import TokenClustering
from clusterplug.layers.token_reconstruction import TokenReconstruction

__all__ = [
    'DenoisingUNet',
    'FeatureClustering',
    'FeatureClusteringBlock',
    'FeatureClusteringPool',
    'HouseholderProjector',
    'InterSliceEncoder',
    'LowRankDenoiser',
    'MultiVectorClustering',
    'NoisyCleanEncoder',
    'NoisyCleanFeatures',
    'PointFeatureClusteringBlock',
    'PointFeatureClusteringPool',
    'SegmentTokenClustering',
    'SegmentTokens',
    'SpatialAttention',
    'TokenClustering',
    'TokenReconstruction',
    'register_householder',
]
