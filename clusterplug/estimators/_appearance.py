# SPDX-License-Identifier: Apache-2.0
"""Reducing and clustering features with scikit-learn, for likelihoods of appearance."""

from typing import Any

import numpy as np

REDUCERS = ('pca', 'tsne', 'none')
CLUSTERERS = ('hdbscan', 'dbscan', 'kmeans', 'knn')


def need_sklearn() -> None:
    """Raise with the line that installs scikit-learn where it is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise ModuleNotFoundError(
            "fitting features needs scikit-learn; install it with: pip install 'clusterplug[estimators]'"
        ) from None


def content_order(x: np.ndarray) -> np.ndarray:
    """Return the order of the rows by their content, so that what is fitted does not depend on the caller's order."""
    plain = np.ascontiguousarray(x) + 0.0  # -0.0 becomes 0.0
    # a few columns tell nearly all rows apart; the rest decides among equal ones
    return np.lexsort(plain.T[::-1])


def reduce(x: np.ndarray, kind: str, n_components: int, perplexity: float, max_iter: int, seed: int):
    """Return the reduced rows and what maps new rows likewise (None for t-SNE, which cannot)."""
    from sklearn.decomposition import PCA

    if kind == 'none':
        return x, lambda new: new
    most = min(x.shape)
    if kind == 'pca':
        pca = PCA(min(n_components, most), random_state=seed).fit(x)
        return pca.transform(x), pca.transform
    from sklearn.manifold import TSNE

    if most > 50:
        x = PCA(50, random_state=seed).fit_transform(x)
    if perplexity >= len(x):
        raise ValueError(f'perplexity must be below the number of samples, {len(x)}, got {perplexity}')
    start = 'pca' if n_components <= min(x.shape) else 'random'
    method = 'barnes_hut' if n_components < 4 else 'exact'
    tsne = TSNE(n_components, perplexity=perplexity, max_iter=max_iter, init=start, random_state=seed, method=method)
    return tsne.fit_transform(x), None


def cluster(x: np.ndarray, kind: str, options: dict[str, Any]):
    """Return the labels (N,), -1 = noise, and the fitted model."""
    if kind == 'hdbscan':
        from sklearn.cluster import HDBSCAN

        smallest = min(options['min_samples'], len(x))
        model = HDBSCAN(min_cluster_size=max(2, smallest), min_samples=smallest, copy=True).fit(x)
    elif kind == 'dbscan':
        from sklearn.cluster import DBSCAN

        model = DBSCAN(eps=options['eps'], min_samples=options['min_samples']).fit(x)
    else:
        from sklearn.cluster import KMeans

        if options['n_clusters'] > len(x):
            raise ValueError(f'n_clusters must not exceed the number of samples, {len(x)}, got {options["n_clusters"]}')
        model = KMeans(options['n_clusters'], n_init=5, random_state=options['seed']).fit(x)
    return model.labels_.astype(np.int64), model


def neighbor_distances(train: np.ndarray, x: np.ndarray | None, k: int) -> np.ndarray:
    """Return the distance to the k-th neighbor among ``train`` (of itself, not counted, where ``x`` is None)."""
    from sklearn.neighbors import NearestNeighbors

    if k >= len(train):
        raise ValueError(f'n_neighbors must be below the number of samples, {len(train)}, got {k}')
    return NearestNeighbors(n_neighbors=k).fit(train).kneighbors(x)[0][:, -1]
