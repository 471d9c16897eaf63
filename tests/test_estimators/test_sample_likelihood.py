# SPDX-License-Identifier: Apache-2.0
"""Likelihoods from labels and features, their weights, files, order of samples, bad input."""

import numpy as np
import pytest
import torch

from clusterplug.estimators import SampleLikelihood


def blobs(sizes=(90, 10), dims=8, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    centers = 20 * np.eye(len(sizes), dims)
    return centers[labels] + rng.normal(size=(len(labels), dims)), labels


def test_from_labels_by_hand():
    labels = np.array([5, 5, 5, 5, 2, 2, -1, -1, 9])
    known = SampleLikelihood.from_labels(labels)
    assert known.likelihood_.tolist() == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert known.to_dict() == dict(enumerate(known.likelihood_.tolist()))
    as_one = SampleLikelihood.from_labels(labels, noise='cluster')
    assert as_one.likelihood_.tolist() == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]
    weights = known.weights(0.5, 5)
    assert weights[0] == pytest.approx(1 / 3)
    assert weights[-1] == pytest.approx((0.5 + 0.75**5) / 1.5)
    assert known.weights(0.5, 5, normalize='mean').mean() == pytest.approx(1)
    assert (known.weights(0.5, 0) == 1).all()


def test_tensors_give_tensors():
    known = SampleLikelihood.from_labels(torch.tensor([0, 0, 1]), ids=['a', 'b', 'c'])
    torch.testing.assert_close(known.weights(0.0, 1.0), torch.tensor([0.0, 0.0, 0.5]))
    assert known.to_dict() == {'a': 1.0, 'b': 1.0, 'c': 0.5}


def test_noise_that_is_the_largest_cluster_stays_rare():
    labels = np.r_[np.full(98, -1), 0, 0]
    assert SampleLikelihood.from_labels(labels).weights(0.5, 5)[0] > 0.34
    assert SampleLikelihood.from_labels(labels, noise='cluster').weights(0.5, 5)[0] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    'options', [dict(cluster='hdbscan'), dict(cluster='dbscan', eps=4.0), dict(cluster='kmeans', n_clusters=2)]
)
def test_density_of_two_blobs(options):
    x, labels = blobs((900, 100))
    found = SampleLikelihood(**options).fit(x)
    sure = found.labels_ >= 0
    assert sure.mean() > 0.8
    if options['cluster'] != 'hdbscan':  # which leaves some out as noise
        assert np.allclose(found.likelihood_[sure], np.where(labels == 0, 1, 1 / 9)[sure], atol=0.01)
        assert np.allclose(found.weights(0.5, 5)[sure], np.where(labels == 0, 0.3333, 0.703)[sure], atol=0.01)
    weights = found.weights(0.5, 5)
    assert weights[labels == 1].mean() > 1.5 * weights[labels == 0].mean()


def test_neighbor_density_scores_new_samples():
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(size=(300, 4)), 12 + 3 * rng.normal(size=(30, 4))]
    found = SampleLikelihood('knn', 'none').fit(x)
    assert found.likelihood_[:300].mean() > 3 * found.likelihood_[300:].mean()
    assert ((found.likelihood_ > 0) & (found.likelihood_ <= 1)).all()
    new = found.score_samples(np.array([[0.0] * 4, [100.0] * 4]))
    assert new[0] > 0.7
    assert new[1] < 0.05
    clusters = SampleLikelihood('kmeans', n_clusters=2).fit(x)
    assert np.allclose(clusters.score_samples(x), clusters.likelihood_)


@pytest.mark.parametrize(
    'options',
    [
        dict(cluster='hdbscan'),
        dict(cluster='dbscan', eps=4.0),
        dict(cluster='kmeans', n_clusters=5),
        dict(cluster='knn'),
        dict(cluster='dbscan', reducer='tsne', eps=3.0, perplexity=10, max_iter=250),
    ],
)
def test_the_order_of_the_samples_does_not_matter(options):
    x, _ = blobs((80, 20, 8))
    ids = [f'{i:03}' for i in range(len(x))]
    first = SampleLikelihood(**options).fit(x, ids=ids).to_dict()
    order = np.random.default_rng(1).permutation(len(x))
    assert SampleLikelihood(**options).fit(x[order], ids=[ids[i] for i in order]).to_dict() == first


