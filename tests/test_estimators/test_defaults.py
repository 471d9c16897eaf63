# SPDX-License-Identifier: Apache-2.0
"""A function and the estimator built on it start from the same defaults."""

import inspect

import pytest

from clusterplug import estimators, functional
from clusterplug.losses import BalancedAssigner, PointClusterLoss

# function, estimator, other names of one idea in the manner of scikit-learn
PAIRS = [
    (functional.kmeans, estimators.KMeans, {'num_iters': 'max_iter'}),
    (functional.kmedoids, estimators.KMedoids, {'num_iters': 'max_iter'}),
    (functional.spectral_clustering, estimators.SpectralClustering, {'num_neighbors': 'n_neighbors'}),
    (
        functional.graph_degree_linkage,
        estimators.GraphDegreeLinkage,
        {'num_neighbors': 'n_neighbors', 'num_candidates': 'n_candidates'},
    ),
    (functional.minibatch_kmeans_start, estimators.MiniBatchKMeans, {}),
    (functional.minibatch_kmeans_update, estimators.MiniBatchKMeans, {'move_ratio': 'reassignment_ratio'}),
    (functional.linkage, estimators.AgglomerativeClustering, {'method': 'linkage'}),
    (functional.kmedoids_swap, estimators.KMedoids, {'num_passes': 'max_iter'}),
    (PointClusterLoss, estimators.OnlineSubclassClusterer, {'num_clusters': 'n_clusters'}),
    (BalancedAssigner, estimators.OnlineSubclassClusterer, {'epsilon': 'sinkhorn_eps'}),
]

# What may differ: scikit-learn's own defaults, on which its users rely, where the function has another use.
ALLOWED = {
    ('kmeans', 'KMeans'): {'num_iters': (100, 300)},
    ('spectral_clustering', 'SpectralClustering'): {'num_neighbors': (None, 10)},  # None is 10
    ('linkage', 'AgglomerativeClustering'): {'method': ('average', 'ward')},
    # a network's features drift over many thousand steps, those of the estimator do not
    # and sinkhorn_eps is a former name there, of what BalancedAssigner has
    ('PointClusterLoss', 'OnlineSubclassClusterer'): {
        'num_clusters': (40, 10),
        'momentum': (0.9999, 0.9),
        'sinkhorn_eps': (None, 0.04),
    },
}


@pytest.mark.parametrize(('function', 'estimator', 'names'), PAIRS)
def test_defaults_agree(function, estimator, names):
    of_function = inspect.signature(function).parameters
    of_estimator = inspect.signature(estimator).parameters
    shared = {name: names.get(name, name) for name in of_function if names.get(name, name) in of_estimator}
    differ = {
        name: (of_function[name].default, of_estimator[other].default)
        for name, other in shared.items()
        if of_function[name].default is not inspect.Parameter.empty
        and of_function[name].default != of_estimator[other].default
    }
    assert shared
    assert differ == ALLOWED.get((function.__name__, estimator.__name__), {})
