# SPDX-License-Identifier: Apache-2.0
"""Co-association of views and graph degree linkage as estimators."""

import warnings

import numpy as np
import pytest
import torch

from clusterplug.estimators import CoAssociation, GraphDegreeLinkage
from clusterplug.functional import adjusted_rand_index, normalized_mutual_info


def complementary_views(seed=0, classes=6, each=60, dims=20):
    """View v shows classes 2v and 2v + 1 as one: no view is enough, and all three are."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(classes), each)
    views = []
    for view in range(classes // 2):
        means = 1.1 * rng.normal(size=(classes, dims))
        means[2 * view + 1] = means[2 * view]
        views.append(means[truth] + rng.normal(size=(len(truth), dims)))
    return views, truth


def score(labels, truth):
    return float(normalized_mutual_info(torch.as_tensor(labels), torch.as_tensor(truth)))


@pytest.mark.parametrize('base', ['agglomerative', 'kmeans', 'gdl'])
def test_views_that_complement_each_other(base):
    views, truth = complementary_views()
    model = CoAssociation(6, base=base, normalize=None, random_state=0).fit(views)
    singles = [score(labels, truth) for labels in model.view_labels_]
    assert max(singles) < 0.92
    assert score(model.labels_, truth) >= 0.95
    assert model.agreement_.shape == (3, 3)
    assert np.allclose(np.diag(model.agreement_), 1)


def test_equal_views_give_the_one_labeling():
    views, _ = complementary_views()
    one = CoAssociation(6).fit(views[:1])
    three = CoAssociation(6).fit([views[0]] * 3)
    assert adjusted_rand_index(torch.as_tensor(one.labels_), torch.as_tensor(three.labels_)) == 1
    assert adjusted_rand_index(torch.as_tensor(one.labels_), torch.as_tensor(one.view_labels_[0])) == 1
    assert np.array_equal(CoAssociation(6).fit_predict(views[0]), one.labels_)
    backwards = CoAssociation(6).fit_predict(views[::-1])
    forwards = CoAssociation(6).fit_predict(views)
    assert adjusted_rand_index(torch.as_tensor(forwards), torch.as_tensor(backwards)) == 1


def test_given_labels_and_names(tmp_path):
    labels = np.array([[0, 0, 1, 1, 2], [0, 0, 1, 1, -1], [3, 3, 0, 0, 1]])
    model = CoAssociation(3, base='precomputed').fit(labels)
    assert model.labels_.tolist() == [0, 0, 1, 1, 2]
    views, _ = complementary_views()
    named = CoAssociation(6).fit({'clip': views[0], 'dino': torch.from_numpy(views[1])})
    assert named.view_names_ == ['clip', 'dino']
    tensors = CoAssociation(6).fit([torch.from_numpy(view) for view in views])
    assert isinstance(tensors.labels_, torch.Tensor)
    model.save(tmp_path / 'model.npz')
    assert np.array_equal(CoAssociation.load(tmp_path / 'model.npz').labels_, model.labels_)


def test_bad_views():
    views, _ = complementary_views()
    for bad, match in [
        ([views[0], views[1][:50]], 'other numbers'), ([views[0], views[1] * np.nan], 'view 1 must be finite'),
        ({}, 'at least one view'), ([views[0][:, 0]], '2D array'), (views[0][:4], 'n_clusters=6'),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            CoAssociation(6).fit(bad)
    for options, match in [({'base': 'em'}, 'base'), ({'linkage': 'ward'}, 'linkage'), ({'normalize': 'l1'}, 'normal')]:
        with pytest.raises(ValueError, match=match):
            CoAssociation(6, **options).fit(views)
    with pytest.raises(ValueError, match='integer labels'):
        CoAssociation(2, base='precomputed').fit(views[0])
    with pytest.warns(UserWarning, match=r"\['1'\] are constant"):
        model = CoAssociation(6).fit([views[0], np.ones((360, 4))])
    assert model.view_names_ == ['0']


def test_graph_degree_linkage_of_few_samples(tmp_path):
    x = np.random.default_rng(0).normal(size=(9, 2)) + 9 * (np.arange(9) % 2)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model = GraphDegreeLinkage(2).fit(x)
    assert model.labels_.tolist() == [0, 1] * 4 + [0]
    assert GraphDegreeLinkage(1).fit_predict(x[:1]).tolist() == [0]
    model.save(tmp_path / 'model.npz')
    assert np.array_equal(GraphDegreeLinkage.load(tmp_path / 'model.npz').labels_, model.labels_)
