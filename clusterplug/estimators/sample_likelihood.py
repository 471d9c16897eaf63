# SPDX-License-Identifier: Apache-2.0
"""How common the appearance of each sample of a data set is, and the weight that follows from it."""

import json
import warnings
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.core.files import whole_file
from clusterplug.estimators._appearance import (
    CLUSTERERS,
    REDUCERS,
    cluster,
    content_order,
    need_sklearn,
    neighbor_distances,
    reduce,
)
from clusterplug.estimators._base import BaseEstimator
from clusterplug.functional import likelihood_weights

NOISE = ('singleton', 'cluster')
FORMAT = 'clusterplug.sample_likelihood'


class SampleLikelihood(BaseEstimator):
    r"""Likelihood of the appearance of each sample: the size of its cluster over that of the largest.

    .. math:: p_i = |c(i)| / \max_c |c|, \qquad
              w_i = \frac{\eta + (1 - p_i)^\gamma}{\eta + 1}.

    From labels that are known (:meth:`from_labels`), or from features: reduced by PCA or t-SNE, clustered by HDBSCAN,
    DBSCAN, k-means, or without clusters from the distance r to the k-th neighbor, p = q / max(r, q) with the 5 %
    quantile q of these distances. Rows are put in the order of their content first, so that the order in which they
    come does not matter, whatever the seed does. Fit the training split only: validation samples that shape the
    weights are a leak.

    Args:
        cluster: ``'hdbscan'``, ``'dbscan'``, ``'kmeans'`` or ``'knn'``.
        reducer: ``'pca'``, ``'tsne'`` or ``'none'``.
        n_components: Dimensions after it; None: 50 for PCA, 3 for t-SNE.
        noise: What a label of -1 means: ``'singleton'``: a cluster of its own, so p = 1 / largest; ``'cluster'``: all
            of them one cluster, as in the authors' code.
        n_clusters: Of k-means.
        n_neighbors: k of ``'knn'``.
        eps: Radius of DBSCAN, in units of what the reducer gives.
        min_samples: Of DBSCAN; of HDBSCAN also the smallest cluster.
        perplexity: Of t-SNE.
        max_iter: Of t-SNE.
        random_state: Seed of t-SNE and of k-means.

    Attributes:
        likelihood_: (N,) float64 p of each sample. labels_: (N,) int64 cluster, -1 = noise (``'knn'``: none).
        ids_: list of the N ids. embedding_: (N, d) reduced features, where it was fitted to features.

    Raises:
        ValueError: Features that are not finite, an id that comes twice, all samples noise. One cluster for all is a
            warning: all weights are equal.

    Source: Shrivastava et al., "DatasetEquity", ICCV 2023 Workshops (arXiv 2308.09878); official code
    towardsautonomy/DatasetEquity (no license): t-SNE to 3 dimensions, DBSCAN with eps 1 and min_samples 10, seed 33.

    **Differs from the authors' code**: noise is rare by default; in theirs it is one cluster, and where that is the
    largest all outliers get the lowest weight. The default clusterer needs no radius in a space without scale.

    Example:
        >>> known = SampleLikelihood.from_labels([0, 0, 0, 0, 1, -1])
        >>> known.likelihood_.tolist()
        [1.0, 1.0, 1.0, 1.0, 0.25, 0.25]
        >>> known.weights(eta=0.5, gamma=5.0).round(3).tolist()
        [0.333, 0.333, 0.333, 0.333, 0.492, 0.492]
    """

    _is_torch: bool
    key_: Any  # of a file, as ``about_``
    about_: Any

    def __init__(
        self,
        cluster: str = 'hdbscan',
        reducer: str = 'pca',
        n_components: int | None = None,
        *,
        noise: str = 'singleton',
        n_clusters: int = 50,
        n_neighbors: int = 10,
        eps: float = 1.0,
        min_samples: int = 10,
        perplexity: float = 40.0,
        max_iter: int = 500,
        random_state: int = 33,
    ):
        self.cluster = cluster
        self.reducer = reducer
        self.n_components = n_components
        self.noise = noise
        self.n_clusters = n_clusters
        self.n_neighbors = n_neighbors
        self.eps = eps
        self.min_samples = min_samples
        self.perplexity = perplexity
        self.max_iter = max_iter
        self.random_state = random_state

    @classmethod
    def from_labels(
        cls, labels: Any, noise: str = 'singleton', ids: Sequence[Hashable] | None = None
    ) -> 'SampleLikelihood':
        """Return the likelihoods of samples whose cluster is known.

        Args:
            labels: (N,) integers, below 0 = noise: array, tensor or list.
            noise: ``'singleton'`` or ``'cluster'``.
            ids: N different ids; 0 .. N - 1 by default.
        """
        self = cls(noise=check_choice(noise, 'noise', NOISE))
        array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
        if array.ndim != 1 or not len(array) or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f'labels must be integers of shape (N,) with N >= 1, got {array.dtype} of shape {array.shape}'
            )
        self._is_torch = isinstance(labels, Tensor)
        self._set_labels(array.astype(np.int64))
        self._set_ids(ids)
        return self

    def fit(self, X: Any, y: Any = None, ids: Sequence[Hashable] | None = None) -> 'SampleLikelihood':
        """Find the likelihoods of samples by their features ``X`` (N, D). ``y`` is ignored."""
        self._check()
        need_sklearn()
        x = _features(X)
        order = content_order(x)
        back = np.argsort(order)
        components = self.n_components or (3 if self.reducer == 'tsne' else 50)
        rows, self._reduce = reduce(
            x[order], self.reducer, components, self.perplexity, int(self.max_iter), int(self.random_state)
        )
        if self.cluster == 'knn':
            distances = neighbor_distances(rows, None, int(self.n_neighbors))
            self._scale = _scale(distances)
            self.labels_ = np.full(len(x), -1, dtype=np.int64)
            self.likelihood_ = _density(distances, self._scale)[back]
            self._warn_if_equal()
        else:
            options = dict(
                eps=self.eps, min_samples=int(self.min_samples), n_clusters=int(self.n_clusters),
                seed=int(self.random_state),
            )  # fmt: skip
            labels, self._model = cluster(rows, self.cluster, options)
            self._set_labels(labels[back])
        self.embedding_ = rows[back]
        self._rows = rows
        self.n_features_in_ = x.shape[1]
        self._set_ids(ids)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Return the likelihoods (M,) of new samples by their features, of ``'knn'`` and ``'kmeans'`` without t-SNE."""
        if self.cluster not in ('knn', 'kmeans') or self.reducer == 'tsne' or not hasattr(self, '_rows'):
            raise ValueError(
                f"new samples can be scored after fit with cluster='knn' or 'kmeans' and reducer='pca' or 'none', got "
                f'{self.cluster!r} and {self.reducer!r}'
            )
        rows = self._reduce(_features(X))
        if self.cluster == 'knn':
            return _density(neighbor_distances(self._rows, rows, int(self.n_neighbors)), self._scale)
        sizes = np.bincount(self.labels_, minlength=int(self.n_clusters))
        return sizes[self._model.predict(rows)] / sizes.max()

    def weights(self, eta: float, gamma: float, normalize: str | None = None) -> np.ndarray | Tensor:
        """Return the weight (N,) of each sample in the loss: a tensor where the labels were one, else a float64 array.

        Args:
            eta: Floor. gamma: How fast the weight falls (see :func:`~clusterplug.functional.likelihood_weights`).
            normalize: None: at most 1, so that the mean loss and with it the effective learning rate fall; ``'mean'``:
                divided by their mean over the samples.
        """
        self._check_fitted()
        if normalize is not None:
            check_choice(normalize, 'normalize', ['mean'], ' or None')
        weights = likelihood_weights(torch.from_numpy(self.likelihood_), eta=eta, gamma=gamma).numpy()
        if normalize == 'mean':
            if weights.mean() == 0:
                raise ValueError('normalize must be None where all weights are 0: eta is 0 and all samples have p = 1')
            weights = weights / weights.mean()
        return torch.from_numpy(weights).float() if getattr(self, '_is_torch', False) else weights

    def to_dict(self) -> dict[Hashable, float]:
        """Return ``{id: p}``."""
        self._check_fitted()
        return dict(zip(self.ids_, self.likelihood_.tolist(), strict=True))

    def save(self, path: str | Path, key: str = 'sample_idx', about: dict | None = None) -> None:
        """Write ids, likelihoods and clusters as JSON, atomically.

        Args:
            path: File.
            key: Where a sample of the data set has its id, as :class:`~clusterplug.datasets.transforms.SampleValues`
                looks it up.
            about: What else to note: JSON.
        """
        self._check_fitted()
        content = dict(
            format=FORMAT, version=1, key=key, about=about or {}, noise=self.noise,
            ids=list(self.ids_), likelihood=self.likelihood_.tolist(), labels=self.labels_.tolist(),
        )  # fmt: skip
        with whole_file(path) as file:
            json.dump(content, file, indent=1)

    @classmethod
    def load(cls, path: str | Path) -> 'SampleLikelihood':
        """Read what :meth:`save` wrote; ``key_`` and ``about_`` are as given there."""
        try:
            content = json.loads(Path(path).read_text())
        except ValueError as error:
            raise ValueError(f'{path} is not JSON ({error}); write it with SampleLikelihood.save') from None
        if not isinstance(content, dict) or content.get('format') != FORMAT:
            raise ValueError(f'{path} holds no likelihoods; write it with SampleLikelihood.save')
        self = cls(noise=content['noise'])
        self.likelihood_ = np.asarray(content['likelihood'], dtype=np.float64)
        if not ((self.likelihood_ >= 0) & (self.likelihood_ <= 1)).all():
            raise ValueError(f'{path} holds likelihoods outside 0 to 1; write it anew')
        self.labels_ = np.asarray(content['labels'], dtype=np.int64)
        self._set_ids(content['ids'])
        self.key_, self.about_ = content['key'], content['about']
        return self

    def _set_labels(self, labels: np.ndarray) -> None:
        noise = labels < 0
        if noise.all():
            raise ValueError(
                'all samples are noise, so that none is more likely than another; take a larger eps or smaller '
                "min_samples, or cluster='knn'"
            )
        if self.noise == 'cluster':
            _, codes, sizes = np.unique(np.where(noise, -1, labels), return_inverse=True, return_counts=True)
            self.likelihood_ = sizes[codes] / sizes.max()
        else:
            _, codes, sizes = np.unique(labels[~noise], return_inverse=True, return_counts=True)
            self.likelihood_ = np.full(len(labels), 1 / sizes.max())
            self.likelihood_[~noise] = sizes[codes] / sizes.max()
        self.labels_ = np.where(noise, -1, labels)
        self._warn_if_equal()

    def _warn_if_equal(self) -> None:
        if len(self.likelihood_) > 1 and np.ptp(self.likelihood_) == 0:
            warnings.warn(
                'all samples have the same likelihood, so that all weights are equal; look for more clusters',
                stacklevel=4,
            )

    def _set_ids(self, ids: Sequence[Hashable] | None) -> None:
        number = len(self.likelihood_)
        ids = range(number) if ids is None else ids
        self.ids_ = [each.item() if hasattr(each, 'item') else each for each in ids]
        if len(self.ids_) != number or len(set(self.ids_)) != number:
            raise ValueError(f'ids must be {number} different values, one a sample, got {len(set(self.ids_))}')

    def _check(self) -> None:
        check_choice(self.cluster, 'cluster', CLUSTERERS)
        check_choice(self.reducer, 'reducer', REDUCERS)
        check_choice(self.noise, 'noise', NOISE)
        check_number(self.eps, 'eps', above=0)
        check_number(self.perplexity, 'perplexity', above=0)
        for name in ('n_clusters', 'n_neighbors', 'min_samples', 'max_iter'):
            check_count(getattr(self, name), name, 1)
        if self.n_components is not None:
            check_count(self.n_components, 'n_components', 1)
        check_count(self.random_state, 'random_state')

    def _check_fitted(self) -> None:
        if not hasattr(self, 'likelihood_'):
            raise ValueError('this SampleLikelihood is not fitted yet; call fit or from_labels first')


def _features(X: Any) -> np.ndarray:
    x = X.detach().cpu().double().numpy() if isinstance(X, Tensor) else np.asarray(X, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f'X must have shape (N, D) with at least one sample and one feature, got {x.shape}')
    bad = ~np.isfinite(x).all(1)
    if bad.any():
        raise ValueError(
            f'X must be finite, got NaN or infinity in {int(bad.sum())} of {len(x)} samples (first: '
            f'{np.flatnonzero(bad)[:5].tolist()}); embed those again or drop them'
        )
    return x


def _scale(distances: np.ndarray) -> float:
    scale = float(np.quantile(distances, 0.05))
    return scale if scale > 0 else float(min(distances[distances > 0], default=1.0))


def _density(distances: np.ndarray, scale: float) -> np.ndarray:
    return scale / np.maximum(distances, scale)
