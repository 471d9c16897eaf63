# SPDX-License-Identifier: Apache-2.0
"""SubspaceDiffusion and MoLRG: the phase transition, equal to k-subspaces, resume, files, odd data."""

import math
import warnings

import numpy as np
import pytest
import torch

from clusterplug.datasets import MoLRG
from clusterplug.estimators import SubspaceDiffusion
from clusterplug.functional import clustering_accuracy, k_subspaces, linear_assignment, low_rank_posterior_mean


def projector_error(bases, true):
    """Largest Frobenius distance of projectors, best matched."""
    first, second = ([b.double() @ b.double().T for b in each] for each in (map(torch.as_tensor, bases), true))
    cost = torch.stack([torch.stack([(p - q).norm() for q in second]) for p in first])
    rows, columns = linear_assignment(cost)
    return float(cost[rows, columns].max())


def fit(data, **options):
    dim = data.bases[0].shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        return SubspaceDiffusion(len(data.bases), dim, **{'random_state': 0, 'epochs': 20} | options).fit(data.x)


@pytest.mark.parametrize(
    ('count', 'expected'), [(2, 2.72), (4, 1.96), (5, 1.42), (6, 0.46), (7, 0.30), (12, 0.10), (60, 0.03)]
)
def test_one_subspace_needs_as_many_points_as_dimensions(count, expected):
    """n = 48, d = 6, noise 0.01, 20 draws: PCA, the denoiser's optimum."""
    errors = []
    for seed in range(20):
        data = MoLRG(48, [6], count, noise=0.01, seed=seed, dtype=torch.float64)
        moments = data.x.T @ data.x
        errors.append(projector_error([torch.linalg.eigh(moments)[1][:, -6:]], data.bases))
    mean = sum(errors) / 20
    # draws of N = d = 6 differ a lot: the smallest of six singular values decides
    assert abs(mean - expected) < (0.25 if count == 6 else 0.1)
    if count < 6:
        # about the bound, less what directions drawn by noise alone happen to share
        assert mean > 0.9 * math.sqrt(2 * (6 - count))


@pytest.mark.parametrize('soft', [True, False])
def test_transition_of_two_subspaces(soft):
    errors = {}
    for count in (4, 60):
        data = MoLRG(48, [6, 6], count, noise=0.01, seed=3)
        model = fit(data, soft=soft, epochs=50)
        errors[count] = projector_error(model.subspaces_, data.bases)
    assert errors[4] > math.sqrt(2 * 2) - 0.1
    assert errors[60] < 0.06
    assert clustering_accuracy(data.labels, model.labels_) == 1.0


@pytest.mark.slow
def test_random_start_reaches_k_subspaces():
    """The equivalence in practice: Adam over the soft denoiser, best of three starts by its loss."""
    data = MoLRG(48, [6, 6], 60, noise=0.01, seed=0)
    models = [
        fit(data, init='random', orthogonal=True, epochs=300, num_noises=2, lr=0.03, random_state=s) for s in range(3)
    ]
    best = min(models, key=lambda model: model.loss_)
    found = k_subspaces(data.x.double(), 2, 6, num_restarts=30, generator=torch.Generator().manual_seed(0))
    assert projector_error(best.subspaces_, data.bases) < 0.05
    assert projector_error(best.subspaces_, found.bases) < 0.05
    assert best.loss_curve_[-1] < best.loss_curve_[0]


