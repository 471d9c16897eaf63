# SPDX-License-Identifier: Apache-2.0
"""Losses: one a file, over :mod:`clusterplug.functional`."""

from clusterplug.losses.anchor_sampler import AnchorSampler
from clusterplug.losses.balanced_assigner import BalancedAssigner
from clusterplug.losses.batch_enhanced import BatchEnhancedLoss
from clusterplug.losses.deep_cluster import DeepClusterLoss
from clusterplug.losses.denoising import DenoisingLoss
from clusterplug.losses.gated_contrast import GatedContrastLoss, SimLAPLoss
from clusterplug.losses.intra_inter import IntraInterLoss
from clusterplug.losses.koopman import KoopmanLoss
from clusterplug.losses.late_interaction import LateInteractionLoss
from clusterplug.losses.layerwise_reconstruction import LayerwiseReconstructionLoss
from clusterplug.losses.margin import MarginLoss, margin_pairs
from clusterplug.losses.nested_cluster import NestedClusterLoss, NestedViewLoss
from clusterplug.losses.nt_xent import NTXentLoss
from clusterplug.losses.point_cluster import PointClusterLoss
from clusterplug.losses.position_regression import PositionRegression
from clusterplug.losses.rate_reduction import RateReductionLoss
from clusterplug.losses.self_distillation import DINOLoss, IBOTLoss, masked_tokens
from clusterplug.losses.self_expression import SelfExpressionLoss
from clusterplug.losses.subclass_contrast import SubclassContrast
from clusterplug.losses.swav import SwAVLoss
from clusterplug.losses.transport_pseudo_labels import TransportPseudoLabels
from clusterplug.losses.view_dynamics import ViewDynamicsLoss

__all__ = [
    'AnchorSampler',
    'BalancedAssigner',
    'BatchEnhancedLoss',
    'DINOLoss',
    'DeepClusterLoss',
    'DenoisingLoss',
    'GatedContrastLoss',
    'IBOTLoss',
    'IntraInterLoss',
    'KoopmanLoss',
    'LateInteractionLoss',
    'LayerwiseReconstructionLoss',
    'MarginLoss',
    'NTXentLoss',
    'NestedClusterLoss',
    'NestedViewLoss',
    'PointClusterLoss',
    'PositionRegression',
    'RateReductionLoss',
    'SelfExpressionLoss',
    'SimLAPLoss',
    'SubclassContrast',
    'SwAVLoss',
    'TransportPseudoLabels',
    'ViewDynamicsLoss',
    'margin_pairs',
    'masked_tokens',
]
