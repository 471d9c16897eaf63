# SPDX-License-Identifier: Apache-2.0
"""TransductiveFewShot: constrained Lloyd, digits, episodes, invariances, files, bad input."""

import warnings

import numpy as np
import pytest
import torch

from clusterplug.estimators import TransductiveFewShot
from clusterplug.functional import laplacian_assign


def episodes(count=6, ways=4, shots=2, queries=7, dim=5, noise=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(count, ways, dim, generator=generator).double()
    labels = torch.arange(ways).repeat_interleave(shots + queries)
    x = centers[:, labels] + noise * torch.randn(count, len(labels), dim, generator=generator).double()
    known = (torch.arange(len(labels)) % (shots + queries)) < shots
    return x, labels.masked_fill(~known, -1).expand(count, -1).clone(), labels


def test_without_a_graph_it_is_constrained_lloyd():
    x, y, _ = episodes(1)
    x, y = x[0].numpy(), y[0].numpy()
    model = TransductiveFewShot(strength=0.0, normalize=False, shift=False, tol=0.0).fit(x, y)
    z = x - x.mean(0)
    centers = np.stack([z[y == k].mean(0) for k in range(4)])
    for _ in range(100):
        labels = np.where(y >= 0, y, ((z[:, None] - centers) ** 2).sum(-1).argmin(1))
        centers = np.stack([z[labels == k].mean(0) for k in range(4)])
    np.testing.assert_array_equal(model.labels_, labels)
    np.testing.assert_allclose(model.prototypes_, centers, atol=1e-9)


@pytest.mark.parametrize('method', ['kmeans', 'kmodes'])
def test_episodes_in_a_batch_are_episodes_one_by_one(method):
    x, y, _ = episodes()
    together = TransductiveFewShot(method).fit(x, y)
    parts = TransductiveFewShot(method, batch_size=4).fit(x, y)
    assert torch.equal(parts.labels_, together.labels_)
    for number in range(6):
        alone = TransductiveFewShot(method).fit(x[number], y[number])
        assert torch.equal(alone.labels_, together.labels_[number])
        torch.testing.assert_close(alone.prototypes_, together.prototypes_[number])
    assert together.soft_labels_.shape == (6, 36, 4)
    torch.testing.assert_close(together.soft_labels_.sum(-1), torch.ones(6, 36, dtype=torch.float64))
    assert (together.labels_[y >= 0] == y[y >= 0]).all()


@pytest.mark.parametrize('method', ['kmeans', 'kmodes'])
def test_an_offset_or_an_outlier_costs_no_digits(method):
    x, y, _ = episodes()
    options = dict(method=method, normalize=False, shift=False, base_mean=torch.zeros(5, dtype=torch.float64))
    expected = TransductiveFewShot(**options).fit(x, y).labels_
    for offset in (0.0, 3e4) if method == 'kmeans' else (0.0,):  # modes stop relative to their length
        moved = (x + offset).float()
        assert torch.equal(TransductiveFewShot(**options).fit(moved, y).labels_, expected)
        # an outlier among the queries of one episode changes no other
        moved[0, -1] = 1e15
        assert torch.equal(TransductiveFewShot(**options).fit(moved, y).labels_[1:], expected[1:])


def softmax(a):
    a = np.exp(a - a.max(1, keepdims=True))
    return a / a.sum(1, keepdims=True)


def test_labels_that_only_start_are_those_of_a_plain_loop():
    """With ``keep_labels=False`` labeled samples move as the others, as in the authors' code."""
    x, y, truth = episodes(8, shots=5, dim=30, noise=1.6)
    options = dict(tol=0.0, max_iter=12, base_mean=torch.zeros(30, dtype=torch.float64))
    model = TransductiveFewShot(keep_labels=False, **options).fit(x, y)
    moved = 0
    for z, known, found, soft in zip(x.numpy(), y.numpy(), model.labels_.numpy(), model.soft_labels_.numpy()):
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        z[known < 0] += z[known >= 0].mean(0) - z[known < 0].mean(0)
        distances = ((z[:, None] - z) ** 2).sum(-1)
        graph = np.zeros_like(distances)
        np.put_along_axis(graph, distances.argsort(1)[:, 1:3], 1.0, 1)
        centers = np.stack([z[known == k].mean(0) for k in range(4)])
        labels = np.where(known >= 0, known, ((z[:, None] - centers) ** 2).sum(-1).argmin(1))
        for _ in range(12):
            centers = np.stack([z[labels == k].mean(0) for k in range(4)])
            costs = ((z[:, None] - centers) ** 2).sum(-1)
            expected = softmax(-costs)
            for _ in range(100):
                expected = softmax(0.7 * graph @ expected - costs)
            labels = expected.argmax(1)
        np.testing.assert_allclose(soft, expected, atol=1e-4)
        np.testing.assert_array_equal(found, np.where(known >= 0, known, labels))
        moved += int((labels != known)[known >= 0].sum())
    assert moved > 0
    queries = y < 0
    kept = TransductiveFewShot(**options).fit(x, y).labels_
    right = [(labels == truth)[queries].double().mean() for labels in (model.labels_, kept)]
    assert right[0] > right[1] + 0.02


@pytest.mark.parametrize('method', ['kmeans', 'kmodes'])
def test_a_class_that_loses_all_samples_keeps_its_prototype(method):
    near = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.05], [1.0, 0.02]])
    x = torch.cat([near, torch.tensor([[0.9, 0.3]])])
    y = torch.tensor([0, 0, -1, -1, 1])  # class 1 is among samples of class 0
    model = TransductiveFewShot(method, strength=5.0, keep_labels=False, shift=False, base_mean=torch.zeros(2))
    labels = model.fit(x, y).labels_
    assert labels.tolist() == [0, 0, 0, 0, 1]
    assert torch.isfinite(model.prototypes_).all()
    assert model.soft_labels_[4].argmax() == 0


