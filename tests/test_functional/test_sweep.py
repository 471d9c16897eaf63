# SPDX-License-Identifier: Apache-2.0
"""Every public function on inputs of every stride, and on what one odd row may do to the others."""

import inspect
import warnings

import pytest
import torch

import clusterplug.functional as functional
from clusterplug.functional import (
    bipartite_matching,
    cluster_pool,
    cluster_tokens,
    minibatch_kmeans_start,
    nearest_center,
    token_neighbors,
)
from clusterplug.functional.features import point_cells
from clusterplug.functional.graph import linkage
from clusterplug.functional.kmeans import kmeans


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(randn(*shape, seed=seed), dim=-1)


def ids(*shape, most=3, seed=0):
    return torch.randint(0, most, shape, generator=torch.Generator().manual_seed(seed))


def seeded():
    return {'generator': torch.Generator().manual_seed(0)}


X, MASK = randn(2, 14, 5), torch.rand(2, 14, generator=torch.Generator().manual_seed(1)) > 0.2
WEIGHTS = torch.rand(2, 14, generator=torch.Generator().manual_seed(2))
ROWS, COLUMNS = torch.full((2, 14), 1 / 14), torch.full((2, 5), 0.2)
MAPS = randn(2, 6, 6, 8)
CELLS = point_cells(torch.stack([ids(20, most=2), ids(20, most=4, seed=1), ids(20, most=4, seed=2), ids(20)], -1))
FEATURES = randn(2, 9, 4), randn(2, 9, 3, seed=1), randn(2, 3, 4, seed=2), randn(2, 3, 3, seed=3)
ENCODED = {'mask': MASK[:, :9], 'center_mask': torch.tensor([[True, True, False], [True, True, True]])}
FRAMES = torch.linalg.qr(randn(3, 9, 4)).Q
NO_KEY = torch.zeros(3, 6, dtype=torch.bool)
GRAPH = functional.affinity(X)
VALID = torch.ones(3, 7, dtype=torch.bool).index_fill(1, torch.tensor(6), False)


def wave(x):
    """A function of all of x with singular values far apart."""
    return (x * torch.arange(1, 1 + x.numel()).view(x.shape).to(x)).sin().cumsum(-1)


