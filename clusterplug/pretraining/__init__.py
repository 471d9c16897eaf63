# SPDX-License-Identifier: Apache-2.0
"""Models that train a backbone without labels, over views of the same thing."""

from clusterplug.pretraining.batch_enhanced_model import BatchEnhancedModel
from clusterplug.pretraining.cluster_discrimination import ClusterDiscriminationModel
from clusterplug.pretraining.denoising_model import DenoisingModel
from clusterplug.pretraining.diffusers_denoiser import DiffusersDenoiser
from clusterplug.pretraining.image_backbones import TimmBackbone, TorchvisionBackbone
from clusterplug.pretraining.image_volume_model import ImageVolumeModel
from clusterplug.pretraining.masked_slice_model import MaskedSliceModel
from clusterplug.pretraining.multi_view_model import MultiViewModel
from clusterplug.pretraining.subspace_metric_model import SubspaceMetricModel
from clusterplug.pretraining.view_inputs import MultiViewPreprocessor

__all__ = [
    'BatchEnhancedModel',
    'ClusterDiscriminationModel',
    'DenoisingModel',
    'DiffusersDenoiser',
    'ImageVolumeModel',
    'MaskedSliceModel',
    'MultiViewModel',
    'MultiViewPreprocessor',
    'SubspaceMetricModel',
    'TimmBackbone',
    'TorchvisionBackbone',
]
