# SPDX-License-Identifier: Apache-2.0
"""k-means as an estimator."""

from typing import Any

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_number
from clusterplug.estimators._arrays import (
    Points,
    as_tensor_beside,
    check_parameter,
    make_generator,
    read_points,
    read_weights,
)
from clusterplug.estimators._base import Clusterer, TransformerMixin
from clusterplug.functional.distance import pairwise_distances
from clusterplug.functional.kmeans import kmeans, nearest_center


class CenterClusterer(TransformerMixin, Clusterer):
    """Base of the estimators whose clusters are the points nearest to a center."""

    init: Any  # set by the constructors
    cluster_centers_: Any

    def predict(self, X: Any) -> Any:
        """Return the nearest center of each sample of ``X`` (N, D): (N,) int64."""
        points, centers = self._beside_centers(X)
        return points.like(nearest_center(points.tensor, centers)[0])

    def transform(self, X: Any) -> Any:
        """Return the Euclidean distance of each sample to each center, (N, K)."""
        points, centers = self._beside_centers(X)
        return points.like(pairwise_distances(points.tensor, centers))

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return minus the sum of squared distances of ``X`` to the nearest centers: higher is better."""
        points, centers = self._beside_centers(X)
        squared = nearest_center(points.tensor, centers)[1]
        return -sum_of_squares(squared, read_weights(sample_weight, points))

    def _label(self, points: Points, weights: Tensor | None) -> None:
        """Set labels and inertia to what ``predict`` and ``-score`` give: the same operations on the same numbers."""
        centers = torch.as_tensor(self.cluster_centers_, device=points.tensor.device)
        labels, squared = nearest_center(points.tensor, centers)
        self.labels_, self.inertia_ = points.like(labels), sum_of_squares(squared, weights)

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    def _beside_centers(self, X: Any) -> tuple[Points, Tensor]:
        self._check_fitted()
        points = read_points(self, X, reset=False)
        return points, torch.as_tensor(self.cluster_centers_, device=points.tensor.device).to(points.tensor.dtype)

    def _start(self, points: Tensor) -> str | Tensor:
        if isinstance(self.init, str):
            return self.init
        centers = as_tensor_beside(self.init, points, 'init')
        if centers.shape != (self.n_clusters, points.shape[1]):
            raise ValueError(
                f'init must have shape {(self.n_clusters, points.shape[1])}, got {tuple(centers.shape)}; '
                f'give one center for each cluster'
            )
        return centers


def sum_of_squares(squared: Tensor, weights: Tensor | None) -> float:
    """Return the sum of weight x squared distance, summed in float64."""
    return float((squared if weights is None else squared * weights).double().sum())


def check_enough(num_samples: int, num_clusters: int) -> None:
    """Raise if there are fewer samples than clusters."""
    if num_samples < num_clusters:
        raise ValueError(f'n_samples={num_samples} should be >= n_clusters={num_clusters}; ask for fewer clusters')


class KMeans(CenterClusterer):
    """k-means clustering of NumPy arrays or tensors, on the device of the data.

    A thin estimator over :func:`clusterplug.functional.kmeans`, whose docstring has the method.

    Args:
        n_clusters: K.
        init: ``'k-means++'``, ``'kkz'`` (deterministic), or an array (K, D).
        n_init: Starts to try with ``'k-means++'``; the lowest inertia is kept.
        max_iter: Most iterations of a start.
        tol: A start ends when the centers move by less, relative to the variance of the data; 0: only when they
            stand still or at ``max_iter``.
        random_state: None, an int, a NumPy or a torch generator.
        verbose: 1 prints a line for each start.

    Attributes:
        cluster_centers_: (K, D). labels_: (N,). inertia_: float, sum of squared distances. n_iter_: int.
        n_features_in_: D. All arrays are of the kind, and tensors on the device, of the data.

    Example:
        >>> import numpy as np
        >>> X = np.array([[0.0, 0], [0, 2], [6, 1], [6, 3], [6, 5]])
        >>> model = KMeans(2, init='kkz').fit(X)
        >>> sorted(model.cluster_centers_.tolist()), model.inertia_
        ([[0.0, 1.0], [6.0, 3.0]], 10.0)
        >>> bool(model.predict(np.array([[0.0, 0.0]]))[0] == model.labels_[0])
        True
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = 'k-means++',
        n_init: int = 1,
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> 'KMeans':
        """Cluster ``X`` (N, D), with ``sample_weight`` (N,) if given. ``y`` is ignored."""
        for name in ('n_clusters', 'n_init', 'max_iter'):
            check_parameter(check_count, getattr(self, name), name, 1)
        check_parameter(check_number, self.tol, 'tol', 0)
        points = read_points(self, X, reset=True)
        check_enough(len(points.tensor), self.n_clusters)
        weights = read_weights(sample_weight, points)
        generator = make_generator(self.random_state, points.tensor.device)
        start = self._start(points.tensor)
        starts = self.n_init if isinstance(start, str) and start == 'k-means++' else 1
        best = None
        for number in range(1, starts + 1):
            result = kmeans(
                points.tensor,
                int(self.n_clusters),
                init=start,
                num_iters=int(self.max_iter),
                # 0 would mean the form that never looks at the data; what is meant here is: until nothing moves.
                tol=max(float(self.tol), 1e-12),
                weights=weights,
                generator=generator,
            )
            self._report(f'start {number} of {starts}: {int(result.num_iters)} iterations, {float(result.inertia):.6g}')
            if best is None or result.inertia < best.inertia:
                best = result
        assert best is not None, 'n_init is at least 1'
        self.cluster_centers_ = points.like(best.centers)
        self.n_iter_ = int(best.num_iters)
        self._label(points, weights)
        self._warn_if_fewer(self.labels_)
        return self
