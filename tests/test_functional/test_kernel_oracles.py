# SPDX-License-Identifier: Apache-2.0
"""Kernels against other libraries on random, duplicate, collinear, far, equal, single and masked points."""

import importlib
import warnings

import numpy as np
import pytest
import torch

from clusterplug.functional import nearest_center, spectral_clustering
from clusterplug.functional.kmeans import kmeans
from clusterplug.functional.transport import sinkhorn
from clusterplug.functional.transport._sinkhorn_scaling import MIN_ENTRIES

KINDS = ['random', 'duplicate', 'collinear', 'offset', 'equal', 'one', 'masked']


def points_of(kind, num_points=60, dim=4):
    """Return points (N, D) and a mask (N,) or None; masked points hold NaN."""
    x = torch.randn(num_points, dim, generator=torch.Generator().manual_seed(KINDS.index(kind)))
    if kind == 'duplicate':
        x = x[:30].repeat(2, 1)
    elif kind == 'collinear':
        x = x[:, :1] * torch.arange(1.0, dim + 1)
    elif kind == 'offset':
        x = x + 4096.0
    elif kind == 'equal':
        x = torch.full_like(x, 2.5)
    elif kind == 'one':
        x = x[:1]
    elif kind == 'masked':
        mask = torch.arange(num_points) % 3 != 0
        return x.masked_fill(~mask.unsqueeze(-1), float('nan')), mask
    return x, None


def kept(x, mask):
    return x if mask is None else x[mask]


@pytest.mark.parametrize('kind', KINDS)
def test_kmeans_is_as_good_as_faiss(kind):
    faiss = pytest.importorskip('faiss')
    x, mask = points_of(kind)
    num_clusters = min(5, len(x))
    start = kept(x, mask).unique(dim=0)[:num_clusters]
    if len(start) < num_clusters:  # equal points: all centers in one place
        start = start.expand(num_clusters, -1).contiguous()
    result = kmeans(x, num_clusters, init=start, num_iters=30, tol=0, mask=mask)
    model = faiss.Kmeans(x.shape[-1], num_clusters, niter=30, min_points_per_centroid=1)
    model.train(kept(x, mask).numpy(), init_centroids=start.numpy())
    theirs = nearest_center(kept(x, mask).double(), torch.from_numpy(model.centroids).double())[1].sum()
    # faiss does not center, so far from the origin its distances lose digits
    assert float(result.inertia) <= float(theirs) * (1 + 1e-4) + 1e-6
    if kind in ('random', 'collinear', 'masked'):
        torch.testing.assert_close(result.centers, torch.from_numpy(model.centroids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('form', ['log', 'scaling'])
def test_sinkhorn_equals_pot(kind, form):
    ot = pytest.importorskip('ot')
    x, mask = points_of(kind)
    valid = kept(x, mask)
    targets = valid[: min(7, len(valid))]
    cost = torch.cdist(valid.double(), targets.double())
    scores = torch.full((len(x), len(targets)), float('nan'), dtype=torch.float64)
    scores[slice(None) if mask is None else mask] = -cost
    plan = sinkhorn(scores, epsilon=0.5, num_iters=400, mask=mask, form=form)
    rows, cols = np.full(len(valid), 1 / len(valid)), np.full(len(targets), 1 / len(targets))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        theirs = ot.sinkhorn(rows, cols, cost.numpy(), 0.5, method='sinkhorn_log', numItermax=2000, stopThr=1e-12)
    torch.testing.assert_close(kept(plan, mask), torch.from_numpy(theirs), rtol=1e-4, atol=1e-8)
    if mask is not None:
        assert (plan[~mask] == 0).all()


@pytest.mark.parametrize('kind', ['random', 'duplicate', 'collinear', 'offset', 'equal', 'masked'])
def test_spectral_clustering_finds_what_scikit_learn_finds(kind):
    cluster, metrics = pytest.importorskip('sklearn.cluster'), pytest.importorskip('sklearn.metrics')
    noise, mask = points_of(kind)
    group = torch.arange(len(noise)) % 3
    x = noise + 20.0 * torch.eye(3, 4)[group]
    labels = spectral_clustering(x, 3, sigma='local', num_neighbors=8, mask=mask).labels
    model = cluster.SpectralClustering(3, affinity='rbf', gamma=0.05, random_state=0)
    theirs = model.fit_predict((kept(x, mask) - kept(x, mask).mean(0)).numpy())
    assert metrics.adjusted_rand_score(theirs, kept(labels, mask)) == 1.0


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('tol', [0, 1e-4])
@pytest.mark.parametrize('empty', [False, True])
def test_kept_scores_change_nothing(monkeypatch, masked, tol, empty):
    generator = torch.Generator().manual_seed(3)
    smooth = torch.randn(5, 150, 3, generator=generator) @ torch.randn(5, 3, 128, generator=generator)
    x = smooth + 0.1 * torch.randn(5, 150, 128, generator=generator)
    mask = torch.rand(5, 150, generator=generator) > 0.3 if masked else None
    start = x[:, :20].clone()
    if empty:
        start[:, -4:] = 300.0
    options = {'init': start, 'num_iters': 30, 'tol': tol, 'mask': mask}
    result = kmeans(x, 20, **options)
    monkeypatch.setattr(importlib.import_module('clusterplug.functional.kmeans._assign'), 'KEPT_COORDINATES', 1 << 40)
    plain = kmeans(x, 20, **options)
    assert torch.equal(result.labels, plain.labels)
    assert torch.equal(result.num_iters, plain.num_iters)
    torch.testing.assert_close(result.centers, plain.centers, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.inertia, plain.inertia, rtol=1e-5, atol=0)


def test_many_small_transport_problems_take_the_scaling_form_where_it_is_safe():
    scores = torch.rand(20, 60, 30, generator=torch.Generator().manual_seed(0))
    assert scores.numel() >= MIN_ENTRIES
    auto = sinkhorn(scores, epsilon=0.05, num_iters=8)
    assert torch.equal(auto, sinkhorn(scores, epsilon=0.05, num_iters=8, form='scaling'))
    torch.testing.assert_close(auto, sinkhorn(scores, epsilon=0.05, num_iters=8, form='log'), rtol=1e-4, atol=1e-9)
    wide = 100 * scores
    assert torch.equal(sinkhorn(wide, epsilon=0.05, num_iters=8), sinkhorn(wide, epsilon=0.05, num_iters=8, form='log'))
