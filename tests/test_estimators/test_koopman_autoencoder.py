# SPDX-License-Identifier: Apache-2.0
"""KoopmanAutoencoder: exact linear systems, the pendulum with and without entropy, shapes, bad input."""

import numpy as np
import pytest
import torch
from torch import nn

from clusterplug.estimators.deep import KoopmanAutoencoder
from clusterplug.testing.toy_dynamics import pendulum
from clusterplug.visualization import save_spectrum


def test_a_linear_system_gives_its_eigenvalues():
    turn = 0.98 * np.array([[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]])
    X = [np.random.default_rng(0).normal(size=(8, 2))]
    for _ in range(19):
        X.append(X[-1] @ turn)
    X = np.stack(X, 1)
    options = dict(operator='ridge', ridge=0.0, window=20, entropy_weight=0.0, epochs=0)
    model = KoopmanAutoencoder(2, encoder=nn.Identity(), decoder=nn.Identity(), **options).fit(X)
    np.testing.assert_allclose(np.abs(model.spectrum()), 0.98, rtol=1e-4)
    np.testing.assert_allclose(model.rollout(X[:, 0], 19), X, atol=0.02)
    assert model.rollout(X[0, 0], 3).shape == (4, 2)
    assert model.transform(X).shape == (8, 20, 2)


def test_modes_take_a_linear_system_apart(tmp_path):
    turn = np.zeros((3, 3))
    turn[:2, :2] = 0.95 * np.array([[np.cos(0.4), np.sin(0.4)], [-np.sin(0.4), np.cos(0.4)]])
    turn[2, 2] = 0.6
    mix = np.random.default_rng(1).normal(size=(3, 3))
    turn = np.linalg.inv(mix) @ turn @ mix
    X = [np.random.default_rng(0).normal(size=(6, 3))]
    for _ in range(9):
        X.append(X[-1] @ turn)
    X = np.stack(X, 1)
    options = dict(operator='ridge', ridge=0.0, window=10, entropy_weight=0.0, epochs=0)
    model = KoopmanAutoencoder(3, encoder=nn.Identity(), decoder=nn.Identity(), **options).fit(X)
    values, phi = model.spectrum(), model.modes(X)
    np.testing.assert_allclose(np.abs(values), [0.95, 0.95, 0.6], rtol=1e-3)
    np.testing.assert_allclose(np.abs(np.angle(values)), [0.4, 0.4, 0.0], atol=1e-3)
    np.testing.assert_allclose(phi[:, 1:], phi[:, :-1] * values, atol=1e-2)
    start = X[:, 0]
    parts = [model.rollout(start, 4, modes=kept) for kept in ([0], [2])]  # 0 brings its conjugate
    np.testing.assert_allclose(sum(parts), model.rollout(start, 4), atol=1e-3)
    np.testing.assert_allclose(parts[1][:, 1:], 0.6 * parts[1][:, :-1], atol=5e-3)
    assert np.linalg.matrix_rank(parts[0].reshape(-1, 3), tol=1e-3) == 2
    with pytest.raises(ValueError, match='modes'):
        model.rollout(start, 4, modes=[3])
    with pytest.raises(ValueError, match='at least one'):
        model.rollout(start, 4, modes=[])
    save_spectrum(tmp_path / 'one.png', values)
    save_spectrum(tmp_path / 'two.png', {'fitted': values, 'true': np.linalg.eigvals(turn)}, 'Modes')
    assert (tmp_path / 'two.png').stat().st_size > (tmp_path / 'one.png').stat().st_size > 1000
    for bad in (np.array([]), np.array([np.nan + 0j])):
        with pytest.raises(ValueError, match='spectra'):
            save_spectrum(tmp_path / 'bad.png', bad)


def test_a_map_that_grows_is_warned_of():
    X = 1.1 ** np.arange(20)[None, :, None] * np.ones((2, 1, 2))
    options = dict(operator='ridge', ridge=0.0, window=10, entropy_weight=0.0, epochs=0)
    with pytest.warns(UserWarning, match=r"spectral radius is 1\.1.*operator='orthogonal'"):
        KoopmanAutoencoder(2, encoder=nn.Identity(), decoder=nn.Identity(), **options).fit(X)


