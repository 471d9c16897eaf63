# SPDX-License-Identifier: Apache-2.0
"""Deep clustering: an encoder and its clusters, trained together; one loop for all."""

from clusterplug.estimators.deep.base import DeepClusterer
from clusterplug.estimators.deep.denoising import DenoisingAutoencoder
from clusterplug.estimators.deep.depict import DEPICT
from clusterplug.estimators.deep.embedded import DeepEmbeddedClustering
from clusterplug.estimators.deep.graph_contrast import GraphContrastClustering
from clusterplug.estimators.deep.koopman import KoopmanAutoencoder
from clusterplug.estimators.deep.manifold import ManifoldClustering
from clusterplug.estimators.deep.multi_view import MultiViewClustering
from clusterplug.estimators.deep.subspace_clustering import DeepSubspaceClustering
from clusterplug.estimators.deep.subspace_diffusion import SubspaceDiffusion
from clusterplug.estimators.deep.training import Phase, TrainingState

__all__ = [
    'DEPICT',
    'DeepClusterer',
    'DeepEmbeddedClustering',
    'DeepSubspaceClustering',
    'DenoisingAutoencoder',
    'GraphContrastClustering',
    'KoopmanAutoencoder',
    'ManifoldClustering',
    'MultiViewClustering',
    'Phase',
    'SubspaceDiffusion',
    'TrainingState',
]
