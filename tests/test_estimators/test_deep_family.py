# SPDX-License-Identifier: Apache-2.0
"""What every estimator of deep clustering does alike: files, copies, a fit that goes on, input that is refused."""

import numpy as np
import pytest
import torch

from clusterplug.estimators import (
    DEPICT,
    CoAssociation,
    DeepEmbeddedClustering,
    DeepSubspaceClustering,
    GraphContrastClustering,
    GraphDegreeLinkage,
    LikelihoodSDP,
    ManifoldClustering,
    MultiViewClustering,
    PerceptualClusterer,
)
from clusterplug.estimators.deep import DeepClusterer

RNG = np.random.default_rng(0)
TRUTH = np.arange(48) % 3
X = (5 * np.eye(3, 6)[TRUTH] + RNG.standard_normal((48, 6))).astype(np.float32)
PLANE = (np.eye(3, 2)[TRUTH] + 0.05 * RNG.standard_normal((48, 2))).astype(np.float32)
IMAGES = RNG.standard_normal((48, 1, 6, 6)).astype(np.float32) + 3 * (TRUTH - 1)[:, None, None, None]
VIEWS = [X, X[:, :4] + RNG.standard_normal((48, 4)).astype(np.float32)]
QUICK = {'random_state': 0, 'batch_size': 24}

# name: estimator, its data
FAMILY = {
    'multi-view, jule': (MultiViewClustering(3, period_epochs=3, n_neighbors=5, unrolling_rate=0.5, **QUICK), VIEWS),
    'multi-view, idec': (MultiViewClustering(3, 'idec', pretrain_epochs=3, epochs=3, tol=0, **QUICK), VIEWS),
    'embedded': (DeepEmbeddedClustering(3, pretrain_epochs=3, epochs=3, tol=0, **QUICK), X),
    'depict': (DEPICT(3, channels=(4, 4), pretrain_epochs=2, head_epochs=2, epochs=2, tol=0, **QUICK), IMAGES),
    'depict, streaming': (
        DEPICT(3, encoder='mlp', channels=(8,), target_momentum=0.9, pretrain_epochs=2, head_epochs=2, epochs=2, tol=0,
               **QUICK), X,
    ),
    'subspaces': (DeepSubspaceClustering(3, 2, pretrain_epochs=6, stop_tol=0, **QUICK), X),
    'subspaces, gradient': (
        DeepSubspaceClustering(3, 2, solver='gradient', pretrain_epochs=2, epochs=3, structured_epochs=2, stop_tol=0,
                               **QUICK), X,
    ),
    'manifolds': (ManifoldClustering(3, hidden=(16,), embed_dims=8, feature_dims=4, warmup_epochs=3, epochs=3,
                                     **QUICK), X),
    'graph': (GraphContrastClustering(3, hidden=(16,), embed_dims=4, pretrain_epochs=2, warmup_epochs=2, epochs=3,
                                      **QUICK), X),
    'linkage': (GraphDegreeLinkage(3, n_neighbors=5), X),
    'votes': (CoAssociation(3), VIEWS),
    'semidefinite': (LikelihoodSDP(3, covariance_type='spherical', solver_iter=60, tol=0.01, random_state=0), X),
    'perceptual': (PerceptualClusterer(), PLANE),
}  # fmt: skip
TRAINED = [name for name, (model, _) in FAMILY.items() if isinstance(model, DeepClusterer)]


def fresh(name, **changes):
    model, data = FAMILY[name]
    return type(model)(**{**model.get_params(deep=False), **changes}), data


def rows_of(data, rows):
    return [view[rows] for view in data] if isinstance(data, list) else data[rows]


def stop_at(model, step):
    """Let the fit be stopped, as by Ctrl-C, in the given step of the training."""
    plain, counts = model._make_phases, iter(range(10_000))

    def make_phases(x):
        phases = plain(x)
        for phase in phases:

            def limited(rows, generator, loss=phase.loss):
                if next(counts) == step:
                    raise KeyboardInterrupt
                return loss(rows, generator)

            phase.loss = limited
        return phases

    model._make_phases = make_phases


@pytest.mark.parametrize('name', FAMILY)
def test_files_and_copies(name, tmp_path):
    model, data = fresh(name)
    labels = model.fit_predict(data)
    assert labels.shape == (48,)
    model.save(tmp_path / 'model.npz')
    loaded = type(model).load(tmp_path / 'model.npz')
    assert np.array_equal(loaded.labels_, labels)
    assert {key: str(value) for key, value in loaded.get_params().items()} == {
        key: str(value) for key, value in model.get_params().items()
    }
    for method in ('predict', 'transform', 'predict_proba'):
        if hasattr(model, method):
            assert np.array_equal(getattr(loaded, method)(data), getattr(model, method)(data)), method
    clone = pytest.importorskip('sklearn.base').clone(model)
    assert not hasattr(clone, 'labels_')
    assert np.array_equal(clone.fit_predict(data), labels)
    other = next(each for each, _ in FAMILY.values() if type(each) is not type(model))
    with pytest.raises(ValueError, match=f'holds a {type(model).__name__}, not a {type(other).__name__}'):
        type(other).load(tmp_path / 'model.npz')


