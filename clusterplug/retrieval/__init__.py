# SPDX-License-Identifier: Apache-2.0
"""Text-video retrieval: CenterCLIP, its encoders and heads."""

from clusterplug.datasets.video.sample import VideoTextSample
from clusterplug.retrieval.center_clip import CenterCLIP
from clusterplug.retrieval.contrastive import symmetric_contrast
from clusterplug.retrieval.data import VideoTextPreprocessor
from clusterplug.retrieval.encoders import FeatureEncoders, OpenCLIPEncoders, TransformersEncoders
from clusterplug.retrieval.heads import MeanPooling, SequenceTransformer, masked_mean
from clusterplug.retrieval.multi_vector_index import MultiVectorIndex
from clusterplug.retrieval.openai_weights import clip_from_openai, read_state_dict
from clusterplug.retrieval.parameter_groups import RetrievalOptimWrapperConstructor
from clusterplug.retrieval.vector_sets import VectorSets

__all__ = [
    'CenterCLIP', 'FeatureEncoders', 'MeanPooling', 'MultiVectorIndex', 'OpenCLIPEncoders',
    'RetrievalOptimWrapperConstructor', 'SequenceTransformer', 'TransformersEncoders', 'VectorSets',
    'VideoTextPreprocessor', 'VideoTextSample', 'clip_from_openai', 'masked_mean', 'read_state_dict',
    'symmetric_contrast',
]  # fmt: skip
