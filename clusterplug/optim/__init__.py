# SPDX-License-Identifier: Apache-2.0
"""Optimizers on manifolds, and how they share a model with others."""

from clusterplug.optim.grassmann_constructor import GrassmannOptimWrapperConstructor
from clusterplug.optim.riemannian_sgd import RiemannianSGD, grassmann_groups

__all__ = [
    'GrassmannOptimWrapperConstructor',
    'RiemannianSGD',
    'grassmann_groups',
]
