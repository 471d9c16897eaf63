# SPDX-License-Identifier: Apache-2.0
"""kmeans: by hand, plain loop, scikit-learn, faiss; masks, weights, empty clusters, extremes, invariants, bad input."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from clusterplug.functional.kmeans import _assign as _kmeans_assign, kmeans, nearest_center


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain_loop(x, centers, num_iters, weights=None):
    """float64 Lloyd iteration point by point; fails on an empty cluster."""
    x, centers = x.double(), centers.double().clone()
    weights = torch.ones(len(x), dtype=torch.float64) if weights is None else weights.double()
    for _ in range(num_iters):
        labels = [min(range(len(centers)), key=lambda k: float((p - centers[k]).square().sum())) for p in x]
        for k in range(len(centers)):
            members = torch.tensor([label == k for label in labels])
            centers[k] = (weights[members, None] * x[members]).sum(0) / weights[members].sum()
    labels = torch.tensor([min(range(len(centers)), key=lambda k: float((p - centers[k]).square().sum())) for p in x])
    return labels, centers, (weights * (x - centers[labels]).square().sum(-1)).sum()


def scikit(x, init, **options):
    cluster = pytest.importorskip('sklearn.cluster')
    weights = options.pop('sample_weight', None)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # convergence warnings on duplicates
        model = cluster.KMeans(len(init), init=init.numpy(), n_init=1, algorithm='lloyd', **options)
        return model.fit(x.numpy(), sample_weight=None if weights is None else weights.numpy())


def assert_equals_scikit(result, oracle, tolerance=1e-5):
    assert np.array_equal(result.labels.numpy(), oracle.labels_)
    scale = max(1.0, float(np.abs(oracle.cluster_centers_).max()))
    torch.testing.assert_close(
        result.centers.double(), torch.from_numpy(oracle.cluster_centers_).double(), rtol=0, atol=tolerance * scale
    )
    assert float(result.inertia) == pytest.approx(oracle.inertia_, rel=1e-4, abs=1e-6)
    assert int(result.num_iters) == oracle.n_iter_


def test_by_hand():
    x = torch.tensor([[0.0], [0.2], [5.0], [5.2], [9.0]])
    result = kmeans(x, 2, init=torch.tensor([[0.0], [9.0]]))
    # first labels 0 0 1 1 1 (5.0 is nearer to 9), centers 0.1 and 6.4; nothing changes in the second iteration
    assert result.labels.tolist() == [0, 0, 1, 1, 1]
    torch.testing.assert_close(result.centers, torch.tensor([[0.1], [6.4]]))
    assert float(result.inertia) == pytest.approx(2 * 0.01 + 1.4**2 + 1.2**2 + 2.6**2, rel=1e-5)
    assert int(result.num_iters) == 2


@settings(max_examples=30, deadline=None)
@given(n=st.integers(4, 40), d=st.integers(1, 5), k=st.integers(1, 4), seed=st.integers(0, 999), its=st.integers(1, 5))
def test_equals_plain_loop(n, d, k, seed, its):
    x = randn(n, d, seed=seed, dtype=torch.float64)
    weights = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    init = x[:k].clone()
    for w in (None, weights):
        try:
            labels, centers, inertia = plain_loop(x, init, its, w)
        except (ZeroDivisionError, ValueError):
            continue
        if not torch.isfinite(centers).all():  # an empty cluster
            continue
        result = kmeans(x, k, init=init, num_iters=its, tol=0, weights=w)
        torch.testing.assert_close(result.centers, centers, rtol=1e-9, atol=1e-12)
        assert torch.equal(result.labels, labels)
        assert float(result.inertia) == pytest.approx(float(inertia), rel=1e-9, abs=1e-12)
        assert int(result.num_iters) == its


@pytest.mark.parametrize(('n', 'd', 'k'), [(60, 2, 3), (500, 5, 7), (196, 64, 49), (3000, 16, 20), (30, 3, 1)])
def test_equals_scikit_learn(n, d, k):
    x = randn(n, d, seed=n)
    init = x[torch.randperm(n, generator=torch.Generator().manual_seed(1))[:k]].clone()
    assert_equals_scikit(kmeans(x, k, init=init), scikit(x, init, max_iter=100, tol=1e-4))
    assert_equals_scikit(kmeans(x, k, init=init, num_iters=3), scikit(x, init, max_iter=3, tol=1e-4))
    weights = torch.rand(n, generator=torch.Generator().manual_seed(2))
    oracle = scikit(x, init, max_iter=100, tol=1e-4, sample_weight=weights)
    assert_equals_scikit(kmeans(x, k, init=init, weights=weights), oracle)


def hard_data():
    line = torch.arange(40.0).unsqueeze(-1) * torch.tensor([[1.0, 2.0, -1.0]])
    duplicates = torch.tensor([[0.0, 0.0], [4.0, 0.0], [4.0, 3.0], [9.0, 9.0]]).repeat_interleave(10, 0)
    return {
        'collinear': (line, line[[3, 4, 30]].clone()),
        'duplicates': (duplicates, torch.tensor([[0.0, 0.1], [4.0, 1.0], [8.0, 8.0]])),
        'all equal': (torch.full((12, 3), 2.5), torch.full((3, 3), 2.5)),
        'one point': (torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 0.0]])),
        'k equals n': (randn(6, 2), randn(6, 2)),
        'offset': (randn(200, 4, seed=3) + 4096.0, randn(5, 4, seed=4) + 4096.0),
        'one center far away': (randn(50, 2), torch.tensor([[0.0, 0.0], [1.0, 0.0], [500.0, 500.0]])),
    }


@pytest.mark.parametrize('case', hard_data())
def test_hard_data_equals_scikit_learn(case):
    x, init = hard_data()[case]
    result = kmeans(x, len(init), init=init)
    oracle = scikit(x, init, max_iter=100, tol=1e-4)
    assert result.centers.isfinite().all()
    torch.testing.assert_close(result.centers, torch.from_numpy(oracle.cluster_centers_), rtol=1e-5, atol=1e-4)
    assert np.array_equal(result.labels.numpy(), oracle.labels_)
    assert float(result.inertia) == pytest.approx(oracle.inertia_, rel=1e-4, abs=1e-5)


def test_huge_offset_is_exact():
    grid = torch.randint(-32, 32, (300, 6), generator=torch.Generator().manual_seed(0)).float() / 8
    near = kmeans(grid, 5, init=grid[:5].clone())
    far = kmeans(grid + 65536.0, 5, init=grid[:5] + 65536.0)
    assert torch.equal(near.labels, far.labels)
    torch.testing.assert_close(near.inertia, far.inertia, rtol=1e-4, atol=0)
    assert torch.equal(near.num_iters, far.num_iters)


@pytest.mark.parametrize('scale', [1e-25, 1e18, 1e37])
@pytest.mark.parametrize('init', ['k-means++', 'kkz', 'given'])
def test_extreme_sizes(scale, init):
    x = torch.cat([randn(30, 3) + shift for shift in (-20.0, 0.0, 20.0)])
    start = x[[0, 40, 80]]
    expected = kmeans(x, 3, init=start).labels
    result = kmeans(x * scale, 3, init=start * scale if init == 'given' else init)
    assert result.centers.isfinite().all()
    groups = [set(result.labels[expected == k].tolist()) for k in range(3)]
    assert sorted(map(len, groups)) == [1, 1, 1]
    assert len(set.union(*groups)) == 3


def test_equals_faiss():
    faiss = pytest.importorskip('faiss')
    x, k = randn(800, 12, seed=5), 9
    init = x[:k].clone()
    model = faiss.Kmeans(12, k, niter=7, min_points_per_centroid=1, max_points_per_centroid=10**6)
    model.train(x.numpy(), init_centroids=init.numpy())
    result = kmeans(x, k, init=init, num_iters=7, tol=0)
    torch.testing.assert_close(result.centers, torch.from_numpy(model.centroids), rtol=1e-4, atol=1e-5)


def test_relocation_takes_the_farthest_points_in_order():
    x = torch.tensor([[0.0], [1.0], [2.0], [10.0], [30.0]])
    init = torch.tensor([[1.0], [100.0], [200.0]])
    # all points go to cluster 0; clusters 1 and 2 take 30 and 10; then 0 = mean(0, 1, 2)
    result = kmeans(x, 3, init=init, num_iters=1)
    torch.testing.assert_close(result.centers, torch.tensor([[1.0], [30.0], [10.0]]))
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])  # a point of weight 0 is never taken
    weighted = kmeans(x, 2, init=init[:2], num_iters=1, weights=weights)
    torch.testing.assert_close(weighted.centers, torch.tensor([[1.0], [10.0]]))


def test_fixed_form_relocates_in_the_first_iteration():
    x = torch.tensor([[0.0], [1.0], [2.0], [10.0], [30.0]])
    init = torch.tensor([[1.0], [100.0], [200.0]])
    result = kmeans(x, 3, init=init, num_iters=1, tol=0)
    torch.testing.assert_close(result.centers, torch.tensor([[1.0], [30.0], [10.0]]))
    assert kmeans(x, 3, init=init, num_iters=30, tol=0).labels.unique().numel() == 3


def test_fewer_different_points_than_clusters():
    x = torch.tensor([[1.0, 1.0], [3.0, 3.0]]).repeat(5, 1)
    for init in ('k-means++', 'kkz'):
        result = kmeans(x, 4, init=init)
        assert result.centers.isfinite().all()
        assert float(result.inertia) == 0.0
        assert len(set(result.labels.tolist())) == 2


@pytest.mark.parametrize('init', ['k-means++', 'kkz', 'given'])
def test_batch_equals_loop(init):
    x = randn(6, 90, 4)
    start = x[:, :5].clone()
    batch = kmeans(x, 5, init=start if init == 'given' else init, generator=torch.Generator().manual_seed(1))
    assert batch.num_iters.unique().numel() > 1  # each problem stops by itself
    chosen = start
    if init != 'given':
        first = kmeans(x, 5, init=init, num_iters=1, generator=torch.Generator().manual_seed(1))
        chosen = None
        assert torch.equal(kmeans(x, 5, init=init, generator=torch.Generator().manual_seed(1)).labels, batch.labels)
        assert first.centers.shape == batch.centers.shape
    for index in range(6):
        if init == 'k-means++':
            continue  # other random numbers
        single = kmeans(x[index], 5, init=chosen[index] if chosen is not None else init)
        assert torch.equal(single.labels, batch.labels[index])
        torch.testing.assert_close(single.centers, batch.centers[index], rtol=1e-5, atol=1e-6)
        assert single.num_iters == batch.num_iters[index]
        torch.testing.assert_close(single.inertia, batch.inertia[index], rtol=1e-5, atol=0)
    nested = kmeans(x.view(2, 3, 90, 4), 5, init=start.view(2, 3, 5, 4))
    assert nested.labels.shape == (2, 3, 90)
    assert nested.inertia.shape == nested.num_iters.shape == (2, 3)
    torch.testing.assert_close(nested.centers.view(6, 5, 4), kmeans(x, 5, init=start).centers)


def test_groups_and_blocks_do_not_change_the_result(monkeypatch):
    x = randn(5, 400, 6)
    start = x[:, :8].clone()
    whole = kmeans(x, 8, init=start, num_iters=15)
    for group_bytes, block_bytes in ((1, 1 << 21), (1 << 30, 1 << 30), (1 << 30, 20_000), (1, 3_000)):
        monkeypatch.setattr(_kmeans_assign, 'CPU_GROUP_BYTES', group_bytes)
        monkeypatch.setattr(_kmeans_assign, 'CPU_BLOCK_BYTES', block_bytes)
        split = kmeans(x, 8, init=start, num_iters=15)
        assert torch.equal(split.labels, whole.labels)
        torch.testing.assert_close(split.centers, whole.centers, rtol=1e-5, atol=1e-6)
        assert torch.equal(split.num_iters, whole.num_iters)


@pytest.mark.parametrize('init', ['k-means++', 'kkz', 'given'])
def test_mask_equals_removal_whatever_lies_there(init):
    x = randn(3, 70, 4)
    mask = torch.rand(3, 70, generator=torch.Generator().manual_seed(2)) > 0.4
    mask[2] = False
    start = randn(3, 4, 4, seed=9)
    dirty = x.masked_fill(~mask.unsqueeze(-1), float('nan'))
    result = kmeans(dirty, 4, init=start if init == 'given' else init, mask=mask)
    assert (result.labels[~mask] == -1).all()
    assert result.centers.isfinite().all()
    if init != 'k-means++':
        for index in range(2):
            removed = kmeans(x[index][mask[index]], 4, init=start[index] if init == 'given' else init)
            assert torch.equal(result.labels[index][mask[index]], removed.labels)
            torch.testing.assert_close(result.centers[index], removed.centers, rtol=1e-5, atol=1e-5)
            assert result.num_iters[index] == removed.num_iters
    assert (result.centers[2] == 0).all()
    assert float(result.inertia[2]) == 0.0


def test_fewer_valid_points_than_clusters():
    x = randn(1, 10, 2)
    mask = torch.zeros(1, 10, dtype=torch.bool)
    mask[0, [2, 5]] = True
    for init in ('k-means++', 'kkz', x[:, :4].clone()):
        result = kmeans(x, 4, init=init, mask=mask)
        assert float(result.inertia) == pytest.approx(0.0, abs=1e-9)
        assert result.labels[0, 2] != result.labels[0, 5]


def test_weights_equal_repetition():
    x = randn(40, 3)
    times = torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(0))
    init = x[:4].clone()
    weighted = kmeans(x, 4, init=init, weights=times.float(), num_iters=50, tol=0)
    repeated = kmeans(x.repeat_interleave(times, 0), 4, init=init, num_iters=50, tol=0)
    torch.testing.assert_close(weighted.centers, repeated.centers, rtol=1e-5, atol=1e-5)
    assert torch.equal(weighted.labels.repeat_interleave(times), repeated.labels)
    assert float(weighted.inertia) == pytest.approx(float(repeated.inertia), rel=1e-5)


def test_permutation_and_rotation():
    x = randn(150, 5, dtype=torch.float64)
    init = x[:6].clone()
    result = kmeans(x, 6, init=init)
    order, names = torch.randperm(150), torch.randperm(6)
    moved = kmeans(x[order], 6, init=init[names])
    assert torch.equal(names[moved.labels], result.labels[order])
    rotation = torch.linalg.qr(randn(5, 5, seed=8, dtype=torch.float64)).Q
    turned = kmeans(x @ rotation, 6, init=init @ rotation)
    assert torch.equal(turned.labels, result.labels)
    torch.testing.assert_close(turned.centers, result.centers @ rotation)


def test_inertia_falls_with_every_iteration():
    x = randn(2000, 8)
    inertia = [float(kmeans(x, 12, init=x[:12].clone(), num_iters=n, tol=0).inertia) for n in range(1, 15)]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(inertia))


def test_ties_go_to_the_lowest_index():
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]])
    centers = torch.tensor([[4.0], [0.0], [0.0], [2.0]])
    labels, distances = nearest_center(x, centers)
    assert labels.tolist() == [1, 1, 3, 0, 0]
    assert distances.tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]
    result = kmeans(x, 4, init=centers, num_iters=1, tol=0)
    assert result.centers.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision_is_assigned_in_float32(dtype):
    x = randn(3, 120, 16).to(dtype)
    start = x[:, :6].clone()
    result = kmeans(x, 6, init=start)
    full = kmeans(x.float(), 6, init=start.float())
    assert torch.equal(result.labels, full.labels)
    assert result.centers.dtype == dtype
    assert result.inertia.dtype == torch.float32
    torch.testing.assert_close(result.centers, full.centers.to(dtype))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = kmeans(x.float(), 6, init=start.float())
    assert torch.equal(inside.labels, full.labels)


def test_strides_gradients_and_generators():
    x = randn(4, 50, 2).mT.contiguous().mT  # not contiguous
    assert torch.equal(kmeans(x, 3, init='kkz').labels, kmeans(x.contiguous(), 3, init='kkz').labels)
    needs = x.clone().requires_grad_()
    assert not kmeans(needs, 3, init='kkz').centers.requires_grad
    seeds = [kmeans(x, 3, generator=torch.Generator().manual_seed(seed)).centers for seed in (0, 0, 1)]
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.equal(seeds[0], seeds[2])
    state = torch.get_rng_state()
    kmeans(x, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.get_rng_state())


def test_nearest_center():
    x, centers = randn(2, 300, 5), randn(7, 5, seed=1)
    labels, distances = nearest_center(x, centers)
    exact = torch.cdist(x.double(), centers.double())
    assert torch.equal(labels, exact.argmin(-1))
    torch.testing.assert_close(distances.double(), exact.amin(-1).square(), rtol=1e-4, atol=1e-5)
    mask = torch.rand(2, 300, generator=torch.Generator().manual_seed(0)) > 0.5
    masked, none = nearest_center(x.masked_fill(~mask.unsqueeze(-1), float('nan')), centers.expand(2, 7, 5), mask=mask)
    assert torch.equal(masked[mask], labels[mask])
    assert (masked[~mask] == -1).all()
    assert (none[~mask] == 0).all()
    with pytest.raises(ValueError, match='centers must have shape'):
        nearest_center(x, centers[:, :3])


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        ({'num_clusters': 9}, ValueError, 'got 9 clusters for 8 points'),
        ({'num_clusters': 0}, ValueError, 'at least 1'),
        ({'num_clusters': 2.0}, TypeError, 'int'),
        ({'x': torch.ones(0, 2)}, ValueError, 'at least one point'),
        ({'x': torch.ones(8, 2, dtype=torch.long)}, TypeError, 'floating'),
        ({'x': torch.ones(8)}, ValueError, '(..., N, D)'),
        ({'init': 'random'}, ValueError, "got 'random'"),
        ({'init': torch.zeros(2, 2)}, ValueError, 'init must have shape (3, 2)'),
        ({'init': torch.zeros(3, 2, dtype=torch.long)}, TypeError, 'init must have a floating dtype'),
        ({'init': torch.full((3, 2), float('nan'))}, ValueError, 'init must be finite'),
        ({'init': torch.zeros(3, 2, device='meta')}, ValueError, 'device'),
        ({'num_iters': 0}, ValueError, 'num_iters'),
        ({'tol': -1.0}, ValueError, 'tol'),
        ({'mask': torch.ones(8)}, TypeError, 'bool'),
        ({'mask': torch.ones(7, dtype=torch.bool)}, ValueError, '(8,)'),
        ({'weights': torch.ones(7)}, ValueError, '(8,)'),
        ({'weights': -torch.ones(8)}, ValueError, 'got 8'),
        ({'weights': torch.ones(8, device='meta')}, ValueError, 'device'),
    ],
)
def test_bad_input(change, error, words):
    options = {'x': randn(8, 2), 'num_clusters': 3} | change
    with pytest.raises(error) as caught:
        kmeans(options.pop('x'), options.pop('num_clusters'), **options)
    assert words in str(caught.value)


def test_bad_points_are_named():
    x = randn(4, 10, 3)
    x[1, 2, 0], x[3, 4, 1], x[3, 5, 2] = float('nan'), float('inf'), float('-inf')
    for tol in (1e-4, 0):
        with pytest.raises(ValueError, match=r'3 points .*1: 1, 3: 2'):
            kmeans(x, 2, tol=tol)
