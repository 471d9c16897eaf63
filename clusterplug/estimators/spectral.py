# SPDX-License-Identifier: Apache-2.0
"""Spectral clustering as an estimator."""

from typing import Any

from clusterplug.core.checks import check_count
from clusterplug.estimators._arrays import check_parameter, read_points
from clusterplug.estimators._base import Clusterer
from clusterplug.estimators.kmeans import check_enough
from clusterplug.functional.graph import spectral_clustering


class SpectralClustering(Clusterer):
    """Spectral clustering of NumPy arrays or tensors, on the device of the data. Deterministic.

    A thin estimator over :func:`clusterplug.functional.spectral_clustering`. The width of the weights is
    local by default, since the unit of X is not known here.

    Args:
        n_clusters: K.
        affinity: ``'knn'``, ``'heat'`` or ``'precomputed'`` (X holds weights).
        sigma: ``'local'`` or a number.
        n_neighbors: For ``'knn'``, the sample itself counted; cut to the number of samples.
        solver: ``'auto'``, ``'eigh'`` or ``'subspace'``.
        verbose: 1 prints a line at the end.

    Attributes:
        labels_: (N,). medoid_indices_: (K,) one sample of each cluster. n_features_in_: D.

    Example:
        >>> import numpy as np
        >>> X = np.concatenate([np.arange(9.0), np.arange(100.0, 109.0)])[:, None]
        >>> SpectralClustering(2, n_neighbors=3).fit_predict(X).tolist() == [0] * 9 + [1] * 9
        True
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        affinity: str = 'knn',
        sigma: Any = 'local',
        n_neighbors: int = 10,
        solver: str = 'auto',
        verbose: int = 0,
    ):
        self.n_clusters = n_clusters
        self.affinity = affinity
        self.sigma = sigma
        self.n_neighbors = n_neighbors
        self.solver = solver
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> 'SpectralClustering':
        """Cluster ``X``, (N, D) or (N, N) weights. ``y`` is ignored."""
        check_parameter(check_count, self.n_clusters, 'n_clusters', 1)
        check_parameter(check_count, self.n_neighbors, 'n_neighbors', 1)
        points = read_points(self, X, reset=True)
        check_enough(len(points.tensor), self.n_clusters)
        if self.affinity == 'precomputed' and bool((points.tensor < 0).any()):
            raise ValueError("X must hold non-negative weights for affinity='precomputed', got negative ones")
        result = spectral_clustering(
            points.tensor,
            int(self.n_clusters),
            affinity=self.affinity,
            sigma=self.sigma,
            num_neighbors=min(int(self.n_neighbors), len(points.tensor)),
            solver=self.solver,
        )
        self.labels_ = points.like(result.labels)
        self.medoid_indices_ = points.like(result.medoids)
        self._warn_if_fewer(self.labels_)
        self._report(f'{len(points.tensor)} samples in {self.n_clusters} clusters')
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = tags.input_tags.positive_only = self.affinity == 'precomputed'
        return tags