def test_energy_settles():
    x, y, _ = episodes(20)
    history = TransductiveFewShot(concave=True, tol=0.0, max_iter=12).fit(x, y).energy_history_
    assert history.shape[1] == 20
    np.testing.assert_allclose(history[-1], history[-2], rtol=1e-4)
    assert (history[-1] <= history[0]).all()


def test_digits_reach_the_published_figures():
    datasets = pytest.importorskip('sklearn.datasets')
    few_shot = pytest.importorskip('clusterplug.evaluation.few_shot')
    x, y = (torch.from_numpy(each) for each in datasets.load_digits(return_X_y=True))
    x = x.float()
    mean, novel = x[y < 5].mean(0), y >= 5
    expected = {(1, 0.0): 0.812, (1, 0.7): 0.821, (5, 0.0): 0.905, (5, 0.7): 0.922}
    for (shots, strength), accuracy in expected.items():
        model = TransductiveFewShot(strength=strength, base_mean=mean)
        found = few_shot.FewShotEpisodes(5, shots, 15, 200, classifier=model.classify)(x[novel], y[novel])
        assert found.mean == pytest.approx(accuracy, abs=0.02)


def test_labels_of_any_value_and_kind():
    x, y, truth = episodes(1)
    names = np.array([30, 10, 7, 99])
    given = np.where(y[0].numpy() >= 0, names[y[0].numpy().clip(0)], -1)
    model = TransductiveFewShot().fit(x[0].numpy(), given)
    assert model.classes_.tolist() == [7, 10, 30, 99]
    assert isinstance(model.labels_, np.ndarray)
    expected = TransductiveFewShot().fit(x[0], y[0])
    np.testing.assert_array_equal(model.labels_, names[expected.labels_.numpy()])
    np.testing.assert_array_equal(model.fit_predict(x[0].numpy(), given), model.labels_)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    moved = TransductiveFewShot().fit(x[0][order], y[0][order])
    assert torch.equal(moved.labels_, expected.labels_[order])
    assert len(truth) == 36


def test_predict_and_files(tmp_path):
    x, y, truth = episodes(1, noise=0.2)
    model = TransductiveFewShot().fit(x[0].numpy(), y[0].numpy())
    queries = y[0].numpy() < 0
    assert (model.predict(x[0].numpy()[queries]) == truth.numpy()[queries]).mean() > 0.95
    model.save(tmp_path / 'model.npz')
    again = TransductiveFewShot.load(tmp_path / 'model.npz')
    np.testing.assert_array_equal(again.predict(x[0].numpy()), model.predict(x[0].numpy()))
    with pytest.raises(ValueError, match='predict needs a model fitted to one problem'):
        TransductiveFewShot().fit(x, y).predict(x[0])
    with pytest.raises(ValueError, match='not fitted'):
        TransductiveFewShot().predict(x[0])


def test_types_duplicates_and_uneven_shots():
    x, y, _ = episodes(2, noise=0.2)
    y[0, 1] = -1  # one shot of class 0, two of the others
    expected = TransductiveFewShot().fit(x, y).labels_
    with torch.autocast('cpu', torch.bfloat16):
        assert (TransductiveFewShot().fit(x.half(), y).labels_ == expected).double().mean() > 0.95
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        same = TransductiveFewShot('kmodes').fit(torch.ones(6, 3), torch.tensor([0, 1, -1, -1, -1, -1]))
    assert torch.isfinite(same.soft_labels_).all()
    with pytest.raises(ValueError, match='at least one episode'):
        TransductiveFewShot().fit(x[:0], y[:0])


@pytest.mark.parametrize(('options', 'message'), [
    ({'method': 'ncut'}, 'method must be'), ({'strength': -1.0}, 'strength must be'),
    ({'n_neighbors': 1}, 'n_neighbors must be'), ({'n_neighbors': 99}, 'n_neighbors=99 needs as many'),
    ({'base_mean': np.zeros(3)}, 'base_mean must have shape'), ({'max_iter': 0}, 'max_iter must be'),
    ({'base_mean': np.full(5, np.nan)}, 'base_mean must be finite'),
])  # fmt: skip
def test_bad_options(options, message):
    x, y, _ = episodes(2)
    with pytest.raises(ValueError, match=message):
        TransductiveFewShot(**options).fit(x, y)


def test_bad_labels():
    x, y, _ = episodes(2)
    for bad, message in (
        (None, 'requires y'), (y.float(), 'one integer'), (y.numpy().astype(str), 'one integer'),
        (y > 0, 'one integer'),
        (y[:, 1:], 'one label for each'), (y - 1, '>= 0, or -1'),
        (torch.zeros_like(y), 'at least 2 classes'), (y.clamp_min(0), 'nothing is left'),
        (torch.full_like(y, -1), 'at least 2 classes'),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            TransductiveFewShot().fit(x, bad)
    y[1][y[1] == 3] = -1
    with pytest.raises(ValueError, match='none of class 3 in episode 1'):
        TransductiveFewShot().fit(x, y)
    x[0, 3, 1] = float('nan')
    with pytest.raises(ValueError, match='X must be finite'):
        TransductiveFewShot().fit(x, y)


def test_a_function_and_its_estimator_share_defaults():
    import inspect

    defaults = inspect.signature(laplacian_assign).parameters
    of_estimator = inspect.signature(TransductiveFewShot).parameters
    assert defaults['concave'].default == of_estimator['concave'].default
