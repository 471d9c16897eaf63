# SPDX-License-Identifier: Apache-2.0
"""Novel classes: seeds, digits, spectral widths, projection, hidden-class search, number of clusters, bad input."""

import numpy as np
import pytest
import torch

from clusterplug.estimators import (
    HiddenClassCV,
    NovelClassKMeans,
    NovelClassSpectral,
    ProjectionBasedNCD,
    _novel,
    estimate_n_clusters,
)
from clusterplug.functional import affinity, clustering_accuracy, kmeans, minimum_spanning_scale


def blobs(classes=5, each=15, spread=0.3, seed=0):
    random = np.random.default_rng(seed)
    x = np.repeat(np.eye(classes) * 5, each, axis=0) + spread * random.normal(size=(classes * each, classes))
    return x, np.repeat(np.arange(classes), each)


def hide(y, known):
    return np.where(np.isin(y, known), y, -1)


def accuracy(truth, found):
    return clustering_accuracy(torch.as_tensor(np.asarray(truth)), torch.as_tensor(np.asarray(found)))


ALL = [
    NovelClassKMeans(3, random_state=0), NovelClassKMeans(3, power=2, random_state=0),
    NovelClassSpectral(3, random_state=0), NovelClassSpectral(3, n_neighbors=20, random_state=0),
    ProjectionBasedNCD(3, epochs=100, random_state=0),
]  # fmt: skip


@pytest.mark.parametrize('model', ALL, ids=str)
@pytest.mark.parametrize('convert', [np.asarray, torch.as_tensor])
def test_finds_separated_classes(model, convert):
    x, y = blobs()
    given = hide(y, [0, 3])
    found = model.fit(convert(x), convert(given)).labels_
    assert isinstance(found, type(convert(x)))
    found = np.asarray(found)
    assert (found[given >= 0] == given[given >= 0]).all()
    assert set(found[given < 0]) == {4, 5, 6}  # numbered after the largest known class
    assert accuracy(y[given < 0], found[given < 0]) == 1.0
    again = np.asarray(type(model)(**model.get_params()).fit_predict(convert(x), convert(given)))
    np.testing.assert_array_equal(again, found)
    if hasattr(model, 'predict'):
        np.testing.assert_array_equal(np.asarray(model.predict(convert(x)))[given < 0], found[given < 0])


def test_seeds_never_repeat_a_known_center_and_are_k_means_plus_plus_without():
    x = torch.tensor([[0.0], [0.0], [0.0], [4.0]])
    known = torch.tensor([[0.0]])
    for seed in range(20):
        seeds = _novel._seeds(x, 1, known, 1, 1, torch.Generator().manual_seed(seed))
        assert float(seeds) == 4.0
    # without known classes: first uniform, then in proportion to the squared distance
    x = torch.tensor([[0.0], [1.0], [3.0]])
    generator = torch.Generator().manual_seed(0)
    seeds = _novel._seeds(x, 2, x[:0], 2, 30_000, generator).squeeze(-1)
    first = torch.stack([(seeds[:, 0] == value).double().mean() for value in (0, 1, 3)])
    torch.testing.assert_close(first, torch.full((3,), 1 / 3).double(), atol=0.02, rtol=0)
    after = seeds[seeds[:, 0] == 0, 1]
    assert float((after == 3).double().mean()) == pytest.approx(0.9, abs=0.02)
    after = _novel._seeds(x, 2, x[:0], 1, 30_000, generator).squeeze(-1)
    assert float((after[after[:, 0] == 0, 1] == 3).double().mean()) == pytest.approx(0.75, abs=0.02)


