# SPDX-License-Identifier: Apache-2.0
"""k-medoids as an estimator."""

from typing import Any

import torch

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.estimators._arrays import as_tensor_beside, check_parameter, read_points
from clusterplug.estimators._base import Clusterer, TransformerMixin
from clusterplug.estimators.kmeans import check_enough
from clusterplug.functional.distance import pairwise_distances
from clusterplug.functional.kmedoids import kmedoids, kmedoids_swap

_METHODS = ('alternate', 'swap')
_METRICS = ('euclidean', 'cosine', 'precomputed')


class KMedoids(TransformerMixin, Clusterer):
    """k-medoids clustering of NumPy arrays or tensors, on the device of the data. Deterministic.

    A thin estimator over :func:`clusterplug.functional.kmedoids` and ``kmedoids_swap``.

    Args:
        n_clusters: K.
        metric: ``'euclidean'``, ``'cosine'`` or ``'precomputed'`` (X holds distances).
        init: ``'kkz'`` or K indices of the first medoids.
        method: ``'alternate'`` (fast) or ``'swap'`` (the cost of FasterPAM).
        max_iter: Most rounds (``'alternate'``) or passes (``'swap'``).
        tol: For ``'alternate'``: ends when the medoids move by at most this share of the cost.
        verbose: 1 prints a line at the end.

    Attributes:
        medoid_indices_: (K,) ascending. cluster_centers_: (K, D) the medoids themselves; None for ``'precomputed'``.
        labels_: (N,). inertia_: float, sum of distances to the medoids. n_iter_: int. n_features_in_: D.

    Example:
        >>> import numpy as np
        >>> model = KMedoids(2).fit(np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [15.0]]))
        >>> model.medoid_indices_.tolist(), model.inertia_
        ([1, 4], 7.0)
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        metric: str = 'euclidean',
        init: Any = 'kkz',
        method: str = 'alternate',
        max_iter: int = 100,
        tol: float = 1e-6,
        verbose: int = 0,
    ):
        self.n_clusters = n_clusters
        self.metric = metric
        self.init = init
        self.method = method
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> 'KMedoids':
        """Cluster ``X``, (N, D) or (N, N) distances. ``y`` is ignored."""
        check_parameter(check_count, self.n_clusters, 'n_clusters', 1)
        check_parameter(check_count, self.max_iter, 'max_iter', 1)
        check_parameter(check_number, self.tol, 'tol', 0)
        check_parameter(check_choice, self.method, 'method', _METHODS)
        check_parameter(check_choice, self.metric, 'metric', _METRICS)
        points = read_points(self, X, reset=True)
        check_enough(len(points.tensor), self.n_clusters)
        init = self.init
        if not isinstance(init, str):
            init = as_tensor_beside(init, points.tensor, 'init').to(torch.int64)
        options = {'metric': self.metric, 'init': init}
        if self.method == 'swap':
            result = kmedoids_swap(points.tensor, int(self.n_clusters), num_passes=int(self.max_iter), **options)
        else:
            # 0 would mean the form that never looks at the data; what is meant here is: until nothing moves.
            tol = max(float(self.tol), 1e-12)
            num_clusters, rounds = int(self.n_clusters), int(self.max_iter)
            result = kmedoids(points.tensor, num_clusters, num_iters=rounds, tol=tol, **options)
        self.medoid_indices_ = points.like(result.medoids)
        precomputed = self.metric == 'precomputed'
        self.cluster_centers_ = None if precomputed else points.like(points.tensor[result.medoids])
        # The function compares distances in fp32 at least, and keeps a medoid in its own cluster though another is the
        # same point; predict compares those in the type of X. One rule for both.
        nearest, labels = self._to_medoids(X)[1].min(-1)
        cost = nearest.double().sum() if points.tensor.element_size() < 4 else result.cost
        self.labels_, self.inertia_ = points.like(labels), float(cost)
        self.n_iter_ = int(result.num_iters)
        self._warn_if_fewer(self.labels_)
        self._report(f'{self.n_iter_} rounds, cost {self.inertia_:.6g}')
        return self

    def predict(self, X: Any) -> Any:
        """Return the nearest medoid of each sample, (M,); ``'precomputed'``: X holds distances to the N samples."""
        points, distances = self._to_medoids(X)
        return points.like(distances.argmin(-1))

    def transform(self, X: Any) -> Any:
        """Return the distance of each sample to each medoid, (M, K)."""
        points, distances = self._to_medoids(X)
        return points.like(distances)

    @property
    def _n_features_out(self) -> int:
        return len(self.medoid_indices_)

    def _to_medoids(self, X: Any) -> tuple:
        self._check_fitted()
        points = read_points(self, X, reset=False)
        if self.metric == 'precomputed':
            return points, points.tensor[:, torch.as_tensor(self.medoid_indices_, device=points.tensor.device)]
        centers = torch.as_tensor(self.cluster_centers_, device=points.tensor.device).to(points.tensor.dtype)
        return points, pairwise_distances(points.tensor, centers, metric=self.metric)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.metric == 'precomputed'
        return tags
