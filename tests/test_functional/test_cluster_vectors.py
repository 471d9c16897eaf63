# SPDX-License-Identifier: Apache-2.0
"""Clustering the vectors of sequences, and the ways to drop or pool them."""

import importlib

import numpy as np
import pytest
import torch

from clusterplug.functional import chamfer_similarity, cluster_vectors, pool_vectors, spaced_vectors, tail_vectors


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lengths(*counts, width):
    return torch.arange(width) < torch.tensor(counts)[:, None]


def as_set(vectors, mask):
    return sorted(map(tuple, vectors[mask].tolist()))


def plain(x, mask, k, num_iters=20):
    """The method as a loop over sequences, vectors and clusters, in float64."""
    rows, there = torch.zeros(len(x), k, x.shape[-1], dtype=torch.float64), torch.zeros(len(x), k, dtype=torch.bool)
    for b in range(len(x)):
        points = x[b][mask[b]].double()
        if len(points) <= k:
            rows[b, : len(points)], there[b, : len(points)] = points, True
            continue
        centers = points[:1]
        while len(centers) < k:
            centers = torch.cat([centers, points[torch.cdist(points, centers).amin(1).argmax()][None]])
        for _ in range(num_iters):
            labels = torch.cdist(points, centers).argmin(1)
            centers = torch.stack(
                [points[labels == j].mean(0) if (labels == j).any() else centers[j] for j in range(k)]
            )
        for j in range(k):
            there[b, j] = bool((labels == j).any())
            rows[b, j] = centers[j] if there[b, j] else 0
    return rows, there


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_as_a_plain_loop(dtype):
    x = randn(5, 23, 6, seed=1).to(dtype)
    mask = randn(5, 23, seed=2) > -0.6
    mask[3] = False
    mask[4, 3:] = False
    centers, there = cluster_vectors(x, mask, 4)
    expected, expected_there = plain(x, mask, 4)
    assert centers.dtype == dtype
    assert torch.equal(there, expected_there)
    tolerance = max(1e-5, 2 * torch.finfo(dtype).eps)
    torch.testing.assert_close(centers.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_case_by_hand():
    x = torch.tensor([[[0.0], [1.0], [10.0], [12.0], [99.0]]])
    centers, there, labels = cluster_vectors(x, lengths(4, width=5), 2, return_labels=True)
    assert centers.flatten().tolist() == [0.5, 11.0]
    assert labels.tolist() == [[0, 0, 1, 1, -1]]
    assert there.all()
    # a half of 4 and of 3 valid vectors: 2 clusters and 1
    centers, there = cluster_vectors(x.expand(2, -1, -1), lengths(4, 3, width=5), ratio=0.5)
    torch.testing.assert_close(centers[..., 0], torch.tensor([[0.5, 11.0], [11 / 3, 0.0]]))
    assert there.tolist() == [[True, True], [True, False]]


def test_short_sequences_pass_and_one_cluster_is_the_mean():
    q, d = randn(3, 7, 4), randn(3, 9, 4, seed=1)
    q_mask, d_mask = lengths(7, 4, 1, width=7), randn(3, 9, seed=2) > -0.5
    for k in (7, 12):
        centers, there = cluster_vectors(q, q_mask, k)
        assert centers.shape == (3, k, 4)
        assert as_set(centers, there) == as_set(q, q_mask)
        assert centers[~there].eq(0).all()
        scores = chamfer_similarity(centers, there, d, d_mask)
        torch.testing.assert_close(scores, chamfer_similarity(q, q_mask, d, d_mask))
    assert as_set(*cluster_vectors(q, q_mask, ratio=1.0)) == as_set(q, q_mask)
    means = [cluster_vectors(x, mask, 1) for x, mask in ((q, q_mask), (d, d_mask))]
    expected = [torch.stack([row[valid].mean(0) for row, valid in zip(*each)]) for each in ((q, q_mask), (d, d_mask))]
    torch.testing.assert_close(means[0][0][:, 0], expected[0])
    scores = chamfer_similarity(*means[0], *means[1])
    torch.testing.assert_close(scores, expected[0] @ expected[1].mT)


def test_twice_the_vectors_make_the_same_clusters():
    x = randn(2, 20, 5)
    once = cluster_vectors(x, None, 6)
    for twice in (x.repeat_interleave(2, 1), x.repeat(1, 2, 1)):
        found = cluster_vectors(twice, None, 6)
        torch.testing.assert_close(found[0], once[0])
        assert torch.equal(found[1], once[1])
    d = randn(3, 8, 5, seed=1)
    torch.testing.assert_close(
        chamfer_similarity(x.repeat(1, 2, 1), None, d, None), 2 * chamfer_similarity(x, None, d, None)
    )
    # fewer different vectors than clusters: one cluster each, the others are masked
    centers, there = cluster_vectors(randn(1, 3, 5).repeat_interleave(6, 1), None, 8)
    assert there.sum() == 3
    torch.testing.assert_close(centers[there], randn(1, 3, 5)[0], rtol=0, atol=1e-6)
    centers, there = cluster_vectors(torch.full((1, 20, 3), 0.1), None, 4)
    assert there.tolist() == [[True, False, False, False]]
    torch.testing.assert_close(centers[0, 0], torch.full((3,), 0.1))


def test_the_gradient_is_that_of_the_means():
    x = randn(2, 8, 2, dtype=torch.float64).requires_grad_()
    mask = lengths(8, 6, width=8)
    assert torch.autograd.gradcheck(lambda t: cluster_vectors(t, mask, 4)[0], (x,))
    centers, there, labels = cluster_vectors(x, mask, 4, return_labels=True)
    upstream = randn(*centers.shape, seed=3, dtype=torch.float64)
    (grad,) = torch.autograd.grad(centers, x, upstream)
    assert grad[~mask].eq(0).all()
    for b in range(2):
        for j in range(4):
            torch.testing.assert_close(grad[b][labels[b] == j].sum(0), upstream[b, j] * there[b, j])
    assert not labels.requires_grad
    x = randn(1, 6, 3)
    x[0, 4] = torch.nan
    x.requires_grad_()
    cluster_vectors(x, lengths(4, width=6), 2)[0].sum().backward()
    assert x.grad[0, :4].eq(x.grad[0, :4].clamp(min=0.1)).all()
    assert x.grad[0, 4:].eq(0).all()


def test_as_scikit_learn_from_given_centers():
    cluster = pytest.importorskip('sklearn.cluster', reason='needs scikit-learn')
    x, mask = randn(4, 60, 8), lengths(60, 45, 33, 12, width=60)
    init = x[:, :5]
    centers, _, labels = cluster_vectors(x, mask, 5, init=init, num_iters=100, return_labels=True)
    for b in range(4):
        points = x[b][mask[b]].double()
        model = cluster.KMeans(5, init=init[b].double().numpy(), n_init=1, tol=0, max_iter=100).fit(points.numpy())
        inertia = (points - centers[b][labels[b][mask[b]]].double()).square().sum()
        assert float(inertia) == pytest.approx(model.inertia_, rel=1e-5)
        np.testing.assert_array_equal(labels[b][mask[b]].numpy(), model.labels_)


def test_other_sequences_and_padding_change_nothing():
    x, mask = randn(40, 50, 8), lengths(*range(11, 51), width=50)
    centers, there, labels = cluster_vectors(x, mask, 6, return_labels=True)
    again = cluster_vectors(x, mask, 6, return_labels=True)
    assert all(torch.equal(a, b) for a, b in zip(again, (centers, there, labels)))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    moved = cluster_vectors(x[order], mask[order], 6, return_labels=True)
    assert torch.equal(moved[2], labels[order])
    torch.testing.assert_close(moved[0], centers[order], rtol=1e-6, atol=1e-6)
    padded = torch.cat([x, torch.full((40, 30, 8), torch.nan)], 1), torch.nn.functional.pad(mask, (0, 30))
    wide = cluster_vectors(*padded, 6, return_labels=True)
    assert torch.equal(wide[2][:, :50], labels)
    assert torch.equal(wide[1], there)
    torch.testing.assert_close(wide[0], centers, rtol=1e-6, atol=1e-6)
    shares = cluster_vectors(x, mask, ratio=0.29)[1].sum(1)
    assert shares.tolist() == [max(1, (29 * n) // 100) for n in range(11, 51)]


def test_random_starts_come_from_the_generator():
    x = randn(6, 40, 4)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second = (
        cluster_vectors(x, None, 5, init='k-means++', generator=torch.Generator().manual_seed(1))[0] for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(cluster_vectors(x, None, 5)[0], cluster_vectors(x, None, 5)[0])
    assert torch.equal(torch.get_rng_state(), state)
    other = cluster_vectors(x, None, 5, init='k-means++', generator=torch.Generator().manual_seed(2))[0]
    assert not torch.equal(first, other)


@pytest.mark.parametrize('change', [lambda x: x * 2.0**60, lambda x: x * 2.0**-60, lambda x: x + 3000])
def test_any_unit_and_offset(change):
    x = (randn(3, 40, 4) * 64).round() / 64  # so that the offset rounds nothing away
    labels = cluster_vectors(x, None, 5, return_labels=True)[2]
    changed = cluster_vectors(change(x), None, 5, return_labels=True)
    assert torch.equal(changed[2], labels)
    assert changed[0].isfinite().all()


def test_half_precision_neither_overflows_nor_follows_autocast():
    x = (randn(2, 30, 64) * 3e3).half()  # squares are beyond 65504
    centers = cluster_vectors(x, None, 4)[0]
    torch.testing.assert_close(centers, cluster_vectors(x.float(), None, 4)[0].half())
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(cluster_vectors(x, None, 4)[0], centers)
        assert torch.equal(chamfer_similarity(x, None, x, None), chamfer_similarity(x.float(), None, x.float(), None))


def test_devices_take_the_same_steps(monkeypatch):
    x, mask = randn(7, 30, 5), lengths(30, 20, 10, 4, 1, 0, 29, width=30)
    host = cluster_vectors(x, mask, 4, return_labels=True)
    for name in ('_vector_kmeans', 'cluster_vectors'):
        module = importlib.import_module(f'clusterplug.functional.tokens.{name}')
        monkeypatch.setattr(module, 'host_checks_allowed', lambda tensor: False)
    device = cluster_vectors(x, mask, 4, return_labels=True)
    for one, other in zip(host, device, strict=True):
        torch.testing.assert_close(one, other)
    x[0, 3] = torch.nan  # stays in its sequence
    torch.testing.assert_close(cluster_vectors(x, mask, 4)[0][1:], host[0][1:])


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(num_clusters=0), ValueError, 'num_clusters must be at least 1, got 0'),
        (dict(num_clusters=2.0), TypeError, 'num_clusters must be an int'),
        (dict(), ValueError, 'exactly one of num_clusters and ratio'),
        (dict(num_clusters=2, ratio=0.5), ValueError, 'exactly one of'),
        (dict(ratio=0.0), ValueError, 'ratio must be'),
        (dict(ratio=1.5), ValueError, 'ratio must be'),
        (dict(num_clusters=2, num_iters=0), ValueError, 'num_iters must be at least 1'),
        (dict(num_clusters=2, init='random'), ValueError, 'init must be one of'),
        (dict(num_clusters=2, init=torch.zeros(3, 4)), ValueError, 'init must have shape'),
        (dict(num_clusters=2, mask=torch.ones(2, 5)), TypeError, 'mask must be a bool'),
        (dict(num_clusters=2, mask=torch.ones(2, 4, dtype=torch.bool)), ValueError, 'mask must have shape'),
        (dict(num_clusters=2, x=torch.ones(2, 5, 4).long()), TypeError, 'floating'),
        (dict(num_clusters=2, x=torch.full((2, 5, 4), torch.nan)), ValueError, 'x must be finite'),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        cluster_vectors(options.pop('x', randn(2, 5, 4)), **options)


def test_all_masked_sequences_are_empty():
    x = torch.full((2, 6, 3), torch.nan)
    for made in (
        cluster_vectors(x, lengths(0, 0, width=6), 3), cluster_vectors(x, lengths(0, 0, width=6), ratio=0.5),
        tail_vectors(x, lengths(0, 0, width=6), 3), spaced_vectors(x, lengths(0, 0, width=6), 2),
        pool_vectors(x, lengths(0, 0, width=6), 2),
    ):  # fmt: skip
        assert made[0].eq(0).all()
        assert not made[1].any()


def test_tail_and_spacing():
    x = torch.arange(12.0).view(2, 6, 1)
    mask = torch.tensor([[True, False, True, True, True, False], [False, True, False, False, False, False]])
    vectors, there = tail_vectors(x, mask, 3)
    assert vectors[..., 0].tolist() == [[2, 3, 4], [7, 0, 0]]
    assert there.tolist() == [[True, True, True], [True, False, False]]
    assert tail_vectors(x, mask, 9)[0][0, :, 0].tolist() == [0, 2, 3, 4, 0, 0, 0, 0, 0]
    vectors, there = spaced_vectors(x, mask, 2)
    assert vectors[..., 0].tolist() == [[0, 3, 0], [7, 0, 0]]
    assert there.sum(1).tolist() == [2, 1]
    assert as_set(*spaced_vectors(x, mask, 1)) == as_set(x, mask)
    grad = torch.autograd.grad(tail_vectors(x.requires_grad_(), mask, 2)[0].sum(), x)[0]
    assert grad[..., 0].tolist() == [[0, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 0]]
    for call in (
        lambda: tail_vectors(x, mask, 0),
        lambda: spaced_vectors(x, mask, 0),
        lambda: pool_vectors(x, mask, 0),
    ):
        with pytest.raises(ValueError, match='must be at least 1, got 0'):
            call()


def pylate_pooling(x, pool_factor, protected):
    """What PyLate 1.6 does with one document, after its documentation."""
    hierarchy = pytest.importorskip('scipy.cluster.hierarchy', reason='needs scipy')
    pooled = x[protected:]
    number = max(len(pooled) // pool_factor, 1)
    if number >= len(pooled):
        return x
    apart = 1 - pooled @ pooled.mT
    upper = apart[tuple(torch.triu_indices(len(pooled), len(pooled), 1))]
    labels = torch.from_numpy(hierarchy.fcluster(hierarchy.linkage(upper.numpy(), 'ward'), number, 'maxclust'))
    return torch.cat([x[:protected], torch.stack([pooled[labels == each].mean(0) for each in labels.unique()])])


@pytest.mark.parametrize('pool_factor', [1, 2, 4, 100])
def test_pooling(pool_factor):
    x = torch.nn.functional.normalize(randn(3, 25, 16, dtype=torch.float64), dim=-1)
    mask = lengths(25, 10, 1, width=25)
    for metric in ('cosine', 'euclidean'):
        vectors, there = pool_vectors(x, mask, pool_factor, metric=metric)
        for b, length in enumerate((25, 10, 1)):
            others = max((length - 1) // pool_factor, 1) if length > 1 else 0
            assert there[b].sum() == 1 + others  # check of the card
            assert torch.equal(vectors[b, 0], x[b, 0])
            if metric == 'cosine':
                expected = pylate_pooling(x[b, :length], pool_factor, 1)
                got = as_set(vectors[b], there[b])
                np.testing.assert_allclose(got, sorted(map(tuple, expected.tolist())), atol=1e-9)
        if pool_factor == 1:
            torch.testing.assert_close(vectors, x * mask[..., None])
    assert pool_vectors(x, mask, 2, num_protected=3)[1].sum(1).tolist() == [3 + 11, 3 + 3, 1]
