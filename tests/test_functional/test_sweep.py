# SPDX-License-Identifier: Apache-2.0
"""Every public function on inputs of every stride and floating type."""

import inspect
import warnings

import pytest
import torch
from _function_calls import CALLS, assert_same, call, everywhere, tensors, to

import clusterplug.functional as functional


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


def test_another_device_gives_what_the_cpu_gives(other_device):
    """Results and gradients of every function, those that draw left out: a generator belongs to one device."""
    differ = {}
    for name in CALLS:
        args, options = CALLS[name]()
        if any(isinstance(each, torch.Generator) for each in (*args, *options.values())):
            continue
        expected = run(name, torch.Tensor.contiguous)
        try:
            for got, wanted in zip(run(name, lambda x: x.to(other_device)), expected, strict=True):
                for one, other in zip(got, wanted, strict=True):
                    torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-4)
        except (AssertionError, RuntimeError) as error:
            differ[name] = str(error).splitlines()[0]
    assert differ == {}


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
