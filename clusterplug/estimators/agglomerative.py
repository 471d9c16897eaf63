# SPDX-License-Identifier: Apache-2.0
"""Agglomerative clustering as an estimator."""

from typing import Any

import torch

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.estimators._arrays import check_parameter, read_points
from clusterplug.estimators._base import Clusterer
from clusterplug.estimators.kmeans import check_enough
from clusterplug.functional.graph import cut_linkage, cut_linkage_at, linkage


class AgglomerativeClustering(Clusterer):
    """Agglomerative clustering of NumPy arrays or tensors, on the device of the data. Deterministic.

    A thin estimator over :func:`clusterplug.functional.linkage`.

    Args:
        n_clusters: K, or None with ``distance_threshold``.
        metric: ``'euclidean'``, ``'cosine'`` or ``'precomputed'`` (X holds distances).
        linkage: ``'ward'``, ``'average'``, ``'complete'`` or ``'single'``.
        distance_threshold: Merge below this height instead of down to K clusters.
        verbose: 1 prints a line at the end.

    Attributes:
        labels_: (N,). children_: (N - 1, 2). distances_: (N - 1,) heights of the merges. n_clusters_: int.
        n_leaves_: N. n_features_in_: D.

    Example:
        >>> import numpy as np
        >>> AgglomerativeClustering(2).fit_predict(np.array([[0.0], [1.0], [9.0], [9.5]])).tolist()
        [0, 0, 1, 1]
    """

    def __init__(
        self,
        n_clusters: int | None = 2,
        *,
        metric: str = 'euclidean',
        linkage: str = 'ward',
        distance_threshold: float | None = None,
        verbose: int = 0,
    ):
        self.n_clusters = n_clusters
        self.metric = metric
        self.linkage = linkage
        self.distance_threshold = distance_threshold
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> 'AgglomerativeClustering':
        """Cluster ``X``, (N, D) or (N, N) distances. ``y`` is ignored."""
        if (self.n_clusters is None) == (self.distance_threshold is None):
            raise ValueError(
                f'exactly one of n_clusters and distance_threshold must be None, got {self.n_clusters!r} and '
                f'{self.distance_threshold!r}'
            )
        if self.n_clusters is not None:
            check_parameter(check_count, self.n_clusters, 'n_clusters', 1)
        else:
            check_parameter(check_number, self.distance_threshold, 'distance_threshold', 0)
        check_parameter(check_choice, self.linkage, 'linkage', ('ward', 'average', 'complete', 'single'))
        check_parameter(check_choice, self.metric, 'metric', ('euclidean', 'cosine', 'precomputed'))
        if self.linkage == 'ward' and self.metric == 'cosine':
            raise ValueError(
                "linkage='ward' needs Euclidean distances, got metric='cosine'; normalize X and use 'euclidean'"
            )
        points = read_points(self, X, reset=True)
        if len(points.tensor) < 2:
            raise ValueError('X must hold at least 2 samples, got 1 sample (n_samples=1)')
        check_enough(len(points.tensor), self.n_clusters or 1)
        tree = linkage(points.tensor, method=self.linkage, metric=self.metric)
        if self.n_clusters is not None:
            labels = cut_linkage(tree, int(self.n_clusters))
        else:
            # A merge AT the threshold does not take place, as in scikit-learn; the function, as scipy, does it.
            assert self.distance_threshold is not None, 'one of the two was given'
            height = torch.tensor(float(self.distance_threshold), dtype=tree.heights.dtype, device='cpu')
            labels = cut_linkage_at(tree, float(torch.nextafter(height, torch.full_like(height, -torch.inf))))
        self.labels_ = points.like(labels)
        self.children_ = points.like(tree.children)
        self.distances_ = points.like(tree.heights)
        self.n_clusters_ = int(labels.max()) + 1
        self.n_leaves_ = len(points.tensor)
        self._report(f'{self.n_leaves_} samples in {self.n_clusters_} clusters')
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.metric == 'precomputed'
        return tags