# name -> arguments and options; a tensor anywhere in them is given in other strides
CALLS = {
    'adjusted_rand_index': lambda: ((ids(30), ids(30, seed=1)), {}),
    'adjacency_power': lambda: ((GRAPH, 3, True), {'normalize': 'row'}),
    'affinity': lambda: ((X,), {'mask': MASK}),
    'align_by_transport': lambda: ((X[:, :4], X), {'num_passes': 2, 'num_iters': 20}),
    'assign_subclasses': lambda: (
        (unit(3, 7, 4), unit(3, 3, 4, seed=1)), {'valid': VALID, 'num_active': torch.tensor([2, 1, 0])}),
    'balanced_codes': lambda: ((X,), {'epsilon': 0.3, 'num_iters': 20, 'mask': MASK}),
    'bank_contrast_terms': lambda: (
        (unit(6, 4), ids(6), unit(3, 5, 4, seed=1), ids(3, 5, most=2) > 0), {'temperature': 0.1}),
    'bipartite_matching': lambda: ((X, 3), {}),
    'cca': lambda: ((randn(2, 14, 5), randn(2, 14, 3, seed=1)), {'ridge': 0.1}),
    'cell_means': lambda: ((randn(20, 5), CELLS), {}),
    'class_overlap': lambda: ((FRAMES,), {}),
    'chamfer_similarity': lambda: (
        (randn(3, 4, 5), MASK[:1, :4].expand(3, -1), randn(6, 7, 5, seed=1), VALID.repeat(2, 1)), {}),
    'cluster_encode': lambda: (FEATURES, ENCODED),
    'cluster_vectors': lambda: ((X, MASK, 4), {}),
    'fixed_dimensional_encoding': lambda: (
        (X, MASK), {'num_repetitions': 2, 'num_bits': 3, 'is_query': False, 'fill_empty': True, 'projection_dim': 4}),
    'pool_vectors': lambda: ((X, MASK, 2), {}),
    'spaced_vectors': lambda: ((X, MASK, 3), {}),
    'tail_vectors': lambda: ((X, MASK, 3), {}),
    'cluster_labels': lambda: ((cluster_tokens(MAPS, (2, 2)),), {}),
    'cluster_points': lambda: ((randn(20, 2, 4), randn(20, 2, 3, seed=1), CELLS), {}),
    'cluster_pool': lambda: (FEATURES, ENCODED),
    'cluster_tokens': lambda: ((MAPS, (2, 2)), {'mask': ids(2, 6, 6, most=5) > 0}),
    'neighbor_contrast': lambda: ((X[0], randn(14, 14, seed=1).abs()), {'temperature': 0.5}),
    'co_association': lambda: ((ids(3, 9),), {}),
    'graph_degree_linkage': lambda: ((X, 3), {'mask': MASK, 'num_neighbors': 5}),
    'cluster_target': lambda: ((X.softmax(-1),), {'mask': MASK}),
    'clustering_accuracy': lambda: ((ids(30), ids(30, seed=1)), {}),
    'coding_rate': lambda: ((X,), {'eps2': 0.5, 'weights': WEIGHTS}),
    'combine_tokens': lambda: (
        (randn(2, 2, 2, 8), token_neighbors(cluster_tokens(MAPS, (2, 2)), num_neighbors=3)), {}),
    'compose_labels': lambda: (([ids(2, 9, most=4), ids(2, 4, seed=1)],), {}),
    'concrete_mask': lambda: ((X, 0.5), seeded()),
    'cut_linkage': lambda: ((linkage(X, mask=MASK), 3), {}),
    'cut_linkage_at': lambda: ((linkage(X, mask=MASK), 1.5), {}),
    'distance_weights': lambda: ((X.abs().clamp(max=1.9), 5), {'mask': X > -1}),
    'conditional_coding_rate': lambda: ((X, WEIGHTS[..., None] * COLUMNS[:, None]), {'eps2': 0.5}),
    'doubly_stochastic': lambda: ((randn(2, 14, 14),), {'epsilon': 0.5, 'num_iters': 30}),
    'erase_directions': lambda: ((X, randn(2, 3, 5, seed=1)), {}),
    'gated_similarity': lambda: ((X, randn(2, 9, 5, seed=1), X.sigmoid()), {}),
    'gather_ranks': lambda: ((X,), {}),
    'grassmann_logits': lambda: ((randn(2, 14, 9), FRAMES), {}),
    'grassmann_step': lambda: ((FRAMES, randn(3, 9, 4, seed=1), 0.1), {}),
    'householder_product': lambda: ((X,), {}),
    'householder_reflectors': lambda: ((FRAMES,), {}),
    'jacobian_residual': lambda: ((wave, X, functional.jacobian_svd(wave, X, 2)), {}),
    'jacobian_svd': lambda: ((wave, X, 2), {}),
    'low_rank_posterior_mean': lambda: (
        (X, torch.linalg.qr(randn(2, 3, 5, 2, seed=1)).Q), {'signal': WEIGHTS + 0.5, 'noise': 0.5}),
    'low_rank_responsibilities': lambda: (
        (X, torch.linalg.qr(randn(2, 3, 5, 2, seed=1)).Q), {'signal': 0.7, 'noise': WEIGHTS + 0.5}),
    'numerical_rank': lambda: ((X, 0.9), {}),
    'k_subspaces': lambda: ((X, 2, 2), {'init': unit(2, 2, 2, 5).mT}),
    'info_nce': lambda: (
        (randn(6, 8), ids(6, 8) == 0, ids(6, 8, seed=1) > 0), {'temperature': 0.5}),
    'kkz': lambda: ((X, 3), {'mask': MASK}),
    'kmeans': lambda: ((X + 9, 3), {'init': X[:, :3] + 9, 'mask': MASK, 'weights': WEIGHTS}),
    'kmeans_plus_plus': lambda: ((X, 3), {'mask': MASK, 'weights': WEIGHTS, **seeded()}),
    'kmeans_sdp': lambda: ((X[0], 3), {'tol': 1e-5, **seeded()}),
    'kmedoids': lambda: ((X, 3), {'mask': MASK}),
    'kmedoids_swap': lambda: ((X, 3), {'mask': MASK}),
    'knn_graph': lambda: ((X, 3), {'mode': 'heat', 'mask': MASK}),
    'laplacian_assign': lambda: ((X, GRAPH), {'strength': 0.7, 'tol': 0.0}),  # tol is a share that fp32 rounds
    'linear_assignment': lambda: ((randn(2, 5, 7),), {}),
    'cka_null': lambda: ((X[0], randn(14, 3, seed=1), 5), seeded()),
    'lasso_from_gram': lambda: ((X[0].mT @ X[0] / 14, randn(5, 3, seed=1)), {'penalty': 0.1}),
    'local_cka_scores': lambda: (
        (X, randn(2, 14, 3, seed=1), randn(2, 4, 5, seed=2), randn(2, 6, 3, seed=3)), {}),
    'match_units': lambda: ((randn(2, 5, 7),), {}),
    'sparse_mapping': lambda: ((X[0], randn(14, 3, seed=1)), {'penalty': 0.1}),
    'unit_correlation': lambda: ((X, randn(2, 14, 3, seed=1)), {}),
    'unit_mutual_information': lambda: ((X, randn(2, 14, 3, seed=1)), {'num_bins': 3}),
    'linear_cka': lambda: ((X, randn(2, 14, 3, seed=1)), {}),
    'likelihood_weights': lambda: ((WEIGHTS,), {'eta': 0.5, 'gamma': 5.0}),
    'likelihood_sdp': lambda: ((X[0], torch.eye(5).repeat(2, 1, 1)), {'tol': 1e-5, **seeded()}),
    'linear_dynamics': lambda: ((X, randn(2, 14, 5, seed=1)), {'ridge': 0.1}),
    'linkage': lambda: ((X, ), {'mask': MASK}),
    'membership_labels': lambda: (
        (torch.block_diag(*[torch.full((k, k), 1 / k) for k in (3, 5, 6)]), 3), seeded()),
    'merge_tokens': lambda: ((X, 3), {'metric': randn(2, 14, 3), 'sizes': WEIGHTS[..., None] + 1}),
    'merge_tokens_to': lambda: ((X, 9), {'metric': randn(2, 14, 3), 'sizes': WEIGHTS[..., None] + 1}),
    'minibatch_kmeans_start': lambda: ((X, 3), {'init': X[:, :3], 'mask': MASK, 'weights': WEIGHTS}),
    'minibatch_kmeans_update': lambda: (
        (minibatch_kmeans_start(X, 3, init='kkz'), X), {'mask': MASK, 'weights': WEIGHTS}),
    'multilabel_discrimination': lambda: (
        (unit(6, 4), unit(6, 5, seed=1)), {'scale': 8.0, 'margin': 0.3}),
    'matched_cross_entropy': lambda: ((X, ids(2, 14)), {'reduction': 'none'}),
    'minimum_spanning_scale': lambda: ((X, 0.5), {}),
    'nearest_center': lambda: ((X + 9, randn(2, 3, 5, seed=1) + 9), {'mask': MASK}),
    'normalized_laplacian': lambda: ((GRAPH,), {}),
    'normalized_mutual_info': lambda: ((ids(30), ids(30, seed=1)), {}),
    'orthonormalize_bases': lambda: ((X,), {}),
    'orthonormal_frame': lambda: ((X,), {}),
    'nt_xent': lambda: ((X, X + randn(2, 14, 5, seed=1)), {'temperature': 0.5}),
    'group_kappa': lambda: ((ids(30), ids(4, 30, seed=1)), {}),
    'pair_loss': lambda: ((X, ids(2, 3, 14)), {'reduction': 'none', 'chunk_size': 5}),
    'point_agreement': lambda: ((ids(2, 4, 14),), {}),
    'pair_contrast_terms': lambda: (
        (unit(3, 4, 5), ids(3, 4) + 3 * torch.arange(3)[:, None], unit(3, 6, 5, seed=1),
         ids(3, 6, seed=1) + 3 * torch.arange(3)[:, None], NO_KEY), {'temperature': 0.1}),
    'pairwise_distances': lambda: ((X + 9, randn(2, 7, 5, seed=1) + 9), {}),
    'partial_transport': lambda: (
        (X,), {'epsilon': 0.3, 'num_iters': 20, 'mass': 0.5, 'row_marginals': ROWS, 'col_marginals': COLUMNS}),
    'point_cells': lambda: ((torch.stack([ids(20, most=2), *(ids(20, most=4, seed=s) for s in range(3))], -1),), {}),
    'principal_angles': lambda: ((X, randn(2, 14, 3, seed=1)), {}),
    'projection_energy': lambda: ((X, unit(2, 3, 5, 1).mT.mT), {}),
    'rate_reduction': lambda: ((X, WEIGHTS[..., None] * randn(2, 14, 4, seed=3).sigmoid()), {'eps2': 0.5}),
    'progressive_transport': lambda: (
        (X,), {'epsilon': 0.3, 'mass': 0.5, 'penalty': 1.0, 'mask': MASK, 'prior': COLUMNS}),
    'reconstruct_tokens': lambda: ((randn(2, 2, 2, 8), cluster_tokens(MAPS, (2, 2))), {'num_neighbors': 3}),
    'sample_anchors': lambda: (
        (ids(40), ids(40, seed=1)), {'num_classes': 3, 'num_anchors_per_class': 4, **seeded()}),
    'self_expression': lambda: ((X,), {'ridge': 0.5}),
    'semantic_transport': lambda: (
        (X,), {'epsilon': 0.3, 'mass': 0.5, 'penalty': 1.0, 'mask': MASK, 'graph': GRAPH, 'strength': 3.0,
               'max_iters': 5, 'tol': 1e-9}),
    'sample_sequence': lambda: ((X, 13 * torch.rand(2, 6, generator=torch.Generator().manual_seed(1))), {}),
    'sinkhorn': lambda: (
        (X,), {'epsilon': 0.3, 'num_iters': 20, 'row_marginals': ROWS, 'col_marginals': COLUMNS}),
    'sinkhorn_log_plan': lambda: (
        (X,), {'epsilon': 0.3, 'num_iters': 20, 'row_marginals': ROWS, 'col_marginals': COLUMNS}),
    'size_biased_attention': lambda: (
        (randn(2, 3, 6, 4), randn(2, 3, 6, 4, seed=1), randn(2, 3, 6, 4, seed=2), WEIGHTS[:, :6] + 1), {}),
    'soft_cluster_encode': lambda: (FEATURES, ENCODED),
    'spectral_clustering': lambda: ((X, 3), {'mask': MASK}),
    'spectral_embedding': lambda: ((GRAPH, 2), {}),
    'spectral_entropy': lambda: ((X,), {}),
    'spread_clusters': lambda: ((functional.cluster_points(randn(20, 2, 4), randn(20, 2, 3, seed=1), CELLS),), {}),
    'student_assignment': lambda: ((X + 9, randn(2, 3, 5, seed=1) + 9), {}),
    'subclass_contrast': lambda: ((unit(6, 4), ids(6), unit(8, 4, seed=1), ids(8, seed=1)), {'temperature': 0.1}),
    'subclass_contrast_terms': lambda: (
        (unit(6, 4), ids(6), unit(8, 4, seed=1), ids(8, seed=1), torch.zeros(8, dtype=torch.bool)),
        {'temperature': 0.1}),
    'temporal_contrast': lambda: ((X,), {'num_neighbors': 3, 'temperature': 0.2}),
    'token_neighbors': lambda: ((cluster_tokens(MAPS, (2, 2)),), {'num_neighbors': 3}),
    'token_spread': lambda: ((MAPS, (2, 2)), {'mask': ids(2, 6, 6, most=5) > 0}),
    'top_coefficients': lambda: ((randn(2, 14, 14), 3), {}),
    'unbalanced_transport': lambda: (
        (X,), {'epsilon': 0.3, 'num_iters': 20, 'row_marginals': ROWS, 'col_marginals': COLUMNS}),
    'williams_index': lambda: ((ids(30), torch.stack([ids(30), ids(30).clamp_max(1)])), {}),
    'view_contrast_terms': lambda: (
        (X, X + randn(2, 14, 5, seed=1), randn(2, 20, 5, seed=2), randn(2, 20, 5, seed=3)), {'temperature': 0.5}),
}  # fmt: skip


