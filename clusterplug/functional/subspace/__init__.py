# SPDX-License-Identifier: Apache-2.0
"""Subspaces, their frames and angles, and how much of the data they hold."""

from clusterplug.functional.subspace.coding import coding_rate, spectral_entropy
from clusterplug.functional.subspace.concrete_mask import concrete_mask
from clusterplug.functional.subspace.correlation import CCAResult, cca, linear_cka
from clusterplug.functional.subspace.erasure import erase_directions
from clusterplug.functional.subspace.frames import orthonormal_frame, principal_angles, projection_energy
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
from clusterplug.functional.subspace.jacobian import JacobianSVD, jacobian_residual, jacobian_svd, numerical_rank
from clusterplug.functional.subspace.k_subspaces import KSubspacesResult, k_subspaces
from clusterplug.functional.subspace.local_cka import cka_null, local_cka_scores
from clusterplug.functional.subspace.low_rank_posterior import low_rank_posterior_mean, low_rank_responsibilities
from clusterplug.functional.subspace.rate_reduction import conditional_coding_rate, rate_reduction
from clusterplug.functional.subspace.self_expression import self_expression, top_coefficients
from clusterplug.functional.subspace.sparse_mapping import lasso_from_gram, sparse_mapping
from clusterplug.functional.subspace.units import unit_correlation, unit_mutual_information

__all__ = [
    'CCAResult',
    'HouseholderReflectors',
    'JacobianSVD',
    'KSubspacesResult',
    'cca',
    'cka_null',
    'class_overlap',
    'coding_rate',
    'concrete_mask',
    'conditional_coding_rate',
    'erase_directions',
    'grassmann_logits',
    'grassmann_step',
    'householder_product',
    'householder_reflectors',
    'jacobian_residual',
    'jacobian_svd',
    'k_subspaces',
    'lasso_from_gram',
    'linear_cka',
    'local_cka_scores',
    'low_rank_posterior_mean',
    'low_rank_responsibilities',
    'numerical_rank',
    'orthonormal_frame',
    'orthonormalize_bases',
    'principal_angles',
    'projection_energy',
    'rate_reduction',
    'self_expression',
    'sparse_mapping',
    'spectral_entropy',
    'top_coefficients',
    'unit_correlation',
    'unit_mutual_information',
]
