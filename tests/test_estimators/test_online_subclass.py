# SPDX-License-Identifier: Apache-2.0
"""Subclasses within classes without a network."""

import pickle

import numpy as np
import pytest
import torch

from clusterplug.estimators import OnlineSubclassClusterer
from clusterplug.functional import normalized_mutual_info


def _data(num_points=1200, num_classes=3, kinds=4, dims=16, noise=0.05, seed=0):
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((dims, dims)))[0][: num_classes * kinds]
    kind = rng.integers(0, num_classes * kinds, num_points)
    return directions[kind] + noise * rng.standard_normal((num_points, dims)), kind // kinds, kind


def _agreement(kind, labels):
    return float(normalized_mutual_info(torch.as_tensor(kind), torch.as_tensor(labels)))


def test_finds_the_kinds_within_each_class():
    X, y, kind = _data()
    model = OnlineSubclassClusterer(4, momentum=0.5, batch_size=300, random_state=0).fit(X, y)
    assert _agreement(kind, model.labels_) > 0.9
    np.testing.assert_array_equal(model.labels_ // 4, y)
    assert model.cluster_centers_.shape == (3, 4, 16)
    np.testing.assert_allclose(np.linalg.norm(model.cluster_centers_, axis=2), 1, rtol=1e-5)
    # other data of the same kinds, without their classes
    X2, y2, kind2 = _data(seed=0, num_points=500)
    assert _agreement(kind2, model.predict(X2)) > 0.9
    assert (model.predict(X2) // 4 == y2).mean() > 0.95


def test_batches_one_by_one_and_classes_that_come_late():
    X, y, kind = _data()
    model = OnlineSubclassClusterer(4, momentum=0.5)
    for rows in np.array_split(np.flatnonzero(y < 2), 8):
        model.partial_fit(X[rows], y[rows], classes=[0, 1, 2])
    assert model.n_seeded_.tolist() == [4, 4, 0]
    assert (model.predict(X[y == 2], y[y == 2]) == -1).all()
    assert (model.predict(X[y < 2], y[y < 2]) >= 0).all()
    for rows in np.array_split(np.flatnonzero(y == 2), 8):
        model.partial_fit(X[rows], y[rows])
    assert model.n_steps_ == 16
    assert _agreement(kind, model.predict(X, y)) > 0.8


def test_names_of_classes_and_numbers_for_each():
    X, y, _ = _data()
    names = np.array(['bus', 'car', 'tram'])[y]
    model = OnlineSubclassClusterer([4, 2, 3], momentum=0.5, random_state=0).fit(X, names)
    assert model.classes_.tolist() == ['bus', 'car', 'tram']
    assert model.n_seeded_.tolist() == [4, 2, 3]
    assert set(model.labels_[names == 'car']) <= {4, 5}
    with pytest.raises(ValueError, match=r"classes \['van'\] that are not among"):
        model.predict(X[:1], ['van'])


def test_tensors_in_tensors_out():
    X, y, _ = _data()
    from_array = OnlineSubclassClusterer(4, random_state=0).fit(X, y)
    from_tensor = OnlineSubclassClusterer(4, random_state=0).fit(torch.from_numpy(X), torch.from_numpy(y))
    assert isinstance(from_tensor.labels_, torch.Tensor)
    np.testing.assert_array_equal(from_tensor.labels_.numpy(), from_array.labels_)


def test_copies_and_files_go_on_where_the_first_was(tmp_path):
    X, y, _ = _data()
    model = OnlineSubclassClusterer(4).partial_fit(X[:400], y[:400])
    model.save(tmp_path / 'model.npz')
    others = [pickle.loads(pickle.dumps(model)), OnlineSubclassClusterer.load(tmp_path / 'model.npz')]
    expected = model.partial_fit(X[400:], y[400:]).predict(X)
    for other in others:
        np.testing.assert_array_equal(other.partial_fit(X[400:], y[400:]).predict(X), expected)
        assert other.n_steps_ == 2


def test_fit_forgets_what_was_before():
    X, y, _ = _data()
    model = OnlineSubclassClusterer(4, random_state=0)
    first = model.fit(X, y).labels_
    model.partial_fit(-X, y)
    np.testing.assert_array_equal(model.fit(X, y).labels_, first)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(y=np.zeros(3, int)), r'y must have shape \(1200,\)'),
        (dict(y=np.zeros(1200)), 'of integers or strings'),
        (dict(X=np.full((1200, 16), np.nan)), 'NaN'),
        (dict(n_clusters=0), 'num_clusters must be integers of at least 1'),
        (dict(n_clusters=[2]), 'one per class'),
        (dict(momentum=1.5), 'momentum'),
        (dict(samples_per_class=0), 'samples_per_class'),
        (dict(max_iter=0), 'max_iter'),
    ],
)
def test_bad_input(change, message):
    X, y, _ = _data()
    X, y = change.pop('X', X), change.pop('y', y)
    with pytest.raises(ValueError, match=message):
        OnlineSubclassClusterer(**change).fit(X, y)


def test_predict_before_fit():
    with pytest.raises(ValueError, match='not fitted'):
        OnlineSubclassClusterer().predict(np.zeros((1, 2)))


def test_strings_of_a_data_frame():
    X, names = np.random.default_rng(0).standard_normal((40, 3)), ['cat', 'elephant'] * 20
    plain = OnlineSubclassClusterer(2, random_state=0).fit(X, np.array(names))
    objects = OnlineSubclassClusterer(2, random_state=0).fit(X, np.array(names, dtype=object))
    assert np.array_equal(plain.labels_, objects.labels_)
