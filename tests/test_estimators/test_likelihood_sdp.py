# SPDX-License-Identifier: Apache-2.0
"""LikelihoodSDP: the heterogeneous mixture of the card, guards, sketch, files, bad input."""

import importlib
import warnings

import numpy as np
import pytest
import torch

from clusterplug.estimators import KMeans, LikelihoodSDP
from clusterplug.estimators._gaussians import fit_gaussians
from clusterplug.functional import clustering_accuracy, likelihood_sdp


def mixture(seed, size=25):
    """Three Gaussians in 4 dimensions: a ball and two long ones across."""
    rng = np.random.default_rng(seed)
    covariances = [np.eye(4) * 0.15, np.diag([4, 0.2, 0.2, 0.2]), np.diag([0.2, 4, 0.2, 0.2])]
    means = [[0, 0, 0, 0], [2.2, 1.6, 0, 0], [1.6, -2.2, 0, 0]]
    points = [rng.multivariate_normal(m, c, size) for m, c in zip(means, covariances)]
    return np.concatenate(points), np.repeat(np.arange(3), size), np.stack(covariances)


def accuracy(y, labels):
    return clustering_accuracy(torch.as_tensor(y), torch.as_tensor(labels))


def two_lines(n=30):
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(n, 2)) * [4, 0.2], rng.normal(size=(n, 2)) * [4, 0.2] + [0, 2]
    return np.concatenate([one, two]), np.repeat([0, 1], n)


def test_long_clusters_that_k_means_cuts_across():
    X, y = two_lines()
    model = LikelihoodSDP(
        2, random_state=0, max_eigenvalue_ratio=1e4, init=(X[:, 1] + 0.3 * X[:, 0] > 1).astype(int)
    ).fit(X)
    assert accuracy(y, model.labels_) > 0.95
    assert accuracy(y, KMeans(2, random_state=0).fit_predict(X)) < 0.7
    assert model.converged_
    assert np.array_equal(model.predict(X), model.labels_)
    for k in range(2):
        own = X[model.labels_ == k]
        np.testing.assert_allclose(model.means_[k], own.mean(0))
        np.testing.assert_allclose(np.cov(own.T, bias=True), model.covariances_[k], rtol=0.05, atol=0.02)


@pytest.mark.slow
def test_heterogeneous_mixture():
    scores, known = [], []
    for seed in range(5):
        X, y, covariances = mixture(seed)
        scores.append(accuracy(y, LikelihoodSDP(3, random_state=0).fit_predict(X)))
        known.append(accuracy(y, LikelihoodSDP(3, covariances=covariances, random_state=0).fit_predict(X)))
    assert np.mean(scores) >= 0.91
    assert min(scores) >= 0.86
    assert np.mean(known) >= 0.94


def test_covariances_follow_the_relaxed_memberships(monkeypatch):
    module = importlib.import_module('clusterplug.estimators.likelihood_sdp')
    X, _, _ = mixture(0)
    calls = []

    def record(x, covariances, *, init, **options):
        result = likelihood_sdp(x, covariances, init=init, **options)
        calls.append((x, covariances, init, result.memberships))
        return result

    monkeypatch.setattr(module, 'likelihood_sdp', record)
    LikelihoodSDP(3, init='kmeans', max_iter=2, tol=3e-3, random_state=0).fit(X)
    (x, _, _, relaxed), (_, covariances, init, _) = calls
    rows = relaxed.sum(-1)
    assert ((rows > 0.05) & (rows < 0.95)).any()  # not a partition
    assert init is relaxed
    torch.testing.assert_close(covariances, fit_gaussians(x, relaxed, 3, 'full', 1e-4, 100.0)[1])


def test_rounds_go_on_while_memberships_between_0_and_1_change():
    X, y, _ = mixture(31)  # after some rounds the labels repeat once, and change again
    model = LikelihoodSDP(3, random_state=0).fit(X)
    assert model.converged_
    assert model.n_iter_ < 20
    assert model.objective_ > 122  # 118.8 where they first repeat
    assert accuracy(y, model.labels_) > 0.88