def test_kmeans_starts_keep_away_from_fixed_centers():
    x, y = (torch.as_tensor(each) for each in blobs(3))
    fixed = x[y == 0].mean(0, keepdim=True)
    novel = x[y > 0]
    for init in ('kkz', 'k-means++'):
        result = kmeans(novel.expand(4, -1, -1), 2, init=init, fixed=fixed, generator=torch.Generator().manual_seed(0))
        assert result.centers.shape == (4, 2, 3)
        assert accuracy(y[y > 0], result.labels[0]) == 1.0
    line = torch.tensor([[0.0], [0.1], [5.0], [9.0]])
    assert kmeans(line, 1, init='kkz', fixed=line[3:], num_iters=1).labels.tolist() == [0] * 4
    from clusterplug.functional.kmeans.kmeans_init import kkz_indices

    chosen = kkz_indices(line[None], torch.zeros(1, 1, 1), None, 1, torch.tensor([[[9.0]]]))
    assert chosen.tolist() == [[0]]  # without it, 9 has the largest norm
    with pytest.raises(ValueError, match='fixed must be None where init'):
        kmeans(line, 1, init=line[:1], fixed=line[:1])
    with pytest.raises(ValueError, match='fixed must have shape'):
        kmeans(line, 1, fixed=torch.zeros(1, 2))
    with pytest.raises(ValueError, match='fixed must be finite'):
        kmeans(line, 1, fixed=torch.full((1, 1), float('nan')))


def test_spanning_scale():
    csgraph = pytest.importorskip('scipy.sparse.csgraph')
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    longest = csgraph.minimum_spanning_tree(torch.cdist(x, x).numpy()).max()
    sigma = minimum_spanning_scale(x, 0.3)
    assert float((-(longest**2) / (2 * sigma**2)).exp()) == pytest.approx(0.3)
    batch = torch.stack([x, 2 * x, torch.cat([x[:30], x[:30]])])
    found = minimum_spanning_scale(batch, 0.3)
    torch.testing.assert_close(found[1], 2 * sigma)
    torch.testing.assert_close(found[2], minimum_spanning_scale(x[:30], 0.3))  # repeated points change nothing
    torch.testing.assert_close(
        affinity(3 * x, sigma=float(minimum_spanning_scale(3 * x, 0.3))), affinity(x, sigma=float(sigma))
    )
    assert minimum_spanning_scale(torch.ones(4, 2), 0.5) == 0
    for bad in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match='similarity must be'):
            minimum_spanning_scale(x, bad)
    with pytest.raises(ValueError, match='at least 2 points'):
        minimum_spanning_scale(x[:1], 0.5)


def digits(seed, known=(2, 1, 9, 8, 7)):
    datasets = pytest.importorskip('sklearn.datasets')
    x, y = datasets.load_digits(return_X_y=True)
    x, order = x[:, x.std(0) > 0], np.random.default_rng(seed).permutation(len(x))
    train, test = order[:1200], order[1200:]
    mean, scale = x[train].mean(0), x[train].std(0) + 1e-9
    novel = ~np.isin(y[test], known)
    return (x[train] - mean) / scale, hide(y[train], known), ((x[test] - mean) / scale)[novel], y[test][novel]


def test_digits_k_means_as_published():
    found = {1: [], 2: []}
    for seed in range(4):
        x, y, test, truth = digits(seed)
        for power, values in found.items():
            values.append(accuracy(truth, NovelClassKMeans(5, power=power, random_state=seed).fit(x, y).predict(test)))
    assert np.mean(found[1]) > 0.92
    assert np.mean(found[1]) > np.mean(found[2]) + 0.02


@pytest.mark.slow
def test_digits_projection_as_published():
    found, numbers = [], []
    for seed in range(1):
        x, y, test, truth = digits(seed)
        options = {'lr': 8.756e-4, 'dropout': 0.086, 'latent_dim': 58, 'random_state': seed}
        model = ProjectionBasedNCD(5, **options).fit(x, y)
        found.append(accuracy(truth, model.predict(test)))
        numbers.append(estimate_n_clusters(model.transform(x[y < 0]), range(2, 9), n_init=1))
    assert np.mean(found) > 0.9
    assert all(number in (4, 5, 6) for number in numbers)


def test_terms_of_the_projection_reach_only_their_parts():
    from clusterplug.estimators.deep.networks import initialize
    from clusterplug.estimators.projection_ncd import _loss, _Network

    x, targets = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, -1, -1] * 2)
    for weight, idle in ((1.0, 'output'), (0.0, 'classifier')):
        network = _Network(5, 3, 2, 0.0)
        initialize(network, torch.Generator().manual_seed(0))
        _loss(network, x, targets, weight).backward()
        assert getattr(network, idle).weight.grad is None
        assert network.latent.weight.grad.abs().sum() > 0
    network.zero_grad()
    loss = _loss(network, x, torch.full((8,), -1), 0.5)  # a batch without known samples
    loss.backward()
    assert torch.isfinite(loss)


