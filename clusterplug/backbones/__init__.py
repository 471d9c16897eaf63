# SPDX-License-Identifier: Apache-2.0
"""Networks that cluster what they see."""

from clusterplug.backbones.fec import FEC, LayerClusters
from clusterplug.backbones.fec_archs import FECArch, resolve_arch
from clusterplug.backbones.fec_checkpoint import convert_official, load_fec
from clusterplug.backbones.fec_create import create, list_models, register_in_timm
from clusterplug.backbones.fec_points import FECPoints
from clusterplug.backbones.point_cluster_net import ClusterLogits, PointClusterNet, scale_plots

__all__ = [
    'FEC',
    'ClusterLogits',
    'FECArch',
    'FECPoints',
    'LayerClusters',
    'PointClusterNet',
    'convert_official',
    'create',
    'list_models',
    'load_fec',
    'register_in_timm',
    'resolve_arch',
    'scale_plots',
]  # fmt: skip
