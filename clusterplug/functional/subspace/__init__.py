# SPDX-License-Identifier: Apache-2.0
"""Subspaces, their frames and angles, and how much of the data they hold."""

from clusterplug.functional.subspace.concrete_mask import concrete_mask
from clusterplug.functional.subspace.grassmann import (
    class_overlap,
    grassmann_logits,
    grassmann_step,
    orthonormalize_bases,
)
from clusterplug.functional.subspace.householder import (
    HouseholderReflectors,
    householder_product,
    householder_reflectors,
)

__all__ = [
    'HouseholderReflectors',
    'class_overlap',
    'concrete_mask',
    'grassmann_logits',
    'grassmann_step',
    'householder_product',
    'householder_reflectors',
    'orthonormalize_bases',
]