def test_results_and_kinds_of_arrays():
    data = MoLRG(20, [3, 3], 30, noise=0.05, seed=1)
    model = fit(data)
    assert isinstance(model.labels_, torch.Tensor)
    assert model.subspaces_.shape == (2, 20, 3)
    assert torch.equal(model.predict(data.x), model.labels_)
    assert model.noise_ == pytest.approx(0.05, rel=0.15)
    assert len(model.loss_curve_) == 20
    assert math.isfinite(model.loss_)
    distances = model.transform(data.x)
    own = torch.as_tensor(model.subspaces_)[0]
    expected = (data.x - data.x @ own @ own.T).norm(dim=1)
    torch.testing.assert_close(distances[:, 0], expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(distances.argmin(1), model.labels_)
    shares = model.predict_proba(data.x)
    torch.testing.assert_close(shares.sum(1), torch.ones(60))
    assert torch.equal(shares.argmax(1), model.labels_)
    as_numpy = SubspaceDiffusion(2, 3, random_state=0, epochs=20).fit(data.x.numpy())
    assert isinstance(as_numpy.labels_, np.ndarray)
    assert np.array_equal(as_numpy.labels_, model.labels_.numpy())
    # any scale of X gives the same labels
    scaled = SubspaceDiffusion(2, 3, random_state=0, epochs=20).fit(data.x.double().numpy() * 1e-12)
    assert np.array_equal(scaled.labels_, as_numpy.labels_)


def test_k_subspaces_alone_and_seeds():
    data = MoLRG(20, [3, 3], 30, noise=0.05, seed=1)
    alone = fit(data, epochs=0)
    assert projector_error(alone.subspaces_, data.bases) < 0.2
    assert alone.loss_curve_ == []
    before = torch.get_rng_state()
    one, two = fit(data), fit(data)
    assert torch.equal(one.subspaces_, two.subspaces_)
    assert torch.equal(before, torch.get_rng_state())


def test_orthogonal_subspaces_stay_so():
    data = MoLRG(20, [3, 3], 30, noise=0.05, seed=1)
    first, second = fit(data, orthogonal=True).subspaces_
    assert (first.T @ second).abs().max() < 1e-5


def test_resume_and_files(tmp_path):
    data = MoLRG(20, [3, 3], 30, noise=0.05, seed=1)
    whole = fit(data)
    path = str(tmp_path / 'run.npz')
    partial = SubspaceDiffusion(2, 3, random_state=0, epochs=20, checkpoint=path, checkpoint_every=1)
    saved, calls = partial._write, []

    def interrupt(*args, **options):
        saved(*args, **options)
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt

    partial._write = interrupt
    with pytest.warns(UserWarning, match='was stopped'):
        partial.fit(data.x)
    del partial._write
    resumed = SubspaceDiffusion(2, 3, random_state=0, epochs=20, checkpoint=path).fit(data.x, resume=True)
    assert torch.equal(resumed.subspaces_, whole.subspaces_)
    assert resumed.loss_curve_ == whole.loss_curve_
    whole.save(tmp_path / 'model.npz')
    loaded = SubspaceDiffusion.load(tmp_path / 'model.npz')
    assert torch.equal(loaded.predict(data.x), whole.labels_)


def test_few_points_and_means_warn():
    data = MoLRG(20, [6, 6], 4, seed=1)
    with pytest.warns(UserWarning, match='fewer than dim=6'):
        SubspaceDiffusion(2, 6, epochs=2, random_state=0).fit(data.x)
    with pytest.warns(UserWarning, match='not centered'):
        SubspaceDiffusion(2, 2, epochs=2, random_state=0).fit(data.x + 3)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        SubspaceDiffusion(2, 3, epochs=2, random_state=0).fit(MoLRG(20, [3, 3], 30, seed=1).x)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(dim=30), 'dim must be at most the 20'),
        (dict(dim=11, orthogonal=True), 'orthogonal=True needs'),
        (dict(dim=0), 'dim must be'),
        (dict(init='kmeans'), 'init must be'),
        (dict(schedule='cosine'), 'schedule must be'),
        (dict(n_clusters=100), 'n_clusters'),
    ],
)
def test_bad_arguments(options, message):
    x = MoLRG(20, [3, 3], 30, seed=1).x
    with pytest.raises(ValueError, match=message):
        SubspaceDiffusion(**{'n_clusters': 2, 'dim': 3, 'random_state': 0} | options).fit(x)
    with pytest.raises(ValueError):
        SubspaceDiffusion(2, 3).fit(x * float('nan'))


def test_odd_data():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        same = SubspaceDiffusion(2, 1, epochs=3, random_state=0).fit(np.ones((6, 4)))
        zeros = SubspaceDiffusion(2, 1, epochs=3, random_state=0).fit(np.zeros((6, 4)))
        whole = SubspaceDiffusion(1, 4, epochs=3, random_state=0).fit(np.random.default_rng(0).normal(size=(9, 4)))
        one = SubspaceDiffusion(1, 1, epochs=3, random_state=0).fit(np.ones((1, 4)))
    for model in (same, zeros, whole, one):
        assert np.isfinite(model.subspaces_).all()
        assert np.isfinite(model.loss_)


def test_generator_of_the_data():
    data = MoLRG(24, [4, 2], [10, 3], noise=0.0, shape=(2, 3, 4), seed=5, dtype=torch.float64)
    assert len(data) == 13
    assert data.labels.tolist() == [0] * 10 + [1] * 3
    x, label = data[12]
    assert x.shape == (2, 3, 4)
    assert label == 1
    joined = torch.cat(data.bases, 1)
    torch.testing.assert_close(joined.T @ joined, torch.eye(6).double(), rtol=0, atol=1e-12)
    for basis, part in zip(data.bases, data.x.split([10, 3])):
        torch.testing.assert_close(part @ basis @ basis.T, part)
    # its own denoiser gives the points back at hardly any noise
    clean = low_rank_posterior_mean(data.x, data.bases, signal=1.0, noise=1e-5)
    torch.testing.assert_close(clean, data.x, rtol=1e-8, atol=1e-8)
    many = MoLRG(4, [2], 200_000, noise=0.5, means=torch.full((1, 4), 3.0), seed=0)
    torch.testing.assert_close(many.x.mean(0), torch.full((4,), 3.0), rtol=0, atol=0.02)
    covariance = many.bases[0] @ many.bases[0].T + 0.25 * torch.eye(4)
    torch.testing.assert_close(torch.cov(many.x.T), covariance, rtol=0, atol=0.02)
    again = MoLRG(24, [4, 2], [10, 3], shape=(2, 3, 4), seed=5, dtype=torch.float64)
    assert torch.equal(again.x, data.x)


@pytest.mark.parametrize(
    ('arguments', 'options', 'message'),
    [
        ((6, [4, 4], 3), {}, 'orthogonal components need'),
        ((6, 4, 3), {}, 'dims must hold'),
        ((6, [2], [3, 3]), {}, 'num_per_class'),
        ((6, [2], 3), dict(noise=-1.0), 'noise must be'),
        ((6, [2], 3), dict(shape=(2, 2)), 'shape must hold'),
        ((6, [2], 3), dict(means=torch.zeros(2, 6)), 'means must have'),
    ],
)
def test_bad_data(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        MoLRG(*arguments, **options)