def test_file(tmp_path):
    known = SampleLikelihood.from_labels([0, 0, 1, -1], ids=['a', 'b', 'c', 'd'])
    known.save(tmp_path / 'p.json', key='token', about=dict(embedder='resnet'))
    again = SampleLikelihood.load(tmp_path / 'p.json')
    assert again.to_dict() == known.to_dict()
    assert again.key_ == 'token'
    assert np.array_equal(again.weights(0.5, 5), known.weights(0.5, 5))
    (tmp_path / 'other.json').write_text('{"a": 1}')
    with pytest.raises(ValueError, match='no likelihoods'):
        SampleLikelihood.load(tmp_path / 'other.json')
    (tmp_path / 'cut.json').write_text((tmp_path / 'p.json').read_text()[:-9])
    with pytest.raises(ValueError, match='not JSON'):
        SampleLikelihood.load(tmp_path / 'cut.json')


def test_weighted_least_squares_has_the_closed_form():
    """900 samples of slope 1, 100 of slope -1: weighted by (0.5, 5) the common slope is 0.620, not 0.8."""
    x = torch.linspace(-1, 1, 100, dtype=torch.float64)
    x = torch.cat([x.repeat(9), x])
    y = torch.cat([x[:900], -x[900:]])
    known = SampleLikelihood.from_labels(np.r_[np.zeros(900, int), np.ones(100, int)])
    weights = torch.from_numpy(known.weights(0.5, 5))
    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([theta], 0.5)
    generator = torch.Generator().manual_seed(0)
    for step in range(400):
        rows = torch.randint(0, 1000, (128,), generator=generator)
        optimizer.param_groups[0]['lr'] = 6 / (step + 8)
        optimizer.zero_grad()
        (weights[rows] * (theta * x[rows] - y[rows]).square()).mean().backward()
        optimizer.step()
    expected = (900 * weights[0] - 100 * weights[-1]) / (900 * weights[0] + 100 * weights[-1])
    assert expected == pytest.approx(0.620, abs=1e-3)
    assert theta.item() == pytest.approx(0.620, abs=0.02)


@pytest.mark.slow
def test_digits_with_a_small_radius_are_mostly_noise():
    """The pathology of the card: most images are noise; they must not get the lowest weight."""
    datasets = pytest.importorskip('sklearn.datasets')
    x, y = datasets.load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    keep = np.concatenate([rng.permutation(np.flatnonzero(y == c))[: max(8, 178 - 19 * c)] for c in range(10)])
    options = dict(cluster='dbscan', reducer='tsne', perplexity=30, min_samples=10, max_iter=300)
    as_cluster = SampleLikelihood(eps=0.5, noise='cluster', **options).fit(x[keep])
    assert (as_cluster.labels_ == -1).mean() > 0.8
    assert as_cluster.weights(0.5, 5)[as_cluster.labels_ == -1].max() == pytest.approx(1 / 3)
    rare = SampleLikelihood(eps=0.5, **options).fit(x[keep])
    assert rare.weights(0.5, 5)[rare.labels_ == -1].min() > rare.weights(0.5, 5)[rare.labels_ >= 0].min()


def test_bad_input():
    x, _ = blobs()
    with pytest.raises(ValueError, match='finite'):
        SampleLikelihood().fit(np.where(x > 3, np.nan, x))
    with pytest.raises(ValueError, match='all samples are noise'):
        SampleLikelihood('dbscan', eps=1e-3).fit(x)
    with pytest.raises(ValueError, match='all samples are noise'):
        SampleLikelihood.from_labels([-1, -1], noise='cluster')
    with pytest.warns(UserWarning, match='same likelihood'):
        SampleLikelihood.from_labels([0, 0, 1, 1])
    with pytest.raises(ValueError, match='ids'):
        SampleLikelihood.from_labels([0, 0, 1], ids=['a', 'b', 'a'])
    with pytest.raises(ValueError, match='cluster'):
        SampleLikelihood('optics').fit(x)
    with pytest.raises(ValueError, match='noise'):
        SampleLikelihood.from_labels([0, 1], noise='rare')
    with pytest.raises(ValueError, match='labels'):
        SampleLikelihood.from_labels([0.5, 1.0])
    with pytest.raises(ValueError, match='normalize'):
        SampleLikelihood.from_labels([0, 0, 1]).weights(0.5, 5, normalize='sum')
    with pytest.raises(ValueError, match='not fitted'):
        SampleLikelihood().weights(0.5, 5)
    with pytest.raises(ValueError, match='n_clusters'):
        SampleLikelihood('kmeans', n_clusters=1000).fit(x)
    with pytest.raises(ValueError, match='scored'):
        SampleLikelihood().fit(x).score_samples(x)
