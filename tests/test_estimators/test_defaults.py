"""A function and the estimator built on it start from the same defaults."""

import inspect

import pytest

from clusterplug import estimators, functional

# function, estimator, other names of one idea in the manner of scikit-learn
PAIRS = [
    (functional.kmeans, estimators.KMeans, {'num_iters': 'max_iter'}),
    (functional.kmedoids, estimators.KMedoids, {'num_iters': 'max_iter'}),
    (functional.spectral_clustering, estimators.SpectralClustering, {}),
    (functional.minibatch_kmeans_start, estimators.MiniBatchKMeans, {}),
    (functional.minibatch_kmeans_update, estimators.MiniBatchKMeans, {}),
]


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
    # scikit-learn's own number of iterations, which its users rely on
    differ.pop('num_iters', None)
    assert not differ
