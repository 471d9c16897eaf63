# SPDX-License-Identifier: Apache-2.0
"""ManifoldClustering: one-shot start, subspaces found, K by coding length, files, resume, bad input."""

import numpy as np
import pytest
import torch

from clusterplug.estimators import ManifoldClustering
from clusterplug.estimators.deep.manifold import coding_length
from clusterplug.functional import clustering_accuracy, coding_rate

SMALL = {
    'hidden': (48,), 'embed_dims': 32, 'feature_dims': 16, 'batch_size': 128, 'noise': 0.1, 'random_state': 0,
}  # fmt: skip


def lines(seed=0, num_clusters=3, size=40, width=12):
    """Points on both sides of the origin along one direction a cluster."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(width, num_clusters)))[0].T
    along = rng.uniform(0.5, 1.5, (num_clusters, size, 1)) * rng.choice([-1, 1], (num_clusters, size, 1))
    x = (along * axes[:, None]).reshape(-1, width) + 0.02 * rng.normal(size=(num_clusters * size, width))
    return x, np.repeat(np.arange(num_clusters), size)


def blobs(seed=0, num_clusters=3, size=40, width=12):
    rng = np.random.default_rng(seed)
    centers = 3 * np.linalg.qr(rng.normal(size=(width, num_clusters)))[0].T
    return (centers[:, None] + 0.3 * rng.normal(size=(num_clusters, size, width))).reshape(-1, width), np.repeat(
        np.arange(num_clusters), size
    )


def accuracy(y, labels):
    return clustering_accuracy(torch.as_tensor(y), torch.as_tensor(labels))


@pytest.fixture(scope='module')
def fitted():
    X, y = blobs()
    return X, y, ManifoldClustering(3, warmup_epochs=20, epochs=5, **SMALL).fit(X)


def test_clusters_become_orthogonal_subspaces(fitted):
    X, y, model = fitted
    assert accuracy(y, model.labels_) > 0.95
    assert accuracy(y, model.predict(X)) > 0.95
    z = model.transform(X)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    cosines = np.abs(z @ z.T)
    same = y[:, None] == y
    assert cosines[same].mean() > cosines[~same].mean() + 0.3
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1, rtol=1e-5)
    assert {entry['phase'] for entry in model.history_} == {'warm-up', 'rate reduction'}


def test_warm_up_copies_the_head_once(fitted):
    X, _, _ = fitted
    model = ManifoldClustering(3, warmup_epochs=2, epochs=0, **SMALL).fit(X)
    for one, other in zip(
        model.network_.feature_head.state_dict().values(), model.network_.cluster_head.state_dict().values()
    ):
        assert torch.equal(one, other)
    trained = ManifoldClustering(3, warmup_epochs=2, epochs=1, **SMALL).fit(X)
    assert not torch.equal(trained.network_.feature_head[0].weight, trained.network_.cluster_head[0].weight)


def test_same_seed_same_numbers_and_resume(tmp_path, fitted):
    X, _, _ = fitted
    options = {**SMALL, 'warmup_epochs': 3, 'epochs': 3}
    whole = ManifoldClustering(3, **options).fit(X)
    again = ManifoldClustering(3, **options).fit(X)
    np.testing.assert_array_equal(whole.transform(X), again.transform(X))
    whole.save(tmp_path / 'model.npz')
    loaded = ManifoldClustering.load(tmp_path / 'model.npz')
    assert np.array_equal(loaded.predict(X), whole.predict(X))
    file = str(tmp_path / 'checkpoint.npz')
    stopped = ManifoldClustering(3, **{**options, 'epochs': 1}, checkpoint=file, checkpoint_every=1)
    stopped._finish = lambda data: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(X)
    resumed = ManifoldClustering(3, **options, checkpoint=file).fit(X, resume=True)
    np.testing.assert_allclose(resumed.transform(X), whole.transform(X), atol=1e-5)


def test_coding_length_by_hand_and_the_number_of_clusters(fitted):
    z = torch.nn.functional.normalize(torch.randn(30, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.arange(30) % 2
    expected = sum((15 + 6) / 2 * float(coding_rate(z[labels == k], eps2=0.1)) + 15 * np.log(2) for k in range(2))
    assert coding_length(z, labels, 0.1) == pytest.approx(expected, rel=1e-5)
    X, y, _ = fitted
    model = ManifoldClustering('auto', max_clusters=6, warmup_epochs=20, epochs=3, **SMALL).fit(X)
    assert model.n_clusters_ == len(np.unique(model.labels_)) == 3
    assert accuracy(y, model.labels_) > 0.9
    assert model.coding_lengths_['3'] < model.coding_lengths_['1']


def test_landmarks_label_the_rest(fitted):
    X, y, _ = fitted
    model = ManifoldClustering(3, warmup_epochs=20, epochs=2, num_landmarks=60, **SMALL).fit(X)
    assert accuracy(y, model.labels_) > 0.9


def test_views_of_your_own_and_one_head():
    X, _ = blobs(size=10)
    calls = []

    def view(batch, generator):
        calls.append(len(batch))
        return batch + 0.1 * torch.randn(batch.shape, generator=generator)

    ManifoldClustering(3, augment=view, shared_head=True, warmup_epochs=1, epochs=1, **SMALL).fit(X)
    assert calls == [30] * 4


def test_images():
    images = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {**SMALL, 'encoder': 'cnn', 'channels': (4, 4), 'warmup_epochs': 1, 'epochs': 1}
    model = ManifoldClustering(2, **options).fit(images)
    assert model.labels_.shape == (24,)
    assert model.transform(images).shape == (24, 16)


def test_batches_are_even_and_never_of_one_sample():
    X, _ = blobs(size=11)
    sizes = []

    def view(batch, generator):
        sizes.append(len(batch))
        return batch

    options = {**SMALL, 'augment': view, 'warmup_epochs': 1, 'epochs': 0}
    ManifoldClustering(3, **{**options, 'batch_size': 16}).fit(X)
    assert sizes[::2] == [11, 11, 11]
    sizes.clear()
    ManifoldClustering(2, **{**options, 'batch_size': 2}).fit(X[:5])
    assert sorted(sizes[::2]) == [2, 3]
    with pytest.raises(ValueError, match='n_samples=1'):
        ManifoldClustering(1, **options).fit(X[:1])


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'n_clusters': 0}, 'n_clusters must be'),
        ({'n_clusters': 1000}, 'n_clusters'),
        ({'n_clusters': 'many'}, 'n_clusters must be'),
        ({'epsilon': 0}, 'epsilon must be'),
        ({'eps2': -1}, 'eps2 must be'),
        ({'max_clusters': 1}, 'max_clusters must be'),
        ({'sinkhorn_iters': 0}, 'sinkhorn_iters must be'),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises((ValueError, TypeError), match=match):
        ManifoldClustering(**{'n_clusters': 2, **options}).fit(blobs(size=10)[0])


def test_equal_and_antipodal_samples():
    X, _ = lines(size=10)
    model = ManifoldClustering(3, warmup_epochs=1, epochs=1, **SMALL).fit(np.concatenate([X, X]))
    assert np.isfinite(model.transform(X)).all()
    with pytest.raises(ValueError, match=r'NaN|inf'):
        model.fit(np.full((20, 3), np.nan))