def test_projection_draws_nothing_from_the_global_generator():
    x, y = blobs()
    before = torch.get_rng_state()
    model = ProjectionBasedNCD(3, epochs=2, random_state=0).fit(x, hide(y, [0, 1]))
    assert torch.equal(torch.get_rng_state(), before)
    z = model.transform(x)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    constant = np.concatenate([x, np.full((len(x), 1), 7.7)], 1)
    assert np.isfinite(
        ProjectionBasedNCD(3, epochs=2, random_state=0).fit(constant, hide(y, [0])).transform(constant)
    ).all()


def test_search_hides_known_classes():
    x, y = blobs(7)
    given = hide(y, [0, 1, 2, 3, 4])
    seen = []

    class Watched(NovelClassKMeans):
        def fit(self, X, y=None):
            seen.append((self.n_clusters, sorted({int(each) for each in y})))
            return super().fit(X, y)

    search = HiddenClassCV(Watched(2, random_state=0), {'power': [1, 2]}, n_iter=None, n_folds=2, random_state=0)
    search.fit(x, given)
    assert search.best_score_ == 1.0
    assert len(seen) == 5  # two folds, two sets of arguments, one refit
    for (count, labels), fold in zip(seen, [*search.folds_, *search.folds_], strict=False):
        assert count == len(fold) + 2
        assert not set(labels) & set(fold.tolist())
    assert next(set(part.tolist()) for part in search.folds_).isdisjoint(search.folds_[1].tolist())
    assert search.cv_results_['rank_test_score'].tolist() == [1, 2]
    assert len(search.cv_results_['params']) == 2
    for name in search.best_params_:
        assert search.cv_results_[f'param_{name}'].tolist() == [each[name] for each in search.cv_results_['params']]
    assert accuracy(y[given < 0], np.asarray(search.best_estimator_.labels_)[given < 0]) == 1.0
    assert search.predict(x[given < 0]).shape == (30,)
    stats = pytest.importorskip('scipy.stats')
    space = {'tol': stats.loguniform(1e-6, 1e-2), 'n_init': [1, 3]}
    draws = [
        HiddenClassCV(NovelClassKMeans(2, random_state=0), space, n_iter=3, n_folds=2, random_state=1, refit=False)
        .fit(x, given).cv_results_['params'] for _ in range(2)
    ]  # fmt: skip
    assert draws[0] == draws[1]


def test_number_of_clusters():
    x, _ = blobs(3, each=30)
    score = pytest.importorskip('sklearn.metrics').silhouette_score
    best, scores = estimate_n_clusters(x, range(2, 7), n_init=1, return_scores=True)
    assert best == 3
    assert estimate_n_clusters(torch.as_tensor(x), criterion='calinski_harabasz', k_range=range(2, 6)) == 3
    generator = torch.Generator().manual_seed(0)
    for k in range(2, 7):
        labels = kmeans(torch.as_tensor(x)[None], k, generator=generator).labels[0]
        assert scores[k] == pytest.approx(score(x, labels.numpy()), abs=1e-9)
    assert NovelClassKMeans('auto', random_state=0).fit(x).n_clusters_ == 3
    for bad, message in (([1], 'k_range must be'), ([90], 'k_range must be'), ([], 'at least one')):
        with pytest.raises(ValueError, match=message):
            estimate_n_clusters(x, bad)
    with pytest.raises(ValueError, match='real numbers'):
        estimate_n_clusters(x.astype(str))
    with pytest.raises(ValueError, match='at least 3 samples'):
        estimate_n_clusters(x[:2])
    with pytest.raises(ValueError, match='finite'):
        estimate_n_clusters(np.full((9, 2), np.nan))


@pytest.mark.parametrize('model', ALL, ids=str)
def test_an_offset_costs_no_digits(model):
    x, y = blobs()
    y = hide(y, [0, 1])
    plain = model.fit(x, y).labels_
    far = model.fit(np.round(x * 2**10) + 2.0**40, y)  # as times in nanoseconds: fp32 holds none of the spread
    assert accuracy(plain, far.labels_) == 1.0
    if hasattr(model, 'predict'):
        novel = y < 0
        np.testing.assert_array_equal(far.predict((np.round(x * 2**10) + 2.0**40)[novel]), far.labels_[novel])
    whole = torch.as_tensor(np.round(x * 2**10) + 2.0**40).long()
    np.testing.assert_array_equal(model.fit(whole, torch.as_tensor(y)).labels_.numpy(), far.labels_)


