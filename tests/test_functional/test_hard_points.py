# SPDX-License-Identifier: Apache-2.0
"""Clustering of one point, duplicates, points far from the origin and next to an outlier."""

import pytest
import torch
from _function_calls import X, assert_same, seeded

import clusterplug.functional as functional
from clusterplug.functional import (
    bipartite_matching,
    cluster_pool,
    minibatch_kmeans_start,
    nearest_center,
)
from clusterplug.functional.graph import linkage
from clusterplug.functional.kmeans import kmeans

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
