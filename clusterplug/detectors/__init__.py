# SPDX-License-Identifier: Apache-2.0
"""What detectors need besides :func:`clusterplug.segmentors.WithClustering`: labels of points from boxes."""

from clusterplug.detectors.box_labels import BoxLabels

__all__ = ['BoxLabels']
