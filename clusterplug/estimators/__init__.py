# SPDX-License-Identifier: Apache-2.0
"""Clustering with scikit-learn's conventions: NumPy arrays or tensors in, the same kind out, on any device.

torch and numpy are enough. Where scikit-learn is installed the estimators inherit from its base classes, so that
pipelines, ``clone`` and its own checks work.
"""

from clusterplug.estimators import deep
from clusterplug.estimators.agglomerative import AgglomerativeClustering
from clusterplug.estimators.cluster_number import estimate_n_clusters
from clusterplug.estimators.co_association import CoAssociation
from clusterplug.estimators.deep import *  # noqa: F403 - its own __all__
from clusterplug.estimators.feature_bank import read_bank
from clusterplug.estimators.graph_degree_linkage import GraphDegreeLinkage
from clusterplug.estimators.hidden_class_cv import HiddenClassCV
from clusterplug.estimators.kmeans import KMeans
from clusterplug.estimators.kmedoids import KMedoids
from clusterplug.estimators.likelihood_sdp import LikelihoodSDP
from clusterplug.estimators.minibatch_kmeans import MiniBatchKMeans
from clusterplug.estimators.novel_classes import NovelClassKMeans, NovelClassSpectral
from clusterplug.estimators.online_subclass import OnlineSubclassClusterer
from clusterplug.estimators.perceptual import PerceptualClusterer
from clusterplug.estimators.position_eraser import PositionEraser
from clusterplug.estimators.progressive_transport import ProgressiveTransportClustering
from clusterplug.estimators.projection_ncd import ProjectionBasedNCD
from clusterplug.estimators.sample_likelihood import SampleLikelihood
from clusterplug.estimators.spectral import SpectralClustering
from clusterplug.estimators.subspace_aligner import SubspaceAligner
from clusterplug.estimators.transductive_few_shot import TransductiveFewShot

__all__ = [
    'LikelihoodSDP',
    'AgglomerativeClustering', 'CoAssociation', 'GraphDegreeLinkage', 'KMeans', 'KMedoids', 'MiniBatchKMeans',
    'OnlineSubclassClusterer', 'PerceptualClusterer', 'PositionEraser', 'SampleLikelihood', 'SpectralClustering',
    'SubspaceAligner', 'TransductiveFewShot', 'HiddenClassCV', 'NovelClassKMeans', 'NovelClassSpectral',
    'ProgressiveTransportClustering', 'ProjectionBasedNCD',
    'read_bank',
    'estimate_n_clusters', *deep.__all__,
]  # fmt: skip