def transposed(x):
    return x.mT.contiguous().mT if x.dim() > 1 else sliced(x)


def permuted(x):
    order = list(range(x.dim()))[::-1]
    return x.permute(order).contiguous().permute(order)


def sliced(x):
    wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1] + 1) if x.dim() else x
    if x.dim():
        wide[..., 1::2] = x
        return wide[..., 1::2]
    return x


def overlapping(x):
    """Strides of a batch dimension that shares its memory, where the entries are made equal."""
    return x[:1].expand_as(x) if x.dim() > 2 else x


def everywhere(value, change):
    """Apply ``change`` to all tensors in nested tuples, lists, dicts and named tuples."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: everywhere(each, change) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, '_fields'):
        return type(value)(*(everywhere(each, change) for each in value))
    if isinstance(value, (tuple, list)):
        return type(value)(everywhere(each, change) for each in value)
    return value


def tensors(value):
    found = []
    everywhere(value, lambda x: found.append(x) or x)
    return found


def run(name, change):
    """Return results and gradients of the first floating argument and all others that take part."""
    args, options = everywhere(CALLS[name](), lambda x: x.detach().clone())
    leaves = [x for x in args if isinstance(x, torch.Tensor) and x.is_floating_point()]
    for x in leaves:
        x.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        result = getattr(functional, name)(*everywhere(args, change), **everywhere(options, change))
    outputs = tensors(result) if not isinstance(result, float) else [torch.tensor(result)]
    loss = sum((x.double().square().sum() for x in outputs if x.requires_grad), torch.zeros(()))
    grads = []
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [x.detach() for x in outputs], [x for x in grads if x is not None]


def test_every_public_function_has_a_row():
    functions = {name for name in functional.__all__ if not inspect.isclass(getattr(functional, name))}
    assert functions == set(CALLS)


@pytest.mark.parametrize('change', [transposed, permuted, sliced])
@pytest.mark.parametrize('name', CALLS)
def test_strides_change_nothing(name, change):
    for got, expected in zip(run(name, change), run(name, torch.Tensor.contiguous), strict=True):
        assert len(got) == len(expected)
        for one, other in zip(got, expected):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', [
    'kkz', 'kmedoids', 'kmedoids_swap', 'linkage', 'nearest_center', 'pairwise_distances', 'spectral_clustering',
    'sinkhorn', 'bipartite_matching', 'cluster_tokens', 'merge_tokens', 'token_spread', 'cluster_pool',
])  # fmt: skip
def test_expanded_batches(name):
    got, gradients = run(name, overlapping)
    expected, others = run(name, lambda x: overlapping(x).contiguous())
    for one, other in zip([*got, *gradients], [*expected, *others], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# Types of the floating results for fp16 points: i = that of the points, w = fp32, d = float64. Float64 stays.
RESULT_TYPES = {
    'cka_null': 'i', 'lasso_from_gram': 'i', 'local_cka_scores': 'd', 'sparse_mapping': 'i', 'unit_correlation': 'i',
    'unit_mutual_information': 'i',
    'linear_dynamics': 'i', 'temporal_contrast': 'i', 'matched_cross_entropy': 'i', 'pair_loss': 'i',
    'chamfer_similarity': 'w', 'cluster_vectors': 'i', 'fixed_dimensional_encoding': 'w', 'pool_vectors': 'i',
    'spaced_vectors': 'i', 'tail_vectors': 'i',
    'self_expression': 'i', 'top_coefficients': 'i',
    'kmeans_sdp': 'iii', 'likelihood_sdp': 'iii',
    'erase_directions': 'i', 'multilabel_discrimination': 'i',
    'distance_weights': 'i', 'likelihood_weights': 'i',
    'conditional_coding_rate': 'i', 'doubly_stochastic': 'i', 'rate_reduction': 'i',
    'jacobian_residual': 'i', 'jacobian_svd': 'iii', 'low_rank_posterior_mean': 'i', 'low_rank_responsibilities': 'i',
    'cca': 'iiiii', 'coding_rate': 'i', 'k_subspaces': 'iw', 'linear_cka': 'i', 'orthonormal_frame': 'i',
    'principal_angles': 'i', 'projection_energy': 'i', 'spectral_entropy': 'i',
    'class_overlap': 'i', 'concrete_mask': 'i', 'grassmann_logits': 'i', 'grassmann_step': 'i',
    'householder_product': 'i', 'householder_reflectors': 'ii', 'orthonormalize_bases': 'i',
    'cluster_target': 'i', 'student_assignment': 'i',
    'adjacency_power': 'w', 'affinity': 'w', 'knn_graph': 'w', 'normalized_laplacian': 'w', 'spectral_embedding': 'w',
    'assign_subclasses': 'w', 'bank_contrast_terms': 'i', 'cell_means': 'i', 'cluster_encode': 'iiww',
    'cluster_points': 'iww', 'cluster_pool': 'iww', 'cluster_tokens': 'iwi', 'combine_tokens': 'i', 'gather_ranks': 'i',
    'gated_similarity': 'i',
    'info_nce': 'i', 'kmeans': 'iw', 'kmedoids': 'w', 'kmedoids_swap': 'w', 'linkage': 'w', 'merge_tokens': 'ii',
    'merge_tokens_to': 'ii', 'minibatch_kmeans_start': 'wd', 'minibatch_kmeans_update': 'wdw', 'nearest_center': 'w',
    'nt_xent': 'i', 'pair_contrast_terms': 'i', 'pairwise_distances': 'i', 'partial_transport': 'i',
    'reconstruct_tokens': 'i',
    'align_by_transport': 'i', 'laplacian_assign': 'i', 'progressive_transport': 'i', 'semantic_transport': 'i',
    'minimum_spanning_scale': 'w', 'sample_sequence': 'i',
    'sinkhorn': 'i', 'sinkhorn_log_plan': 'i', 'size_biased_attention': 'i', 'soft_cluster_encode': 'iiww',
    'spectral_clustering': 'w', 'spread_clusters': 'i', 'subclass_contrast': 'i', 'subclass_contrast_terms': 'i',
    'token_neighbors': 'w', 'token_spread': 'w', 'unbalanced_transport': 'i', 'view_contrast_terms': 'w',
}  # fmt: skip

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


def call(name, change=lambda x: x, edit=None):
    """Return all tensors of the result, of arguments changed by ``change`` and the first floating one by ``edit``."""
    args, options = everywhere(CALLS[name](), lambda x: change(x.detach().clone()))
    if edit is not None:
        edit(next(x for x in tensors(args) if x.is_floating_point()))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        result = getattr(functional, name)(*args, **options)
    return tensors(result) if not isinstance(result, float) else [torch.tensor(result, dtype=torch.float64)]


def to(*dtypes):
    """Cast floating tensors from type to type."""

    def change(x):
        for dtype in dtypes:
            x = x.to(dtype) if x.is_floating_point() and x.is_leaf else x
        return x

    return change


def assert_same(got, expected, rtol=1e-4, atol=1e-5):
    for one, other in zip(got, expected, strict=True):
        if one.is_floating_point():
            torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=atol, equal_nan=True)
        else:
            assert torch.equal(one, other)


@pytest.mark.parametrize('name', sorted(set(CALLS) - {'co_association', 'point_agreement'}))  # labels have no precision
def test_types_agree(name):
    exact = call(name, to(torch.float32, torch.float64))
    assert all(x.dtype == torch.float64 for x in exact if x.is_floating_point())
    assert_same(call(name), exact)
    for dtype in (torch.float16, torch.bfloat16):
        if 'marginals' in str(CALLS[name]()[1]) and dtype == torch.bfloat16:
            with pytest.raises(ValueError, match='equal sums'):  # their own rounding: refused, not corrected
                call('sinkhorn', to(dtype))
            continue
        narrow = call(name, to(dtype))
        if name in RESULT_TYPES:
            types = {'i': dtype, 'w': torch.float32, 'd': torch.float64}
            assert [x.dtype for x in narrow if x.is_floating_point()] == [types[each] for each in RESULT_TYPES[name]]
        eps = torch.finfo(dtype).eps
        assert_same(narrow, call(name, to(dtype, torch.float32)), rtol=2 * eps, atol=2 * eps)


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


# Called with points (B, N, D) and a number of clusters; what changes with the unit of the points is in the second.
OF_POINTS = {
    'kkz': lambda x, k: ([functional.kkz(x, k)], []),
    'kmeans_plus_plus': lambda x, k: ([functional.kmeans_plus_plus(x, k, **seeded())], []),
    'kmeans': lambda x, k: ([(r := functional.kmeans(x, k, init='kkz')).labels], [r.centers]),
    'kmedoids': lambda x, k: ([*(r := functional.kmedoids(x, k))[:2]], [r.cost]),
    'kmedoids_swap': lambda x, k: ([*(r := functional.kmedoids_swap(x, k))[:2]], [r.cost]),
    'linkage': lambda x, k: ([(r := linkage(x)).children], [r.heights]),
    'minibatch_kmeans_start': lambda x, k: ([], [minibatch_kmeans_start(x, k, init='kkz').centers]),
    'minibatch_kmeans_update': lambda x, k: (
        [(r := functional.minibatch_kmeans_update(minibatch_kmeans_start(x, k, init='kkz'), x)).labels],
        [r.state.centers]),
    'nearest_center': lambda x, k: ([(r := nearest_center(x, x[:, :k]))[0]], [r[1].sqrt()]),
    'pairwise_distances': lambda x, k: ([], [functional.pairwise_distances(x)]),
    'spectral_clustering': lambda x, k: ([functional.spectral_clustering(x, k).labels], []),
    'bipartite_matching': lambda x, k: ([bipartite_matching(x, x.shape[1] // 4).target], []),
    'cluster_pool': lambda x, k: (
        [(r := cluster_pool(x, x, x[:, :k], x[:, :k])).labels], [r.representatives]),
    'merge_tokens': lambda x, k: ([], [functional.merge_tokens(x, x.shape[1] // 4)[0]]),
}  # fmt: skip


@pytest.mark.filterwarnings('ignore:.*cut is not unique')
@pytest.mark.parametrize('name', OF_POINTS)
def test_one_point_duplicates_and_any_unit(name):
    run_on, plain = OF_POINTS[name], OF_POINTS[name](X, 3)
    for unit_of_x in (2.0**-40, 2.0**40):
        labels, values = run_on(X * unit_of_x, 3)
        assert_same(labels, plain[0])
        assert_same([x / unit_of_x for x in values], plain[1], rtol=1e-5)
    labels, values = run_on(X[:, :1], 1)
    assert all(x.eq(0).all() for x in labels if name != 'bipartite_matching')
    assert all(x.isfinite().all() for x in values)
    for x in (X[:, :2].repeat_interleave(6, 1), X[:, :1].expand(-1, 12, -1) + 0.1):
        labels, values = run_on(x, 2)
        assert all(((y >= 0) & (y < 24)).all() for y in labels)
        assert all(y.isfinite().all() for y in values)
        if name in ('kmeans', 'kmedoids', 'kmedoids_swap', 'minibatch_kmeans_update') and x.unique(dim=1).shape[1] == 2:
            assert labels[0][:, :6].eq(labels[0][:, :1]).all()
            assert labels[0][:, 6:].ne(labels[0][:, :1]).all()
        if name == 'pairwise_distances':
            assert values[0][:, :6, :6].eq(0).all()


def hard_points(kind):
    generator = torch.Generator().manual_seed(3)
    if kind == 'duplicates':
        return torch.rand(8, 3, generator=generator)[torch.randint(0, 8, (2, 300), generator=generator)]
    if kind == 'all equal':
        return torch.full((2, 40, 3), 0.1)
    if kind == 'offset':
        return torch.randn(2, 200, 6, generator=generator) + 3000
    x = torch.randn(2, 200, 6, generator=generator)
    x[:, 5] = 1e6
    return x


@pytest.mark.parametrize('kind', ['duplicates', 'all equal', 'offset', 'outlier'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('options', [{}, {'tol': None, 'num_iters': 20}, {'init': 'kkz'}, 'weights', 'mask'])
@pytest.mark.parametrize('form', ['cpu', 'device'])
def test_labels_and_inertia_belong_to_the_centers(kind, dtype, options, form, monkeypatch):
    import importlib

    if form == 'device':
        for name in ('kmeans', 'kmeans_init', '_assign', '_points'):
            module = importlib.import_module(f'clusterplug.functional.kmeans.{name}')
            monkeypatch.setattr(module, 'host_checks_allowed', lambda tensor: False)
    x = hard_points(kind)
    x = (x.clamp(-6e4, 6e4) if dtype == torch.float16 else x).to(dtype)
    extra = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(4))
    if isinstance(options, str):
        options = {options: extra > 0.2 if options == 'mask' else extra}
    result = kmeans(x, 20, generator=torch.Generator().manual_seed(0), **options)
    valid = options.get('mask', torch.ones(x.shape[:2], dtype=torch.bool))
    squared = torch.cdist(x.double(), result.centers.double(), compute_mode='donot_use_mm_for_euclid_dist').square()
    own = squared.gather(-1, result.labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    rounding = 1e-9 if dtype == torch.float64 else 1e-4
    assert (own <= squared.amin(-1) * (1 + rounding) + 1e-6 * x.double().square().mean().clamp(max=1.0))[valid].all()
    weights = options.get('weights', torch.ones(x.shape[:2])).double() * valid
    expected = (own * weights).sum(-1)
    torch.testing.assert_close(result.inertia.double(), expected, rtol=1e-3, atol=1e-5)
    labels, _ = nearest_center(x, result.centers, mask=options.get('mask'))
    again = squared.gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(again[valid], own[valid], rtol=1e-3, atol=1e-5)
    if kind in ('duplicates', 'all equal') and 'tol' not in options:
        assert result.num_iters.max() <= 25
        if dtype == torch.float32:
            assert result.inertia.max() < 1e-6


def test_a_matching_is_made_of_its_own_rows():
    x = randn(1, 12, 4)
    other = torch.cat([x, torch.full((1, 12, 4), float('nan'))])
    assert torch.equal(bipartite_matching(other, 3).target[0], bipartite_matching(x, 3).target[0])
    pooled, odd = (
        cluster_pool(*(torch.cat([each, fill(each)]) for each in (f[:1] for f in FEATURES)))
        for fill in (torch.zeros_like, lambda t: torch.full_like(t, float('nan')))
    )
    torch.testing.assert_close(pooled.representatives[0], odd.representatives[0])
