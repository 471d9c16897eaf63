# SPDX-License-Identifier: Apache-2.0
"""Consensus of several labelings of the same samples."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from clusterplug.core.checks import check_choice, check_count
from clusterplug.estimators._arrays import Points, check_parameter
from clusterplug.estimators._base import Clusterer
from clusterplug.estimators._views import NORMALIZATIONS, normalized, read_views, varying
from clusterplug.estimators.kmeans import KMeans, check_enough
from clusterplug.functional import co_association, cut_linkage, graph_degree_linkage, linkage, normalized_mutual_info

__all__ = ['CoAssociation']

BASES = ('agglomerative', 'kmeans', 'gdl', 'precomputed')


class CoAssociation(Clusterer):
    """Cluster every view of the samples, count how often two samples meet, and cut the tree of that.

    The baseline that a network over several extractors has to beat (MVEC). The distance of two samples is one minus
    the share of views in which they have the same label (:func:`clusterplug.functional.co_association`).

    Args:
        n_clusters: K, of each view and of the result.
        base: ``'agglomerative'`` (Ward), ``'kmeans'`` or ``'gdl'`` of each view; or ``'precomputed'``: X holds labels
            (V, N), negative where a labeling says nothing.
        linkage: ``'average'``, ``'complete'`` or ``'single'``.
        normalize: ``'l2'`` (rows of length 1), ``'standard'`` or None.
        random_state: For ``'kmeans'``.
        verbose: 1 prints a line for each view.

    Attributes:
        labels_: (N,) int64. view_labels_: (V, N). view_names_: list. agreement_: (V, V) normalized mutual information
            between the labels of the views, which shows what complements what. Memory is O(N^2).

    Source: Guerin et al., "Combining pretrained CNN feature extractors", Neurocomputing 2021, baseline MVEC.

    Example:
        >>> import numpy as np
        >>> views = [np.array([[0.0], [0.1], [5.0], [5.1]]), np.array([[1.0], [1.1], [9.0], [9.2]])]
        >>> CoAssociation(2, normalize=None).fit_predict(views).tolist()
        [0, 0, 1, 1]
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        base: str = 'agglomerative',
        linkage: str = 'average',
        normalize: str | None = 'l2',
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.n_clusters = n_clusters
        self.base = base
        self.linkage = linkage
        self.normalize = normalize
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> 'CoAssociation':
        """Cluster the views ``X``: a list or dict of arrays (N, D_v), one array (N, D), or labels (V, N)."""
        check_parameter(check_count, self.n_clusters, 'n_clusters', 1)
        check_parameter(check_choice, self.base, 'base', BASES)
        check_parameter(check_choice, self.linkage, 'linkage', ('average', 'complete', 'single'))
        if self.normalize not in NORMALIZATIONS:
            check_parameter(check_choice, self.normalize, 'normalize', ('l2', 'standard'), ' or None')
        if self.base == 'precomputed':
            labels, points = _read_labels(X)
            self.view_names_ = [str(number) for number in range(len(labels))]
        else:
            names, views = read_views(X)
            points = views[0]
            check_enough(len(points.tensor), self.n_clusters)
            kept = varying(names, views)
            self.view_names_ = [names[number] for number in kept]
            labels = torch.stack([self._label(names[number], views[number].tensor).cpu() for number in kept])
        count = labels.shape[1]
        check_enough(count, self.n_clusters)
        if count > 1:
            tree = linkage(1 - co_association(labels), method=self.linkage, metric='precomputed')
            found = cut_linkage(tree, int(self.n_clusters))
        else:
            found = torch.zeros(1, dtype=torch.int64)
        device = points.tensor.device
        self.labels_, self.view_labels_ = points.like(found.to(device)), points.like(labels.to(device))
        agreement = [[float(normalized_mutual_info(one, other)) for other in labels] for one in labels]
        self.agreement_ = points.like(torch.tensor(agreement, device=device))
        return self

    def _label(self, name: str, view: Tensor) -> Tensor:
        x = normalized(view, self.normalize)
        clusters = int(self.n_clusters)
        if self.base == 'kmeans':
            labels = KMeans(clusters, n_init=10, random_state=self.random_state).fit(x).labels_
        elif self.base == 'gdl' and len(x) > 1:
            labels = graph_degree_linkage(x, clusters, num_neighbors=min(20, len(x) - 1))
        else:
            labels = cut_linkage(linkage(x, method='ward'), clusters)
        self._report(f'view {name}: {int(labels.max()) + 1} clusters')
        return labels


def _read_labels(X: Any) -> tuple[Tensor, Points]:
    tensor = X if isinstance(X, Tensor) else torch.from_numpy(np.array(X))
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dim() != 2 or 0 in tensor.shape:
        raise ValueError(f'X must hold integer labels (V, N), got shape {tuple(tensor.shape)} of {tensor.dtype}')
    return tensor.long().cpu(), Points(tensor, isinstance(X, Tensor))
