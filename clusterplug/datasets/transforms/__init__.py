# SPDX-License-Identifier: Apache-2.0
"""Views, masks and values that join a sample on its way to the model."""

from clusterplug.datasets.transforms.cyclic_mask import CyclicMask

__all__ = ['CyclicMask']
