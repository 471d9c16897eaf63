# SPDX-License-Identifier: Apache-2.0
"""The former address of what detectors need: see :mod:`clusterplug.attach`."""

from clusterplug.attach import BoxLabels

__all__ = ['BoxLabels']
