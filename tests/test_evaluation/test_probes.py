# SPDX-License-Identifier: Apache-2.0
"""Probes against scikit-learn and loops, and as metrics with and without splits."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip('mmengine')

from clusterplug.evaluation import (
    LinearProbe,
    NearestNeighborProbe,
    effective_rank,
    linear_probe,
    nearest_neighbor_probe,
)


def blobs(number=150, classes=3, seed=0, spread=1.5):
    g = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, 6, generator=torch.Generator().manual_seed(99)) * 2
    y = torch.arange(number) % classes
    return centers[y] + spread * torch.randn(number, 6, generator=g), y


def test_linear_probe_is_logistic_regression():
    linear_model = pytest.importorskip('sklearn.linear_model')
    (x, y), (u, v) = blobs(), blobs(seed=1)
    x, u = x.double(), u.double()
    found = linear_probe(x, y, u, v, penalty=0.01, max_iter=500)
    mean, scale = x.mean(0), x.std(0, unbiased=False)
    oracle = linear_model.LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-8, max_iter=2000)
    oracle.fit(((x - mean) / scale).numpy(), y.numpy())
    expected = oracle.predict(((u - mean) / scale).numpy())
    assert (found.predictions.numpy() == expected).mean() > 0.99
    assert found.accuracy == pytest.approx((expected == v.numpy()).mean(), abs=0.01)


def test_neighbors_equal_a_loop():
    (x, y), (u, v) = blobs(40), blobs(20, seed=1)
    found = nearest_neighbor_probe(x, y, u, v, num_neighbors=5, temperature=0.2, chunk_size=7)
    for n, row in enumerate(u):
        cosine = [float(torch.cosine_similarity(row, other, dim=0)) for other in x]
        votes = [0.0] * 3
        for i in sorted(range(40), key=lambda i: -cosine[i])[:5]:
            votes[int(y[i])] += math.exp(cosine[i] / 0.2)
        assert int(found.predictions[n]) == int(np.argmax(votes))


def test_class_mean_counts_every_class_the_same():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    u = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.0], [1.0, 0.3]])
    found = nearest_neighbor_probe(x, torch.tensor([0, 1]), u, torch.tensor([0, 0, 0, 1]), num_neighbors=1)
    assert found.accuracy == 0.75
    assert found.class_mean == 0.5


def test_effective_rank():
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    assert 7.5 < effective_rank(x) <= 8
    assert effective_rank(x[:, :1] @ torch.ones(1, 8)) == pytest.approx(1)
    assert effective_rank(torch.ones(5, 3)) == pytest.approx(1)
    with pytest.raises(ValueError, match='x must be finite'):
        effective_rank(torch.full((3, 3), torch.nan))


def test_constant_columns_and_unseen_classes():
    (x, y), (u, v) = blobs(), blobs(seed=1)
    x, u = torch.cat([x, torch.full((150, 1), 7.0)], 1), torch.cat([u, torch.full((150, 1), 7.0)], 1)
    assert linear_probe(x, y, u, v).accuracy > 0.7
    assert linear_probe(x, y, u, torch.full_like(v, 9)).accuracy == 0


def samples(x, y, **more):
    return [dict(features=row[None], gt_label=int(label), **more) for row, label in zip(x, y)]


@pytest.mark.parametrize('metric', [LinearProbe, NearestNeighborProbe])
def test_metrics_use_the_splits(metric):
    (x, y), (u, v) = blobs(), blobs(seed=1)
    probe = metric()
    probe.process({}, samples(x, y, split='train'))
    probe.process({}, samples(u, v, split='test'))
    found = probe.evaluate(300)
    plain = (linear_probe if metric is LinearProbe else nearest_neighbor_probe)(x, y, u, v)
    assert found[f'{metric.default_prefix}/accuracy'] == pytest.approx(100 * plain.accuracy)


def test_metrics_split_whole_scans_and_drop_unknown_labels():
    x, y = blobs(200)
    y[::10] = 255
    x[3] = math.nan
    probe = NearestNeighborProbe(ignore_index=255, max_rows=60)
    probe.process({}, [dict(features=x[n : n + 50], labels=y[n : n + 50]) for n in range(0, 200, 50)])
    train_x, train_y, test_x, test_y = probe._parts(probe.results)
    assert len(train_x) == len(test_x) == 60
    assert int(torch.cat([train_y, test_y]).max()) == 2
    scan_of = {tuple(row.tolist()): n // 50 for n, row in enumerate(x)}
    assert not {scan_of[tuple(r.tolist())] for r in train_x} & {scan_of[tuple(r.tolist())] for r in test_x}
    again = NearestNeighborProbe(ignore_index=255, max_rows=60)._parts(probe.results)
    assert all(torch.equal(a, b) for a, b in zip(again, (train_x, train_y, test_x, test_y)))
    single = NearestNeighborProbe()
    single.process({}, [dict(features=x[10:60], labels=torch.zeros(50, dtype=torch.int64))])
    assert single.evaluate(1)['knn_probe/accuracy'] == 100


def test_bad_input():
    x, y = blobs(20)
    with pytest.raises(ValueError, match='one width'):
        linear_probe(x, y, x[:, :3], y)
    with pytest.raises(ValueError, match='integer classes from 0'):
        nearest_neighbor_probe(x, y - 1, x, y)
    with pytest.raises(ValueError, match='must be finite'):
        linear_probe(x * math.nan, y, x, y)
    with pytest.raises(ValueError, match=r'train_y \(N,\)'):
        linear_probe(x, y[:3], x, y)
    with pytest.raises(ValueError, match='train_ratio'):
        LinearProbe(train_ratio=1.0)
    with pytest.raises(ValueError, match='needs features and labels'):
        LinearProbe().process({}, [dict(features=x)])
    probe = LinearProbe()
    probe.process({}, samples(x, y, split='train'))
    with pytest.raises(ValueError, match='with both'):
        probe.evaluate(20)