@pytest.mark.parametrize('name', TRAINED)
def test_a_fit_that_was_stopped_goes_on_with_the_same_numbers(name, tmp_path):
    expected, data = fresh(name)
    expected.fit(data)
    steps = 2 * len(expected.history_)  # or fewer: of some phases a step takes all samples
    for step in (1, steps // 2 - 1):
        path = str(tmp_path / f'{step}.npz')
        model, _ = fresh(name, checkpoint=path, checkpoint_every=1)
        stop_at(model, step)
        with pytest.warns(UserWarning, match='was stopped'):
            model.fit(data)
        assert model.partial_
        assert model.labels_.shape == (48,)
        again, _ = fresh(name, checkpoint=path)
        again.fit(data, resume=True)
        assert not again.partial_
        assert again.history_ == expected.history_
        assert np.array_equal(again.labels_, expected.labels_)
        own, theirs = again.network_.state_dict(), expected.network_.state_dict()
        assert all(torch.equal(own[key], theirs[key]) for key in theirs)
    other = [view + 1 for view in data] if isinstance(data, list) else data + 1
    with pytest.raises(ValueError, match='needs the X of the fit that was stopped'):
        again.fit(other, resume=True)
    with pytest.raises(ValueError, match='needs a fit that was stopped'):
        fresh(name)[0].fit(data, resume=True)


@pytest.mark.parametrize('name', FAMILY)
def test_rows_of_nan_and_more_clusters_than_samples(name):
    model, data = fresh(name)
    broken = [view.copy() for view in data] if isinstance(data, list) else data.copy()
    (broken[0] if isinstance(data, list) else broken)[7] = np.nan
    with pytest.raises(ValueError, match=r'(?i)finite|NaN'):
        model.fit(broken)
    many = 8 if name == 'perceptual' else 10  # it has eight columns
    with pytest.raises(ValueError, match=r'n_(clusters|samples)'):
        fresh(name, n_clusters=many)[0].fit(rows_of(data, slice(0, 7)))


def test_a_graph_that_falls_apart():
    edges = np.array([(i, j) for i in range(48) for j in range(i) if i % 6 == j % 6]).T  # six parts for three clusters
    model, _ = fresh('graph')
    labels = model.fit(X, edges).labels_
    assert np.isfinite(model.embedding_).all()
    assert set(labels) <= {0, 1, 2}


def test_dead_layers_of_an_encoder_warn():
    encoder = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    with torch.no_grad():
        encoder[0].weight.zero_()
        encoder[0].bias.fill_(-1.0)
    model = DeepSubspaceClustering(3, 2, encoder=encoder, embed_dims=3, pretrain_epochs=1, random_state=0)
    with pytest.warns(UserWarning, match=r'layers \[1\] of the encoder are 0 for every sample \(dead ReLU\)'):
        model.fit(X)
    assert np.isfinite(model.coef_).all()


def test_clusters_of_fewer_samples_than_dimensions():
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(size=(3, 8)) + 20 * k for k in range(3)])
    model = LikelihoodSDP(3, init='kmeans', random_state=0).fit(x)
    assert np.bincount(model.labels_).tolist() == [3, 3, 3]
    assert np.linalg.eigvalsh(model.covariances_).min() > 0


def test_too_many_samples_for_a_dense_solver():
    model = LikelihoodSDP(2, solver='admm', init='kmeans', random_state=0)
    with pytest.raises(ValueError, match=r'bytes; use solver=.factorized., or solve a sample .*sketch_size'):
        model.fit(np.random.default_rng(0).normal(size=(20_000, 2)))


@pytest.mark.parametrize('name', TRAINED)
def test_fits_whatever_is_switched_off_around_it(name):
    """A notebook that switched gradients off, features from inference mode, another default type."""
    model, data = fresh(name)
    expected = model.fit(data).network_.state_dict()
    for around in (torch.no_grad, torch.inference_mode):
        model, data = fresh(name)
        with around():
            found = model.fit(data).network_.state_dict()
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], msg=key)
    torch.set_default_dtype(torch.float64)
    try:
        model, data = fresh(name)
        network = model.fit(data).network_
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    model.predict(data)


def test_features_made_in_inference_mode_train_an_own_encoder():
    torch.manual_seed(0)
    with torch.inference_mode():
        features = torch.from_numpy(X) * 1.0
    encoder = torch.nn.Sequential(torch.nn.Linear(6, 4))
    before = encoder[0].weight.detach().clone()
    model = ManifoldClustering(3, encoder=encoder, embed_dims=4, feature_dims=4, warmup_epochs=1, epochs=1, **QUICK)
    assert not torch.equal(model.fit(features).network_.encoder[0].weight, before)
