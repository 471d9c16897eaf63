# SPDX-License-Identifier: Apache-2.0
"""Graph degree linkage as an estimator."""

from typing import Any

from clusterplug.core.checks import check_choice, check_count
from clusterplug.estimators._arrays import check_parameter, read_points
from clusterplug.estimators._base import Clusterer
from clusterplug.estimators.kmeans import check_enough
from clusterplug.functional import graph_degree_linkage

__all__ = ['GraphDegreeLinkage']


class GraphDegreeLinkage(Clusterer):
    """Agglomerative clustering by the degrees of a nearest-neighbor graph. Deterministic.

    A thin estimator over :func:`clusterplug.functional.graph_degree_linkage`, whose docstring has the method.

    Args:
        n_clusters: K.
        n_neighbors: Of the graph; at most N - 1 are used.
        n_candidates: Affinities that a merge looks at; 1 takes the largest alone.
        metric: ``'euclidean'`` or ``'cosine'``.
        verbose: 1 prints a line at the end.

    Attributes:
        labels_: (N,) int64. n_features_in_: D.

    Example:
        >>> import numpy as np
        >>> GraphDegreeLinkage(2).fit_predict(np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.3]])).tolist()
        [0, 0, 0, 1, 1, 1]
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        n_neighbors: int = 20,
        n_candidates: int = 5,
        metric: str = 'euclidean',
        verbose: int = 0,
    ):
        self.n_clusters = n_clusters
        self.n_neighbors = n_neighbors
        self.n_candidates = n_candidates
        self.metric = metric
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> 'GraphDegreeLinkage':
        """Cluster ``X`` (N, D). ``y`` is ignored."""
        for name in ('n_clusters', 'n_neighbors', 'n_candidates'):
            check_parameter(check_count, getattr(self, name), name, 1)
        check_parameter(check_choice, self.metric, 'metric', ('euclidean', 'cosine'))
        points = read_points(self, X, reset=True)
        count = len(points.tensor)
        check_enough(count, self.n_clusters)
        labels = graph_degree_linkage(
            points.tensor,
            int(self.n_clusters),
            num_neighbors=max(1, min(int(self.n_neighbors), count - 1)),
            num_candidates=int(self.n_candidates),
            metric=self.metric,
        )
        self.labels_ = points.like(labels)
        self._report(f'{count} samples in {int(labels.max()) + 1} clusters')
        return self
