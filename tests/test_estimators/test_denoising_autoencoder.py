# SPDX-License-Identifier: Apache-2.0
"""DenoisingAutoencoder: PCA as a limit, the published size, pseudo-labels of digits, files, resume."""

import numpy as np
import pytest
import torch
from torch import nn

from clusterplug.estimators import DenoisingAutoencoder, KMeans
from clusterplug.functional import clustering_accuracy


@pytest.fixture(scope='module')
def digits():
    datasets = pytest.importorskip('sklearn.datasets')
    x, y = datasets.load_digits(return_X_y=True)
    return x.astype(np.float32).reshape(-1, 1, 8, 8), y


def accuracy(labels, y):
    return float(clustering_accuracy(torch.as_tensor(y), torch.as_tensor(labels)))


def test_linear_without_noise_is_pca():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 8)) * np.array([5, 4, 3, 1, 0.5, 0.5, 0.3, 0.1])
    model = DenoisingAutoencoder(
        3, encoder='mlp', hidden=(), embed_dims=3, noise=0.0, epochs=400, patience=None, batch_size=300, lr=2e-2,
        random_state=0,
    ).fit(x)  # fmt: skip
    centered = x - x.mean(0)
    s = np.linalg.svd(centered, compute_uv=False)
    error = (s[3:] ** 2).sum() / x.size
    ours = ((model.reconstruct(x) - x) ** 2).mean()
    assert ours == pytest.approx(error, rel=0.02)
    assert model.reconstruction_error_ == pytest.approx(error / (centered**2).mean(), rel=0.02)


def test_the_published_size():
    model = DenoisingAutoencoder(4, epochs=0, random_state=0).fit(np.random.default_rng(0).random((8, 3, 32, 32)))
    network = model.network_
    count = sum(p.numel() for p in network.parameters())
    statistics = sum(2 * m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert count + statistics == 335_747
    assert model.transform(np.zeros((2, 3, 32, 32), dtype=np.float32)).shape == (2, 128)


@pytest.mark.slow
def test_digits(digits):
    x, y = digits
    model = DenoisingAutoencoder(10, epochs=4, random_state=0).fit(x)
    assert model.history_[-1]['loss'] < 0.5 * model.history_[0]['loss']
    assert model.reconstruction_error_ < 0.02
    raw = accuracy(KMeans(10, n_init=10, random_state=0).fit_predict(x.reshape(len(x), -1)), y)
    assert accuracy(model.labels_, y) >= raw - 0.05
    assert (model.predict(x) == model.labels_).all()
    z = model.encode(x)
    assert z.shape == (len(x), 128)
    assert np.bincount(model.labels_, minlength=10).min() > 0
    for c in range(10):
        np.testing.assert_allclose(z[model.labels_ == c].mean(0), model.cluster_centers_[c], atol=1e-3)
    rebuilt = model.reconstruct(x)
    assert rebuilt.shape == x.shape
    assert ((rebuilt - x) ** 2).mean() / 256 == pytest.approx(model.reconstruction_error_, rel=1e-3)


def test_noise_is_only_for_training(digits):
    x = digits[0][:100]
    options = dict(channels=(4,), epochs=2, random_state=0)
    plain, noisy = (DenoisingAutoencoder(3, noise=noise, **options).fit(x) for noise in (0.0, 0.5))
    assert plain.history_[-1]['loss'] < noisy.history_[-1]['loss']
    assert (noisy.transform(x) == noisy.transform(x)).all()


def test_any_size_seed_device_of_the_data_and_global_state(digits):
    x = torch.rand(12, 2, 13, 9, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    models = [DenoisingAutoencoder(2, channels=(4, 8), epochs=2, random_state=3).fit(x) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(models[0].labels_, torch.Tensor)
    assert models[0].reconstruct(x).shape == x.shape
    assert torch.equal(models[0].transform(x), models[1].transform(x))
    constant = DenoisingAutoencoder(1, channels=(4,), epochs=1, random_state=0).fit(torch.full((6, 1, 4, 4), 7.0))
    assert constant.reconstruct(torch.full((2, 1, 4, 4), 7.0)).isfinite().all()


def test_saved_and_loaded(digits, tmp_path):
    x = digits[0][:80]
    model = DenoisingAutoencoder(3, channels=(4, 8), epochs=2, random_state=0).fit(x)
    model.save(tmp_path / 'model.npz')
    again = DenoisingAutoencoder.load(tmp_path / 'model.npz')
    assert (again.predict(x) == model.labels_).all()
    np.testing.assert_allclose(again.transform(x), model.transform(x), rtol=1e-6)
    own = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with_own = DenoisingAutoencoder(3, encoder=own, embed_dims=5, epochs=2, random_state=0).fit(x)
    assert with_own.transform(x).shape == (80, 5)
    assert with_own.reconstruct(x).shape == x.shape


@pytest.mark.parametrize(('options', 'match'), [
    (dict(n_clusters=0), 'n_clusters'), (dict(noise=-1), 'noise'), (dict(patience=0), 'patience'),
    (dict(encoder='vit'), 'encoder'), (dict(channels=(1, 1, 1, 1, 1)), 'need 32 pixels'), (dict(n_clusters=99), '99'),
])  # fmt: skip
def test_bad_input(options, match, digits):
    with pytest.raises(ValueError, match=match):
        DenoisingAutoencoder(**{'n_clusters': 2, 'epochs': 1, **options}).fit(digits[0][:50])
