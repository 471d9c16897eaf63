# SPDX-License-Identifier: Apache-2.0
"""One call of every public function, and ways to change the tensors in it."""

import warnings

import torch

import clusterplug.functional as functional
from clusterplug.functional import (
    cluster_tokens,
    minibatch_kmeans_start,
    token_neighbors,
)
from clusterplug.functional.features import point_cells
from clusterplug.functional.graph import linkage


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
