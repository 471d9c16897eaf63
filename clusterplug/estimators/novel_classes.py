# SPDX-License-Identifier: Apache-2.0
"""Discovery of classes that nobody labeled, with the help of known ones: k-means and spectral clustering."""

from typing import Any

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_number
from clusterplug.estimators._arrays import as_tensor_beside, check_parameter, read_points
from clusterplug.estimators._base import Clusterer
from clusterplug.estimators._novel import (
    check_common,
    class_means,
    generator_of,
    novel_kmeans,
    number_of_clusters,
    numbered,
    read_split,
)
from clusterplug.functional import (
    KNNGraph,
    affinity,
    knn_graph,
    minimum_spanning_scale,
    nearest_center,
    spectral_embedding,
)


class NovelClassKMeans(Clusterer):
    """k-means on the unlabeled samples whose starts keep away from the means of the known classes.

    It solves novel class discovery with a clean split: unlabeled samples belong to novel classes only. Known means
    are fixed and only guide the starts; the iterations, and ``predict``, use novel centers alone.

    Args:
        n_clusters: Number of novel classes; ``'auto'`` estimates it by the silhouette.
        n_init: Starts; the one with the lowest inertia is kept.
        power: 1: starts are drawn in proportion to distances and the inertia is their sum; 2: squared distances (plain
            k-means++). The authors' text says 2, their code does 1, and 1 is better: digits .955 against .798.
        max_iter: Maximum number of iterations of a start.
        tol: A start ends when the centers move by less, relative to the variance of the samples.
        random_state: None, an int, a NumPy or a torch generator.
        verbose: 1 prints a line at the end.

    Attributes:
        cluster_centers_: (K, D) of the novel classes. labels_: (N,) known labels as given, clusters numbered after the
            largest of them. n_clusters_: K. classes_: known classes. known_centers_: their means. inertia_: float.
            n_iter_: int.

    Raises:
        ValueError: No unlabeled samples (y = -1), fewer of them than clusters, y that are no integers.

    Source: Troisemaine, Reiffers-Masson, Gosselin, Lemaire and Vaton, "A Practical Approach to Novel Class Discovery
    in Tabular Data", Data Mining and Knowledge Discovery 2024, arXiv 2311.05440; official code ColinTr/PracticalNCD
    (MIT). **Differs from the authors' code**: all starts as one batch, distances to the nearest center updated instead
    of recomputed.

    Example:
        >>> import numpy as np
        >>> X = np.array([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1]])
        >>> NovelClassKMeans(2, random_state=0).fit_predict(X, [0, 0, -1, -1, -1, -1]).tolist() in (
        ...     [0, 0, 1, 1, 2, 2], [0, 0, 2, 2, 1, 1])
        True
    """

    def __init__(
        self,
        n_clusters: Any = 8,
        *,
        n_init: int = 10,
        power: int = 1,
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.n_clusters = n_clusters
        self.n_init = n_init
        self.power = power
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> 'NovelClassKMeans':
        """Cluster the rows of ``X`` (N, D) where ``y`` is -1 (None: all rows)."""
        check_common(self)
        split = read_split(self, X, y)
        x = split.points.tensor
        known = class_means(x[~split.novel], split.labels[~split.novel], split.classes)
        novel = x[split.novel]
        self.n_clusters_ = number_of_clusters(self, novel)
        centers, labels, self.inertia_, self.n_iter_ = novel_kmeans(
            novel, self.n_clusters_, known, self.power, int(self.n_init), int(self.max_iter), float(self.tol),
            generator_of(self, x.device),
        )  # fmt: skip
        self.cluster_centers_, self.known_centers_ = split.points.like(centers), split.points.like(known)
        self.classes_ = split.points.like(split.classes)
        self.labels_, self.first_label_ = numbered(split, labels)
        self._report(f'{len(novel)} samples in {self.n_clusters_} novel classes, {self.n_iter_} iterations')
        return self

    def fit_predict(self, X: Any, y: Any = None) -> Any:
        """Fit and return ``labels_``."""
        return self.fit(X, y).labels_

    def predict(self, X: Any) -> Any:
        """Return the nearest novel cluster of each sample, in the numbers of ``labels_``."""
        self._check_fitted()
        points = read_points(self, X, reset=False)
        centers = as_tensor_beside(self.cluster_centers_, points.tensor, 'cluster_centers_')
        return points.like(nearest_center(points.tensor, centers)[0] + self.first_label_)


class NovelClassSpectral(Clusterer):
    """Spectral clustering of known and unlabeled samples together, then k-means that keeps away from known classes.

    The width of the heat kernel follows from the longest edge of the minimum spanning tree
    (:func:`clusterplug.functional.minimum_spanning_scale`); the embedding is of the eigenvectors 2 ... u + 1 of the
    normalized Laplacian. The labels are those of the samples of ``fit``: there is no ``predict``.

    Args:
        n_clusters: Number of novel classes; ``'auto'`` estimates it in the embedding.
        similarity: Kernel value of the longest edge of the tree, in (0, 1).
        n_components: u; None = novel + known classes.
        n_neighbors: None: all pairs, O(N^2) memory; a number: only edges to so many neighbors (the sample itself
            counted), for large sets.
        n_init: Starts of k-means in the embedding.
        power: See :class:`NovelClassKMeans`.
        max_iter: Maximum number of iterations of a start.
        tol: See :class:`NovelClassKMeans`.
        random_state: None, an int, a NumPy or a torch generator.
        verbose: 1 prints a line at the end.

    Attributes:
        labels_: (N,) known labels as given, clusters numbered after the largest of them. embedding_: (N, u).
            n_clusters_: K. sigma_: width of the kernel. classes_: known classes. inertia_: float. n_iter_: int.

    Raises:
        ValueError: As :class:`NovelClassKMeans`; all samples equal; too few samples for u eigenvectors.

    Source: as :class:`NovelClassKMeans`. **Differs from the authors' code**: ``similarity`` is that of the longest
    edge (theirs gets the square root of ``min_dist``); iterative eigensolvers and sparse graphs for large sets.

    Example:
        >>> import numpy as np
        >>> X = np.concatenate([np.arange(9.0), np.arange(40.0, 49.0), np.arange(80.0, 89.0)])[:, None]
        >>> y = [0] * 9 + [-1] * 18
        >>> labels = NovelClassSpectral(2, random_state=0).fit_predict(X, y)
        >>> [len(set(labels[i : i + 9])) for i in (9, 18)], len(set(labels))
        ([1, 1], 3)
    """

    def __init__(
        self,
        n_clusters: Any = 8,
        *,
        similarity: float = 0.5,
        n_components: int | None = None,
        n_neighbors: int | None = None,
        n_init: int = 10,
        power: int = 1,
        max_iter: int = 1000,
        tol: float = 1e-10,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.n_clusters = n_clusters
        self.similarity = similarity
        self.n_components = n_components
        self.n_neighbors = n_neighbors
        self.n_init = n_init
        self.power = power
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> 'NovelClassSpectral':
        """Cluster the rows of ``X`` (N, D) where ``y`` is -1 (None: all rows)."""
        check_common(self)
        check_parameter(check_number, self.similarity, 'similarity', 0, 1)
        if self.n_clusters == 'auto' and self.n_components is None:
            raise ValueError("n_components must be a number where n_clusters='auto', from which it would follow")
        split = read_split(self, X, y)
        x = split.points.tensor
        if self.n_clusters != 'auto':
            number_of_clusters(self, x[split.novel])  # before what is asked of the embedding
        graph, self.sigma_ = self._graph(x)
        width = self.n_components if self.n_components is not None else int(self.n_clusters) + len(split.classes)
        width = check_parameter(check_count, width, 'n_components', 1, max(1, len(x) - 1))
        z = spectral_embedding(graph, width)
        assert isinstance(z, Tensor), 'no full output was asked for'
        known = class_means(z[~split.novel], split.labels[~split.novel], split.classes)
        novel = z[split.novel]
        self.n_clusters_ = number_of_clusters(self, novel)
        _, labels, self.inertia_, self.n_iter_ = novel_kmeans(
            novel, self.n_clusters_, known, self.power, int(self.n_init), int(self.max_iter), float(self.tol),
            generator_of(self, x.device),
        )  # fmt: skip
        self.embedding_, self.classes_ = split.points.like(z), split.points.like(split.classes)
        self.labels_, self.first_label_ = numbered(split, labels)
        self._report(f'{len(novel)} samples in {self.n_clusters_} novel classes')
        return self

    def fit_predict(self, X: Any, y: Any = None) -> Any:
        """Fit and return ``labels_``."""
        return self.fit(X, y).labels_

    def _graph(self, x: torch.Tensor) -> tuple[Any, float]:
        sigma = float(minimum_spanning_scale(x, float(self.similarity)))
        if sigma == 0:
            raise ValueError('X must hold at least two different samples, got one that repeats')
        if self.n_neighbors is None:
            return affinity(x, sigma=sigma), sigma
        count = check_parameter(check_count, self.n_neighbors, 'n_neighbors', 2, len(x))
        found = knn_graph(x, count - 1, mode='heat', sigma=sigma)
        return KNNGraph(*found), sigma
