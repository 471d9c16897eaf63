"""scikit-learn's own checks on every estimator."""

import pytest

sklearn_checks = pytest.importorskip('sklearn.utils.estimator_checks')

from clusterplug.estimators import (  # noqa: E402
    AgglomerativeClustering,
    KMeans,
    KMedoids,
    MiniBatchKMeans,
    SpectralClustering,
)

ESTIMATORS = [
    KMeans(3, max_iter=20),
    MiniBatchKMeans(3, max_iter=5, batch_size=50),
    KMedoids(3),
    KMedoids(3, method='swap'),
    SpectralClustering(3),
    AgglomerativeClustering(3),
]


def expected_failures(estimator):
    """Checks that cannot hold, each with the reason."""
    if isinstance(estimator, KMeans | MiniBatchKMeans):
        reason = 'k-means++ draws from other points when samples are repeated; scikit-learn exempts its own KMeans too'
        return {'check_sample_weight_equivalence_on_dense_data': reason}
    return {}


@sklearn_checks.parametrize_with_checks(ESTIMATORS, expected_failed_checks=expected_failures)
def test_scikit_learn_convention(estimator, check):
    check(estimator)
