# SPDX-License-Identifier: Apache-2.0
"""Small contracts: warnings of too few clusters, the default device, weights, names in messages."""

import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import clusterplug
from clusterplug.estimators import (
    AgglomerativeClustering,
    KMeans,
    KMedoids,
    MiniBatchKMeans,
    OnlineSubclassClusterer,
    SpectralClustering,
)

X = np.random.default_rng(0).standard_normal((60, 3))
DISTANCES = np.linalg.norm(X[:, None] - X[None], axis=-1)


@pytest.mark.parametrize(
    'model', [KMeans(7), KMeans(7, init='kkz'), MiniBatchKMeans(7), KMedoids(7), KMedoids(7, method='swap')]
)
def test_fewer_clusters_than_asked_for_warn(model):
    exceptions = pytest.importorskip('sklearn.exceptions')
    repeated = np.repeat(X[:4], 10, axis=0)
    with pytest.warns(exceptions.ConvergenceWarning, match='found 4 distinct clusters.*n_clusters=7') as caught:
        model.fit(repeated)
    assert caught[0].filename == __file__
    assert len(np.unique(model.labels_)) == 4
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model.fit(X)
        model.set_params(n_clusters=4).fit(repeated)


def test_warning_without_scikit_learn():
    code = """
import sys, warnings
sys.modules['sklearn'] = None
import numpy as np
from clusterplug.estimators import KMeans
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    KMeans(3).fit(np.ones((5, 2)))
print(caught[0].category.__name__, issubclass(caught[0].category, UserWarning))
"""
    root = Path(clusterplug.__file__).parents[1]
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert done.stdout.split() == ['ConvergenceWarning', 'True'], done.stderr


MODELS = [
    (KMeans(4, random_state=0), X), (KMeans(4, init=X[:4]), X), (MiniBatchKMeans(4, batch_size=20, random_state=0), X),
    (KMedoids(4), X), (KMedoids(4, method='swap'), X), (KMedoids(4, metric='precomputed'), DISTANCES),
    (SpectralClustering(3), X), (SpectralClustering(3, affinity='heat'), X),
    (SpectralClustering(3, affinity='precomputed'), np.exp(-DISTANCES)), (AgglomerativeClustering(3), X),
    (AgglomerativeClustering(None, distance_threshold=1.0, metric='precomputed', linkage='average'), DISTANCES),
]  # fmt: skip


@pytest.mark.parametrize('convert', [np.asarray, torch.from_numpy])
@pytest.mark.parametrize(('model', 'data'), MODELS, ids=[str(each) for each, _ in MODELS])
def test_default_device_plays_no_part(model, data, convert, tmp_path):
    data = convert(data)
    expected = torch.as_tensor(model.fit(data).labels_).clone()
    with torch.device('meta'):  # a tensor made there has no numbers, and whatever reads them fails
        labels = model.fit(data).labels_
        for name in ('predict', 'transform', 'score', 'partial_fit'):
            if hasattr(model, name):
                getattr(model, name)(data)
        if isinstance(model, KMeans | MiniBatchKMeans):
            model.fit(data, sample_weight=2.0)
        pickle.loads(pickle.dumps(model))
        model.save(tmp_path / 'model.npz')
        type(model).load(tmp_path / 'model.npz')
    assert torch.equal(torch.as_tensor(labels), expected)


def test_default_device_plays_no_part_online():
    y = np.arange(60) % 3
    expected = OnlineSubclassClusterer(2, max_iter=2, random_state=0).fit(X, y).labels_
    with torch.device('meta'):
        model = OnlineSubclassClusterer(2, max_iter=2, random_state=0).fit(X, y)
        copy = pickle.loads(pickle.dumps(model))
        assert np.array_equal(copy.predict(X, y), expected)
        model.partial_fit(X, y)


@pytest.mark.parametrize('model', [KMeans(3), MiniBatchKMeans(3)])
def test_weights_follow_one_rule(model):
    calls = [model.fit, model.fit(X).score]
    calls += [model.partial_fit] if hasattr(model, 'partial_fit') else []
    for call in calls:
        messages = set()
        for weights in (0, 0.0, np.zeros(60), torch.zeros(60)):
            with pytest.raises(ValueError, match='sample_weight must not be negative, nor all zero') as error:
                call(X, sample_weight=weights)
            messages.add(str(error.value))
        assert len(messages) == 1
        for weights in (-1.0, np.full(60, -1.0), np.full(60, np.nan), np.where(np.arange(60) == 3, np.inf, 1)):
            with pytest.raises(ValueError, match='sample_weight'):
                call(X, sample_weight=weights)
        call(X, sample_weight=2)


def test_messages_name_the_argument_that_was_given():
    with pytest.raises(ValueError, match="affinity='precomputed'"):
        SpectralClustering(2, affinity='precomputed').fit(X)
    for model in (KMedoids(2, metric='precomputed'), AgglomerativeClustering(metric='precomputed', linkage='single')):
        with pytest.raises(ValueError, match="metric='precomputed'"):
            model.fit(X)
    for model, name in ((KMedoids(2, metric='l7'), 'metric'), (SpectralClustering(2, affinity='rbf'), 'affinity')):
        with pytest.raises(ValueError, match=f'^{name} must be'):
            model.fit(X)
    for model, name in (
        (AgglomerativeClustering(linkage='median'), 'linkage'), (AgglomerativeClustering(metric='l7'), 'metric'),
        (KMedoids(2, method='pam'), 'method'), (SpectralClustering(2, n_neighbors=0), 'n_neighbors'),
        (AgglomerativeClustering(None, distance_threshold='3'), 'distance_threshold'), (KMeans(2, tol='1'), 'tol'),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f'^{name} must be'):
            model.fit(X)
    for bad in (KMeans(2.5), KMeans(tol='1')):  # as scikit-learn's: both kinds
        with pytest.raises(TypeError):
            bad.fit(X)
