# SPDX-License-Identifier: Apache-2.0
"""Terms of contrastive losses, the anchors they take, and the labels they compare."""

from clusterplug.functional.contrast.anchor_sampling import AnchorSample, draw_anchors as draw_anchors, sample_anchors
from clusterplug.functional.contrast.bank_contrast import (
    CenterProblem as CenterProblem,
    bank_contrast_terms,
    sampled_bank as sampled_bank,
    whole_bank as whole_bank,
)
from clusterplug.functional.contrast.cluster_target import cluster_target, student_assignment
from clusterplug.functional.contrast.compose_labels import compose_labels
from clusterplug.functional.contrast.distance_weights import distance_weights
from clusterplug.functional.contrast.fused_contrast import fused_contrast as fused_contrast
from clusterplug.functional.contrast.gated_similarity import gated_similarity
from clusterplug.functional.contrast.info_nce import info_nce
from clusterplug.functional.contrast.likelihood_weights import likelihood_weights
from clusterplug.functional.contrast.multilabel import (
    cosine_margin as cosine_margin,
    multilabel_discrimination,
)
from clusterplug.functional.contrast.neighbor_contrast import neighbor_contrast
from clusterplug.functional.contrast.nt_xent import nt_xent, view_contrast_terms
from clusterplug.functional.contrast.pair_contrast import PairProblem as PairProblem, pair_contrast_terms
from clusterplug.functional.contrast.region_means import region_means as region_means
from clusterplug.functional.contrast.subclass_contrast import (
    NEVER as NEVER,
    check_temperature as check_temperature,
    subclass_contrast,
    subclass_contrast_terms,
)
from clusterplug.functional.contrast.temporal_contrast import linear_dynamics, temporal_contrast

__all__ = [
    'AnchorSample',
    'bank_contrast_terms',
    'cluster_target',
    'compose_labels',
    'distance_weights',
    'gated_similarity',
    'info_nce',
    'likelihood_weights',
    'linear_dynamics',
    'multilabel_discrimination',
    'neighbor_contrast',
    'nt_xent',
    'pair_contrast_terms',
    'sample_anchors',
    'student_assignment',
    'subclass_contrast',
    'subclass_contrast_terms',
    'temporal_contrast',
    'view_contrast_terms',
]