def test_covariances_of_relaxed_memberships_by_pairs():
    generator = torch.Generator().manual_seed(0)
    x = 1e3 + torch.randn(9, 2, generator=generator, dtype=torch.float64)
    factors = torch.rand(3, 9, 2, generator=generator, dtype=torch.float64)
    z = factors @ factors.mT
    difference = x[:, None] - x[None]
    expected = torch.einsum('kij,ijd,ije->kde', z, difference, difference) / (2 * z.sum((1, 2))[:, None, None])
    for each in (z, factors):
        means, covariances, shares = fit_gaussians(x, each, 3, 'full', 0.0, 1e12)
        torch.testing.assert_close(covariances, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(shares, z.sum((1, 2)) / z.sum())
        torch.testing.assert_close(means, z.sum(-1) @ x / z.sum((1, 2))[:, None])
    labels = torch.arange(9) % 3
    member = torch.nn.functional.one_hot(labels, 3).double()
    exact = (member / member.sum(0)).T[:, :, None] * member.T[:, None]
    for one, other in zip(
        fit_gaussians(x, exact, 3, 'diag', 1e-3, 50.0), fit_gaussians(x, labels, 3, 'diag', 1e-3, 50.0), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_covariances_of_exact_clusters_and_guards():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(40) % 2
    means, covariances, weights = fit_gaussians(x, labels, 2, 'full', 0.0, 1e12)
    for k in range(2):
        own = x[labels == k].numpy()
        np.testing.assert_allclose(covariances[k], np.cov(own.T, bias=True), rtol=0, atol=1e-12)
        np.testing.assert_allclose(means[k], own.mean(0))
    assert weights.tolist() == [0.5, 0.5]
    # membership form of the same: (X' diag(Z 1) X - X' Z X) / m
    member = (labels == 0).double()
    z = member[:, None] * member / member.sum()
    lifted = (x.T @ torch.diag(z.sum(1)) @ x - x.T @ z @ x) / z.sum()
    torch.testing.assert_close(covariances[0], lifted, rtol=0, atol=1e-12)
    flat = torch.cat([x[:, :2], torch.zeros(40, 1)], 1)
    few = torch.tensor([0] * 38 + [1, 2])
    _, guarded, _ = fit_gaussians(flat, few, 4, 'full', 1e-4, 100.0)
    values = torch.linalg.eigvalsh(guarded)
    assert values.min() > 0
    assert float(values.max() / values.min()) <= 100 * (1 + 1e-9)
    for kind in ('diag', 'spherical', 'tied'):
        _, each, _ = fit_gaussians(x, labels, 2, kind, 0.0, 1e12)
        if kind == 'tied':
            torch.testing.assert_close(each[0], each[1])
        else:
            assert (each[0] - torch.diag(each[0].diagonal())).abs().max() < 1e-12


def test_unit_and_origin_do_not_matter_and_kinds_of_arrays():
    X, _ = two_lines(12)
    plain = LikelihoodSDP(2, random_state=0).fit(X)
    moved = LikelihoodSDP(2, random_state=0).fit(1e6 * X + 1e8)
    assert np.array_equal(moved.labels_, plain.labels_)
    assert moved.objective_ == pytest.approx(plain.objective_ - 24 * 2 * 2 * np.log(1e6), rel=1e-4)
    tensor = LikelihoodSDP(2, random_state=0).fit(torch.from_numpy(X).float())
    assert isinstance(tensor.labels_, torch.Tensor)
    assert tensor.means_.dtype == torch.float32


def test_sketch_labels_all(tmp_path):
    X, y, _ = mixture(0, 60)
    model = LikelihoodSDP(3, sketch_size=60, random_state=0).fit(X)
    assert model.labels_.shape == (180,)
    assert accuracy(y, model.labels_) > 0.7
    model.save(tmp_path / 'model.npz')
    again = LikelihoodSDP.load(tmp_path / 'model.npz')
    assert np.array_equal(again.predict(X), model.predict(X))
    assert again.get_params() == model.get_params()


def test_factorized_solver_needs_no_square_matrix():
    rng = np.random.default_rng(0)
    y = np.arange(1000) % 2
    X = rng.normal(size=(1000, 2)) * np.where(y[:, None] == 0, [1, 0.2], [0.2, 1]) + 4 * y[:, None]
    model = LikelihoodSDP(2, solver='factorized', tol=1e-2, solver_iter=20, max_iter=2, init=y, random_state=0).fit(X)
    assert accuracy(y, model.labels_) > 0.99


def test_one_cluster_and_duplicates():
    X = np.repeat([[0.0, 0.0], [3.0, 1.0]], 6, axis=0)
    assert (LikelihoodSDP(1).fit_predict(X) == 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert accuracy(np.repeat([0, 1], 6), LikelihoodSDP(2, random_state=0).fit_predict(X)) == 1


def test_further_starts_leave_a_poor_one():
    X, y = two_lines()
    crossed = (X[:, 0] > np.median(X[:, 0])).astype(int)  # cuts both lines in the middle
    one = LikelihoodSDP(2, init=crossed, max_iter=1, random_state=0).fit(X)
    more = LikelihoodSDP(2, init=crossed, n_init=3, random_state=0).fit(X)
    assert more.objective_ >= one.objective_
    assert accuracy(y, more.labels_) == 1
    again = LikelihoodSDP(2, init=crossed, n_init=3, random_state=0).fit(X)
    assert np.array_equal(again.labels_, more.labels_)
    assert again.objective_ == more.objective_


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'n_clusters': 0}, 'n_clusters must be'),
        ({'n_init': 0}, 'n_init must be'),
        ({'n_clusters': 12}, 'n_samples=12 should be > n_clusters=12'),
        ({'covariance_type': 'round'}, 'covariance_type must be one of'),
        ({'solver': 'sdpnal'}, 'solver must be one of'),
        ({'init': 'random'}, 'init must be one of'),
        ({'init': np.zeros(3, int)}, 'init must be labels'),
        ({'ridge': -1}, 'ridge must be'),
        ({'max_eigenvalue_ratio': 0.5}, 'max_eigenvalue_ratio must be'),
        ({'sketch_size': 2}, 'sketch_size must be'),
        ({'covariances': np.eye(2)}, 'covariances must be'),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        LikelihoodSDP(**{'n_clusters': 2, **options}).fit(two_lines(6)[0])


def test_scikit_learn_conventions():
    checks = pytest.importorskip('sklearn.utils.estimator_checks')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = LikelihoodSDP(3, init='kmeans', max_iter=1, solver_iter=60, tol=0.01, random_state=0)
        results = checks.check_estimator(model, on_skip=None, on_fail=None)
    failed = {each['check_name']: each['exception'] for each in results if each['status'] == 'failed'}
    assert not failed, failed