@pytest.mark.parametrize('model', ALL, ids=str)
def test_the_default_type_and_inference_mode_change_nothing(model):
    x, y = blobs()
    y = hide(y, [0, 1])
    expected = model.fit(x, y).labels_
    with torch.inference_mode():
        np.testing.assert_array_equal(model.fit(torch.as_tensor(x), torch.as_tensor(y)).labels_.numpy(), expected)
    torch.set_default_dtype(torch.float64)
    try:
        np.testing.assert_array_equal(model.fit(x, y).labels_, expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('model', ALL, ids=str)
def test_bad_labels(model):
    x, y = blobs()
    for bad, message in (
        (y, 'no unlabeled rows'), (hide(y, [0]).astype(float), 'one integer'), (y[1:], 'one integer'),
        (hide(y, [0]).astype(str), 'one integer'), (hide(y, [0]).astype(object), 'one integer'),
        (hide(y, [0]) - 1, '>= 0, or -1'), (np.where(np.arange(len(y)) < 2, -1, y), 'as many unlabeled samples'),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            model.fit(x, bad)
    with pytest.raises(ValueError, match=r'[Ii]nput|finite'):
        model.fit(np.where(np.arange(x.size).reshape(x.shape) == 7, np.nan, x), hide(y, [0]))
    one_row = np.where(np.arange(len(y)) == 0, 0, hide(y, [3]))  # a known class of one row
    assert np.asarray(model.fit(x, one_row).labels_)[0] == 0


@pytest.mark.parametrize(('model', 'message'), [
    (NovelClassKMeans(0), 'n_clusters must be'), (NovelClassKMeans(2, power=3), 'power must be'),
    (NovelClassKMeans(2, n_init=0), 'n_init must be'), (NovelClassSpectral(2, similarity=1.5), 'similarity must be'),
    (NovelClassSpectral('auto'), 'n_components must be'), (ProjectionBasedNCD(2, weight=2.0), 'weight must be'),
    (ProjectionBasedNCD(2, dropout=1.0), 'dropout must be'), (ProjectionBasedNCD(2, epochs=0), 'epochs must be'),
])  # fmt: skip
def test_bad_options(model, message):
    x, y = blobs()
    with pytest.raises(ValueError, match=message):
        model.fit(x, hide(y, [0]))


def test_bad_searches():
    x, y = blobs()
    model = NovelClassKMeans(2, random_state=0)
    for search, labels, message in (
        (HiddenClassCV(model, {'power': [1]}), hide(y, [0]), 'at least 2 known classes'),
        (HiddenClassCV(model, {'power': [1]}, n_folds=4), hide(y, [0, 1]), 'n_folds must be at most'),
        (HiddenClassCV(model, {'gamma': [1]}, n_folds=2), hide(y, [0, 1]), 'must name arguments'),
        (HiddenClassCV(model, {'power': []}, n_folds=2), hide(y, [0, 1]), 'at least one value'),
        (HiddenClassCV(model, {'power': [1]}, n_folds=2, refit=False), hide(y, [0, 1]) + 0.5, 'one integer'),
        (HiddenClassCV(model, {'power': [1]}, n_folds=2), None, 'requires y'),
        (HiddenClassCV(model, {'power': [1]}, n_folds=2, scoring='f1'), hide(y, [0, 1]), 'scoring must be'),
        (HiddenClassCV(NovelClassKMeans('auto'), {'power': [1]}, n_folds=2), hide(y, [0, 1]), 'a number as n_clusters'),
    ):
        with pytest.raises(ValueError, match=message):
            search.fit(x, labels)
    with pytest.raises(ValueError, match='known classes where weight'):
        ProjectionBasedNCD(2).fit(x)
    with pytest.raises(ValueError, match='repeats'):
        NovelClassSpectral(1).fit(np.ones((9, 2)))
