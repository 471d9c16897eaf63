# SPDX-License-Identifier: Apache-2.0
"""DeepSubspaceClustering: independent subspaces, self-stopping, new samples, files, resume, bad input."""

import numpy as np
import pytest
import torch

from clusterplug.estimators import DeepSubspaceClustering
from clusterplug.estimators.deep.subspace_clustering import loss_settled
from clusterplug.functional import clustering_accuracy


def subspaces(seed=0, noise=0.02, num_clusters=5, size=40, dim=3, width=64):
    rng = np.random.default_rng(seed)
    frames = [np.linalg.qr(rng.normal(size=(width, dim)))[0] for _ in range(num_clusters)]
    x = np.concatenate([rng.normal(size=(size, dim)) @ frame.T for frame in frames])
    return x + noise * rng.normal(size=x.shape), np.repeat(np.arange(num_clusters), size)


def accuracy(y, labels):
    return clustering_accuracy(torch.as_tensor(y), torch.as_tensor(labels))


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_independent_subspaces(seed):
    X, y = subspaces(seed)
    model = DeepSubspaceClustering(5, 3, pretrain_epochs=20, random_state=0).fit(X)
    assert accuracy(y, model.labels_) >= 0.99
    new, wanted = subspaces(seed)
    assert accuracy(wanted, model.predict(new + 0.01)) >= 0.98
    assert model.coef_.shape == model.affinity_.shape == (200, 200)
    assert np.abs(np.diag(model.coef_)).max() == 0
    np.testing.assert_allclose(model.affinity_, model.affinity_.T)
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1, rtol=1e-5)
    # a shuffled order gives the same partition
    order = np.random.default_rng(0).permutation(len(X))
    shuffled = DeepSubspaceClustering(5, 3, pretrain_epochs=20, random_state=0).fit_predict(X[order])
    assert accuracy(model.labels_[order], shuffled) >= 0.98


def test_gradient_form_and_structured_norm():
    X, y = subspaces(0)
    plain = DeepSubspaceClustering(5, 3, solver='gradient', epochs=40, pretrain_epochs=30, random_state=0).fit(X)
    assert accuracy(y, plain.labels_) >= 0.98
    model = DeepSubspaceClustering(
        5, 3, solver='gradient', epochs=40, pretrain_epochs=30, structured_epochs=10, random_state=0
    ).fit(X)
    assert accuracy(y, model.labels_) >= accuracy(y, plain.labels_)
    across = y[:, None] != y
    assert np.abs(model.coef_)[across].sum() < np.abs(plain.coef_)[across].sum()


def test_stop_rule():
    decay = [0.9**t for t in range(40)]
    assert not any(loss_settled(decay[:n], 0.05) for n in range(40))
    slow = [0.999**t for t in range(40)]
    stopped = [loss_settled(slow[:n], 0.005) for n in range(40)]
    assert stopped.index(True) == 11  # the first with ten epochs to compare
    assert loss_settled([1.0] * 11, 1e-9)
    X, _ = subspaces(0, size=10)
    model = DeepSubspaceClustering(5, 3, pretrain_epochs=400, stop_tol=0.05, random_state=0).fit(X)
    assert 10 < len(model.history_) < 400
    assert 'label_change' not in model.history_[-1]


def test_save_load_resume(tmp_path):
    X, _ = subspaces(0, size=12)
    options = {'solver': 'gradient', 'epochs': 6, 'pretrain_epochs': 4, 'random_state': 0}
    model = DeepSubspaceClustering(5, 3, **options).fit(X)
    model.save(tmp_path / 'model.npz')
    again = DeepSubspaceClustering.load(tmp_path / 'model.npz')
    assert np.array_equal(again.predict(X), model.predict(X))
    np.testing.assert_array_equal(again.coef_, model.coef_)

    file = str(tmp_path / 'checkpoint.npz')
    stopped = DeepSubspaceClustering(5, 3, **{**options, 'epochs': 3}, checkpoint=file, checkpoint_every=1)
    stopped._finish = lambda data: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(X)
    resumed = DeepSubspaceClustering(5, 3, **options, checkpoint=file).fit(X, resume=True)
    np.testing.assert_allclose(resumed.coef_, model.coef_, rtol=1e-5, atol=1e-8)


def test_images_and_tensors():
    X, _ = subspaces(0, size=10, width=64)
    images = torch.from_numpy(X).float().view(-1, 1, 8, 8)
    model = DeepSubspaceClustering(5, 3, encoder='cnn', channels=(4, 4), pretrain_epochs=3, random_state=0)
    labels = model.fit_predict(images)
    assert isinstance(labels, torch.Tensor)
    assert labels.shape == (50,)
    assert model.predict(images[:4]).shape == (4,)


def test_zero_rows_duplicates_and_one_sample():
    X, _ = subspaces(0, size=10)
    X[3] = 0
    X[4] = X[5]
    model = DeepSubspaceClustering(5, 3, pretrain_epochs=2, random_state=0).fit(X)
    assert np.isfinite(model.coef_).all()
    for solver in ('closed_form', 'gradient'):
        assert DeepSubspaceClustering(1, 1, solver=solver, pretrain_epochs=1).fit(X[:1]).labels_.tolist() == [0]


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'n_clusters': 60}, 'n_clusters'),
        ({'subspace_dim': 0}, 'subspace_dim must be'),
        ({'subspace_dim': 50}, 'n_samples=50 should be > subspace_dim=50'),
        ({'solver': 'admm'}, 'solver must be one of'),
        ({'structured_epochs': 5}, "needs solver='gradient'"),
        ({'ridge': 0}, 'ridge must be'),
        ({'stop_tol': 2}, 'stop_tol must be'),
        ({'encoder': 'vgg'}, 'encoder must be'),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        DeepSubspaceClustering(**{'n_clusters': 2, **options}).fit(subspaces(0, size=10)[0])


def test_too_many_samples_say_so():
    model = DeepSubspaceClustering(2)
    with pytest.raises(ValueError, match='bytes'):
        model._check_enough(200_000)
    with pytest.raises(ValueError, match=r'NaN|inf'):
        model.fit(np.full((20, 3), np.nan))
