# SPDX-License-Identifier: Apache-2.0
"""MiniBatchKMeans: one algorithm with the function, scikit-learn's stopping rules, exact contracts, going on."""

import pickle

import numpy as np
import pytest
import torch

from clusterplug import functional
from clusterplug.estimators import KMeans, MiniBatchKMeans


def blobs(num_samples=6000, dim=8, groups=12, spread=1.0, seed=0):
    generator = np.random.default_rng(seed)
    centers = 10 * generator.normal(size=(groups, dim))
    labels = generator.integers(0, groups, num_samples)
    return (centers[labels] + spread * generator.normal(size=(num_samples, dim))).astype(np.float32)


@pytest.mark.parametrize('X', [blobs(), blobs(dim=16, groups=1), blobs(4000, 3, 12, 0.1, seed=3)])
def test_no_worse_than_kmeans_and_stops(X):
    ours, full = 0.0, 0.0
    for seed in range(3):
        model = MiniBatchKMeans(12, random_state=seed, batch_size=256).fit(X)
        ours, full = ours + model.inertia_, full + KMeans(12, random_state=seed).fit(X).inertia_
        assert model.n_iter_ < 40
        assert model.n_iter_ == -(-model.n_steps_ // -(-len(X) // 256))
    assert ours <= 1.03 * full


def test_partial_fit_is_the_function():
    X = torch.from_numpy(blobs())
    weights = torch.rand(len(X), generator=torch.Generator().manual_seed(0))
    model = MiniBatchKMeans(12, init=X[:12].numpy(), reassignment_ratio=0.0)
    state = functional.minibatch_kmeans_start(X, 12, init=X[:12])
    for part, mass in zip(X.split(500), weights.split(500)):
        model.partial_fit(part, sample_weight=mass)
        state = functional.minibatch_kmeans_update(state, part, weights=mass, move_ratio=0.0).state
    assert torch.equal(model.cluster_centers_, state.centers)
    assert torch.equal(model.counts_, state.counts)
    assert (model.n_steps_, model.n_since_move_) == (state.num_steps, state.num_points)


def test_fit_of_one_batch_a_pass_is_the_function():
    X = torch.from_numpy(blobs(900))
    model = MiniBatchKMeans(5, init=X[:5].numpy(), batch_size=900, max_iter=4, random_state=0, max_no_improvement=None)
    state = functional.minibatch_kmeans_start(X, 5, init=X[:5])
    for _ in range(4):
        state = functional.minibatch_kmeans_update(state, X).state
    torch.testing.assert_close(model.fit(X).cluster_centers_, state.centers, rtol=1e-5, atol=1e-5)
    assert model.counts_.sum() == 4 * 900  # counts go on from pass to pass


def test_each_stopping_rule():
    X = blobs(2000, spread=15.0)
    options = {'n_clusters': 9, 'batch_size': 100, 'random_state': 1, 'max_iter': 6}
    never = MiniBatchKMeans(max_no_improvement=None, **options).fit(X)
    assert (never.n_iter_, never.n_steps_) == (6, 120)
    soon = MiniBatchKMeans(max_no_improvement=2, **options).fit(X)
    later = MiniBatchKMeans(max_no_improvement=15, **options).fit(X)
    assert soon.n_steps_ < later.n_steps_
    moved = MiniBatchKMeans(max_no_improvement=None, tol=1e-1, **options).fit(X)
    assert moved.n_steps_ < 120
    assert MiniBatchKMeans(max_no_improvement=None, tol=1e-9, **options).fit(X).n_steps_ == 120


@pytest.mark.parametrize('kind', [np.float64, np.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('model', [KMeans(7, random_state=0), MiniBatchKMeans(7, random_state=0, batch_size=128)])
def test_labels_and_inertia_are_those_of_predict_and_score(model, kind, weighted):
    X = blobs(700, 5, 30, seed=2) + 20
    X = torch.from_numpy(X).to(kind) if isinstance(kind, torch.dtype) else X.astype(kind)
    weights = np.random.default_rng(0).uniform(0, 90_000, 700) if weighted else None  # beyond fp16
    fits = [model.fit]
    if isinstance(model, MiniBatchKMeans):
        fits += [model.partial_fit, model.partial_fit]
    for fit in fits:
        fit(X, sample_weight=weights)
        assert np.array_equal(model.labels_, model.predict(X))
        assert model.inertia_ == -model.score(X, sample_weight=weights)
        assert np.isfinite(model.inertia_)


@pytest.mark.parametrize('convert', [np.asarray, torch.as_tensor, lambda X: torch.as_tensor(X).bfloat16()])
def test_going_on_after_a_file_or_a_pickle_is_going_on(convert, tmp_path):
    parts = [convert(part) for part in np.split(blobs(3000), 10)]
    # centers that are given nothing, and rare ones, move at random
    first = MiniBatchKMeans(12, random_state=5, reassignment_ratio=0.6)
    for part in parts[:4]:
        first.partial_fit(part)
    first.save(tmp_path / 'model.npz')
    others = [MiniBatchKMeans.load(tmp_path / 'model.npz'), pickle.loads(pickle.dumps(first))]
    for part in parts[4:]:
        for model in (first, *others):
            model.partial_fit(part)
    for other in others:
        assert np.array_equal(other.labels_, first.labels_)
        assert torch.equal(torch.as_tensor(other.cluster_centers_), torch.as_tensor(first.cluster_centers_))
        assert (other.n_steps_, other.inertia_) == (10, first.inertia_)


def test_partial_fit_goes_on_from_fit():
    X = blobs()
    model = MiniBatchKMeans(12, random_state=0).fit(X)
    steps, counts = model.n_steps_, model.counts_.sum()
    model.partial_fit(X[:100])
    assert (model.n_steps_, model.counts_.sum()) == (steps + 1, counts + 100)


def test_half_precision_stream_does_not_stand_still():
    X = torch.from_numpy(blobs(4000, 3, 1) + 100).bfloat16()
    model = MiniBatchKMeans(1, init=X[:1].float().numpy())
    for part in X.split(10):
        model.partial_fit(part)
    torch.testing.assert_close(model.running_centers_[0], X.float().mean(0), rtol=1e-4, atol=1e-3)
    assert model.cluster_centers_.dtype == torch.bfloat16
    model.partial_fit(X[:10].float())
    assert not hasattr(model, 'running_centers_')


def test_weights_choose_what_is_clustered():
    X = blobs(3000, 2, 3, 0.1)
    far = np.concatenate([X, X + 1000])
    weights = np.repeat([1.0, 0.0], 3000)
    model = MiniBatchKMeans(3, random_state=0, batch_size=100).fit(far, sample_weight=weights)
    assert model.inertia_ == pytest.approx(KMeans(3, random_state=0, n_init=3).fit(X).inertia_, rel=0.03)
    alone = np.zeros(6000)
    alone[:4] = 1  # fewer samples of weight than a batch
    model = MiniBatchKMeans(3, random_state=0, batch_size=50).fit(far, sample_weight=alone)
    assert np.isfinite(model.cluster_centers_).all()
    assert model.n_iter_ < 30


def test_random_moves():
    x = torch.cat([torch.randn(200, 2), torch.full((1, 2), 1e4)])
    rare = functional.MiniBatchKMeansState(
        torch.tensor([[0.0, 0.0], [5e4, 5e4]]), torch.tensor([5000.0, 0]).double(), 0, 5
    )
    far = functional.minibatch_kmeans_update(rare, x).state
    assert far.centers[1, 0] > 9000  # the outlier
    near = [
        functional.minibatch_kmeans_update(rare, x, generator=torch.Generator().manual_seed(seed)).state.centers[1]
        for seed in range(20)
    ]
    assert sum(bool(each[0] > 9000) for each in near) <= 2
    assert len({float(each[0]) for each in near}) > 15
    assert all(bool(((each - x).abs().sum(1) < 0.02).any()) for each in near)


@pytest.mark.parametrize(
    ('name', 'value'),
    [('batch_size', 0), ('batch_size', 2.5), ('max_no_improvement', 0), ('max_no_improvement', True),
     ('n_init', 'auto'), ('reassignment_ratio', 1), ('reassignment_ratio', -0.1), ('init_size', 2), ('tol', -1),
     ('tol', float('nan'))],
)  # fmt: skip
def test_bad_arguments_are_named(name, value):
    for fit in (MiniBatchKMeans(3, **{name: value}).fit, MiniBatchKMeans(3, **{name: value}).partial_fit):
        with pytest.raises(ValueError, match=name):
            fit(blobs(100))
