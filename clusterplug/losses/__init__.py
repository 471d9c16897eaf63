# SPDX-License-Identifier: Apache-2.0
"""Losses: one a file, over :mod:`clusterplug.functional`."""

from clusterplug.losses.point_cluster import PointClusterLoss
from clusterplug.losses.swav import SwAVLoss

__all__ = ['PointClusterLoss', 'SwAVLoss']
