# SPDX-License-Identifier: Apache-2.0
"""What one odd row of the input of a public function may do to the others; no rows at all."""

import pytest
import torch
from _function_calls import CALLS, CELLS, FEATURES, assert_same, call, randn, to

from clusterplug.functional import (
    bipartite_matching,
    cluster_pool,
)

# What a NaN or infinite row of the first floating argument does. Row: the results of all other rows stay. Problem:
# those of all other problems of the batch stay. Cells: those of points out of reach of its cell stay. All others
# refuse it.
ROW = [
    'chamfer_similarity',
    'erase_directions', 'multilabel_discrimination',
    'distance_weights',
    'student_assignment',
    'projection_energy', 'low_rank_posterior_mean', 'low_rank_responsibilities',
    'concrete_mask', 'grassmann_logits',
    'bank_contrast_terms', 'gather_ranks', 'pair_contrast_terms', 'pairwise_distances', 'size_biased_attention',
    'subclass_contrast', 'subclass_contrast_terms',
    'bank_contrast_terms', 'gated_similarity', 'gather_ranks', 'info_nce', 'pair_contrast_terms', 'pairwise_distances',
    'size_biased_attention', 'subclass_contrast', 'subclass_contrast_terms',
]  # fmt: skip
PROBLEM = [
    'matched_cross_entropy', 'pair_loss',
    'spaced_vectors', 'tail_vectors',
    'cluster_target',
    'conditional_coding_rate', 'doubly_stochastic', 'rate_reduction',
    'coding_rate', 'spectral_entropy',
    'balanced_codes',
    'grassmann_step', 'householder_product', 'householder_reflectors', 'orthonormalize_bases',
    'assign_subclasses', 'bipartite_matching', 'cluster_encode', 'cluster_pool', 'combine_tokens', 'merge_tokens',
    'merge_tokens_to', 'nt_xent', 'partial_transport', 'reconstruct_tokens', 'sinkhorn', 'sinkhorn_log_plan',
    'sample_sequence', 'soft_cluster_encode', 'unbalanced_transport', 'view_contrast_terms',
]  # fmt: skip
CELL = ['cell_means', 'cluster_points', 'spread_clusters']
# These take labels, or what another function made of points; that function has its own row.
OF_RESULTS = [
    'lasso_from_gram', 'match_units',
    'group_kappa', 'point_agreement', 'williams_index',
    'numerical_rank',
    'membership_labels',
    'likelihood_weights',
    'co_association',
    'class_overlap',
    'adjusted_rand_index', 'cluster_labels', 'clustering_accuracy', 'compose_labels', 'cut_linkage', 'cut_linkage_at',
    'normalized_mutual_info', 'point_cells', 'sample_anchors', 'token_neighbors', 'adjacency_power',
    'linear_assignment', 'normalized_laplacian', 'spectral_embedding',
]  # fmt: skip
POINT_FUNCTIONS = sorted(set(CALLS) - set(OF_RESULTS))
# The 0th dimension of their arguments is not one of problems.
NO_BATCH = [
    'jacobian_residual', 'jacobian_svd', 'cka_null', 'sparse_mapping', 'temporal_contrast',
    'kmeans_sdp', 'likelihood_sdp', *ROW, *CELL,
    *OF_RESULTS,
]  # fmt: skip


def row_of(x):
    """The row of ``x`` (..., N, D) that is made odd: the last but one of the first problem."""
    return x.view(-1, *x.shape[-2:])[0, -2] if x.dim() > 2 else x[-2]


@pytest.mark.parametrize('name', POINT_FUNCTIONS)
def test_an_odd_row_is_refused_or_stays_alone(name):
    for value in (float('nan'), float('inf'), -float('inf')):

        def edit(x, value=value):
            row_of(x).fill_(value)

        if name not in (*ROW, *PROBLEM, *CELL):
            with pytest.raises(ValueError, match='must be finite, got NaN or inf'):
                call(name, edit=edit)
            continue
        plain, odd = call(name), call(name, edit=edit)
        if name in PROBLEM:
            assert_same([x[1:] for x in odd], [x[1:] for x in plain], rtol=0, atol=1e-6)
        elif name in ROW:
            dims = {'gated_similarity': 2, 'grassmann_logits': 2, 'gather_ranks': 3}
            dims |= {'size_biased_attention': 3, 'pairwise_distances': 2, 'pair_contrast_terms': 2}
            dims |= {'erase_directions': 2, 'low_rank_posterior_mean': 2, 'low_rank_responsibilities': 2}
            for one, other in zip(odd, plain, strict=True):
                rows = one.flatten(0, dims.get(name, 1) - 1), other.flatten(0, dims.get(name, 1) - 1)
                differs = (rows[0] != rows[1]).flatten(1).any(1) if rows[0].dim() > 1 else rows[0] != rows[1]
                assert differs.sum() <= 1
        else:
            home = CELLS.home
            far = ~(CELLS.around[home] == home[-2]).any(1)
            assert far.any()
            picked = {'cell_means': home[far], 'cluster_points': home[far], 'spread_clusters': far}[name]
            if name == 'spread_clusters':  # an odd representative reaches its members alone
                members = call('cluster_points')[1] == 0
                picked = ~members.any(1)
            assert_same([x[picked] for x in odd[:1]], [x[picked] for x in plain[:1]])


# An odd row of a basis is no basis, so grassmann_step has no right answer there.
@pytest.mark.parametrize(
    'name', sorted(set(POINT_FUNCTIONS) - {'gather_ranks', 'grassmann_step', 'size_biased_attention'})
)
def test_beside_an_outlier_as_in_float64(name):
    def edit(x):
        row_of(x).fill_(1e6 if name not in ('assign_subclasses', *ROW) or name == 'pairwise_distances' else 3.0)

    assert_same(call(name, edit=edit), call(name, to(torch.float64), edit=edit), rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize(
    'name',
    sorted(set(CALLS) - set(NO_BATCH) - {'neighbor_contrast'})  # one graph
    + [
        'pair_contrast_terms',
        'pairwise_distances',
        'projection_energy',
        'size_biased_attention',
        'cut_linkage',
        'compose_labels',
        'token_neighbors',
        'cluster_labels',
    ],
)
def test_no_problems_and_no_points(name):
    found = call(name, lambda x: x[:0] if x.dim() else x)
    expected = [(0, *x.shape[1:]) for x in call(name)]
    assert [tuple(x.shape) for x in found] == expected
    if name in POINT_FUNCTIONS and name not in ('pair_contrast_terms', 'size_biased_attention'):  # no queries: fine

        def no_points(x):
            x.resize_(*x.shape[:-2], 0, x.shape[-1])

        with pytest.raises(ValueError, match='must'):
            call(name, edit=no_points)


def test_a_matching_is_made_of_its_own_rows():
    x = randn(1, 12, 4)
    other = torch.cat([x, torch.full((1, 12, 4), float('nan'))])
    assert torch.equal(bipartite_matching(other, 3).target[0], bipartite_matching(x, 3).target[0])
    pooled, odd = (
        cluster_pool(*(torch.cat([each, fill(each)]) for each in (f[:1] for f in FEATURES)))
        for fill in (torch.zeros_like, lambda t: torch.full_like(t, float('nan')))
    )
    torch.testing.assert_close(pooled.representatives[0], odd.representatives[0])