@pytest.mark.filterwarnings('ignore:the spectral radius')
def test_entropy_keeps_modes_alive_on_the_pendulum():
    X, held = pendulum(24), pendulum(8, seed=1)
    ends = {}
    for weight in (0.0, 0.1):
        model = KoopmanAutoencoder(8, hidden=(32,), entropy_weight=weight, epochs=8, window=12, lr=3e-3).fit(X)
        ends[weight] = model.effective_dim_
        assert model.history_[-1]['loss_prediction'] < model.history_[0]['loss_prediction']
    assert ends[0.1] > ends[0.0]
    error = np.sqrt(np.mean((model.rollout(held[:, 0], 10)[:, 10] - held[:, 10]) ** 2))
    assert error < held.std()


def test_same_seed_same_model_and_no_global_seed():
    X = pendulum(4, steps=20)
    before = torch.get_rng_state()
    one, other = (KoopmanAutoencoder(4, epochs=1, operator='orthogonal').fit(X) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(one.operator_, other.operator_)
    np.testing.assert_allclose(np.abs(one.spectrum()), 1.0, atol=1e-5)
    one.fit(np.concatenate([X, X], 2))  # another width
    assert one.rollout(np.zeros(4), 2).shape == (3, 4)


def test_estimator_conventions(tmp_path):
    base = pytest.importorskip('sklearn.base')
    X, options = pendulum(4, steps=20), dict(hidden=(8,), epochs=1, operator='orthogonal')
    model = KoopmanAutoencoder(4, **options).fit(X)
    again = base.clone(model).fit(torch.tensor(X, requires_grad=True))
    np.testing.assert_array_equal(again.operator_, model.operator_)
    assert np.abs(base.clone(model).set_params(entropy_weight=5.0).fit(X).operator_ - model.operator_).max() > 0
    with pytest.raises(ValueError, match='latent_dim'):
        base.clone(model).set_params(latent_dim=0).fit(X)
    draws = [KoopmanAutoencoder(4, random_state=np.random.RandomState(3), **options).fit(X) for _ in range(2)]
    np.testing.assert_array_equal(draws[0].operator_, draws[1].operator_)
    assert np.abs(draws[0].operator_ - model.operator_).max() > 0
    KoopmanAutoencoder(4, random_state=None, **options).fit(X)
    model.save(tmp_path / 'model.npz')
    read = KoopmanAutoencoder.load(tmp_path / 'model.npz')
    np.testing.assert_array_equal(read.rollout(X[:, 0], 3), model.rollout(X[:, 0], 3))
    assert read.history_ == model.history_


def test_own_modules_are_copied_and_named_in_files(tmp_path):
    X = pendulum(4, steps=20)
    own = nn.Linear(X.shape[-1], 3), nn.Linear(3, X.shape[-1])
    before = own[0].weight.detach().clone()
    model = KoopmanAutoencoder(3, encoder=own[0], decoder=own[1], operator='orthogonal', epochs=1)
    first = model.fit(X).operator_
    assert torch.equal(own[0].weight, before)
    assert own[0].weight.requires_grad
    np.testing.assert_array_equal(model.fit(X).operator_, first)
    model.save(tmp_path / 'model.npz')
    with pytest.raises(ValueError, match=r'decoder=Linear, encoder=Linear, which no file holds; .*decoder=\.\.\., enc'):
        KoopmanAutoencoder.load(tmp_path / 'model.npz')
    read = KoopmanAutoencoder.load(tmp_path / 'model.npz', encoder=own[0], decoder=own[1])
    np.testing.assert_array_equal(read.transform(X), model.transform(X))


@pytest.mark.parametrize(
    ('call', 'match'),
    [
        (lambda: KoopmanAutoencoder(4).fit(np.zeros((2, 8, 3))), 'window = 16'),
        (lambda: KoopmanAutoencoder(4).fit(np.full((2, 20, 3), np.nan)), 'finite'),
        (lambda: KoopmanAutoencoder(4).fit(np.zeros(5)), r'\(B, T, D\)'),
        (lambda: KoopmanAutoencoder(4, window=6, contrast_weight=1.0), 'window must be above'),
        (lambda: KoopmanAutoencoder(4, encoder=nn.Identity()), 'together'),
        (lambda: KoopmanAutoencoder(4).spectrum(), 'not fitted'),
        (lambda: KoopmanAutoencoder(0), 'latent_dim'),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
