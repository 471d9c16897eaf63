# SPDX-License-Identifier: Apache-2.0
"""ProgressiveTransportClustering: uneven Gaussians, conventions, graph, files, bad input."""

import numpy as np
import pytest
import torch

from clusterplug.estimators import KMeans, ProgressiveTransportClustering
from clusterplug.functional import clustering_accuracy

SIZES = np.geomspace(400, 20, 10).astype(int)


def uneven(seed):
    random = np.random.default_rng(seed)
    means, y = 1.5 * random.normal(size=(10, 16)), np.repeat(np.arange(10), SIZES)
    return means[y] + random.normal(size=(len(y), 16)), y


def accuracy(y, labels):
    return clustering_accuracy(torch.as_tensor(y), torch.as_tensor(labels))


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:.*distinct clusters')
def test_uneven_classes_are_found_better_with_a_weaker_pull_and_than_by_k_means():
    found = []
    for seed in range(1):
        x, y = uneven(seed)
        even = ProgressiveTransportClustering(10, penalty=1.0, n_iter=120, random_state=seed).fit(x).labels_
        weak = ProgressiveTransportClustering(10, n_iter=120, random_state=seed).fit(x).labels_
        found.append([accuracy(y, each) for each in (even, KMeans(10, random_state=seed).fit(x).labels_, weak)])
    even, plain, weak = np.mean(found, 0)
    assert weak > 0.85
    assert weak > plain + 0.05
    assert weak > even + 0.1


def test_conventions(tmp_path):
    x, y = uneven(0)
    x, y = x[::4], y[::4]
    before = torch.get_rng_state()
    model = ProgressiveTransportClustering(10, n_iter=20, random_state=0).fit(x)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(model.predict(x), model.labels_)
    np.testing.assert_allclose(model.predict_proba(x).sum(1), 1, rtol=1e-5)
    assert model.transform(x).shape == (len(x), 10)
    assert len(model.loss_history_) == 20
    again = ProgressiveTransportClustering(10, n_iter=20, random_state=0).fit(torch.from_numpy(x))
    assert isinstance(again.labels_, torch.Tensor)
    np.testing.assert_array_equal(again.labels_.numpy(), model.labels_)
    np.testing.assert_array_equal(again.fit_predict(x + 100.0), model.labels_)  # an offset changes nothing
    far = ProgressiveTransportClustering(10, n_iter=20, random_state=0).fit(x + 1e9)  # one that fp32 does not hold
    np.testing.assert_array_equal(far.labels_, model.labels_)
    np.testing.assert_array_equal(far.predict(x + 1e9), model.labels_)
    model.set_params(random_state=0).save(tmp_path / 'model.npz')
    loaded = ProgressiveTransportClustering.load(tmp_path / 'model.npz')
    np.testing.assert_array_equal(loaded.predict(x), model.labels_)


def test_graph_and_batches():
    x, y = uneven(0)
    options = {'n_iter': 10, 'random_state': 0, 'batch_size': 200}
    linked = ProgressiveTransportClustering(10, strength=100.0, **options).fit(x)
    plain = ProgressiveTransportClustering(10, **options).fit(x)
    assert not np.array_equal(linked.cluster_centers_, plain.cluster_centers_)
    assert accuracy(y, linked.labels_) > 0.5


@pytest.mark.parametrize(('options', 'message'), [
    ({'n_clusters': 1}, 'n_clusters must be'), ({'mass': 0.0}, 'mass must be'), ({'mass': 1.5}, 'mass must be'),
    ({'epsilon': 0.0}, 'epsilon must be'), ({'penalty': -1.0}, 'penalty must be'), ({'n_iter': 0}, 'n_iter must be'),
    ({'n_clusters': 99}, 'should be >= n_clusters'),
])  # fmt: skip
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ProgressiveTransportClustering(**options).fit(np.random.default_rng(0).normal(size=(30, 2)))


def test_not_fitted():
    with pytest.raises(ValueError, match='not fitted'):
        ProgressiveTransportClustering().predict(np.ones((3, 2)))
