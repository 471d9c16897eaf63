# SPDX-License-Identifier: Apache-2.0
"""Methods of the deep clustering table: what each is called, what it needs, and how it labels a data set.

All run with the settings written here, the same on every data set; only K is that of the data. Baselines are those of
scikit-learn.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from _deep_data import Data

from clusterplug import estimators

SHORT = dict(pretrain_epochs=40, head_epochs=10, epochs=40, batch_size=128)  # of DEPICT, for a CPU


class Method(NamedTuple):
    """One row of the table."""

    name: str
    label: Callable[[Data, int], np.ndarray]  # (data, seed) -> (N,)
    seeds: int | None = None  # at most so many: 1 where the seed plays no part, or where a fit takes minutes


def _sklearn(kind: str, **options):
    def label(data: Data, seed: int):
        from sklearn import cluster

        given = dict(options)
        if kind != 'AgglomerativeClustering':
            given['random_state'] = seed
        return getattr(cluster, kind)(data.num_clusters, **given).fit_predict(data.rows)

    return label


def _rows(kind, **options):
    return lambda data, seed: kind(data.num_clusters, random_state=seed, **options).fit_predict(data.rows)


def _images(kind, **options):
    return lambda data, seed: kind(data.num_clusters, random_state=seed, **options).fit_predict(data.images)


def _principal(data: Data, count: int) -> np.ndarray:
    from sklearn.decomposition import PCA

    return PCA(count, random_state=0).fit_transform(data.rows)


def _sdp(data: Data, seed: int):
    model = estimators.LikelihoodSDP(
        data.num_clusters, covariance_type='tied', init='kmeans', sketch_size=600, random_state=seed
    )
    return model.fit_predict(_principal(data, 10))


def _perceptual(data: Data, seed: int):
    return estimators.PerceptualClusterer(projection='pca', random_state=seed).fit_predict(data.rows)


def _graph(**options):
    def label(data: Data, seed: int):
        model = estimators.GraphContrastClustering(data.num_clusters, random_state=seed, **options)
        return model.fit_predict(data.rows, data.edges) if data.edges is not None else model.fit_predict(data.rows)

    return label


def _best_epoch(data: Data, seed: int):
    """Labels of the epoch with the highest accuracy, chosen by the truth as the papers do: not a result."""
    from clusterplug.functional import clustering_accuracy

    model = estimators.GraphContrastClustering(data.num_clusters, random_state=seed)
    found, plain, truth = [], model._make_phases, torch.from_numpy(data.truth)

    def make_phases(x):
        phases = plain(x)
        refresh = phases[-1].refresh

        def keep():
            change = refresh()
            found.append(model._state.tensors['labels'].cpu())
            return change

        phases[-1].refresh = keep
        return phases

    model._make_phases = make_phases
    found.append(torch.as_tensor(model.fit_predict(data.rows, data.edges)))
    return max(found, key=lambda labels: clustering_accuracy(labels, truth)).numpy()


BASELINES = [
    Method('k-means', _sklearn('KMeans', n_init=10)),
    Method('spectral', _sklearn('SpectralClustering', affinity='nearest_neighbors', n_neighbors=10)),
    Method('Ward', _sklearn('AgglomerativeClustering'), seeds=1),
]


def _gdl(data: Data, seed: int):
    return estimators.GraphDegreeLinkage(data.num_clusters).fit_predict(data.rows)


def of_images(data: Data) -> list[Method]:
    """Methods for rows and pictures."""
    targets = ('dec', 'sqrt', 'none') if data.name == 'digits' else ('dec',)
    # its time grows with the square of K: minutes from 20 clusters on
    program = [Method('LikelihoodSDP, 600 samples, 10 components', _sdp, seeds=1)] if data.num_clusters <= 10 else []
    return [
        *BASELINES,
        Method('GraphDegreeLinkage', _gdl, seeds=1),
        Method('MultiViewClustering, jule', _rows(estimators.MultiViewClustering)),
        Method('IDEC', _rows(estimators.DeepEmbeddedClustering, objective='idec')),
        Method('DEC', _rows(estimators.DeepEmbeddedClustering, objective='dec')),
        *(Method(f'DEPICT, target {each}', _images(estimators.DEPICT, target=each, **SHORT)) for each in targets),
        Method('DeepSubspaceClustering', _rows(estimators.DeepSubspaceClustering, subspace_dim=9)),
        Method('ManifoldClustering', _images(estimators.ManifoldClustering, encoder='cnn')),
        Method('GraphContrastClustering, knn 5', _graph()),
        *program,
        Method('PerceptualClusterer, 2 components', _perceptual),
    ]


def of_graphs(data: Data) -> list[Method]:
    """Methods for nodes with features and edges."""
    scgc = dict(cumulative=False, reconstruction=True)
    return [
        *BASELINES,
        Method('spectral, edges', _spectral_of_edges),
        Method('GraphDegreeLinkage', _gdl, seeds=1),
        Method('IDEC', _rows(estimators.DeepEmbeddedClustering, objective='idec')),
        Method('GraphContrastClustering (SCGC*)', _graph()),
        Method('SCGC*, best epoch by the truth (not a result)', _best_epoch),
        Method('SCGC* without the warm-up', _graph(warmup_epochs=0, epochs=60)),
        Method('SCGC', _graph(**scgc)),
    ]


def _spectral_of_edges(data: Data, seed: int):
    from scipy.sparse import coo_matrix
    from sklearn.cluster import SpectralClustering

    count = len(data.truth)
    half = coo_matrix((np.ones(data.edges.shape[1]), tuple(data.edges)), shape=(count, count))
    graph = ((half + half.T) > 0).astype(np.float64)
    return SpectralClustering(data.num_clusters, affinity='precomputed', random_state=seed).fit_predict(graph)


def of_views(data: Data) -> list[Method]:
    """Methods for several views of the same samples."""

    def unit(view):
        rows = torch.from_numpy(np.asarray(view, np.float32))
        return torch.nn.functional.normalize(rows, dim=1)

    def ward(name):
        return lambda data, seed: estimators.AgglomerativeClustering(data.num_clusters).fit_predict(
            unit(data.views[name])
        )

    def gdl(name):
        return lambda data, seed: estimators.GraphDegreeLinkage(data.num_clusters).fit_predict(unit(data.views[name]))

    methods = []
    for name in data.views:
        methods += [Method(f'Ward, {name}', ward(name), 1), Method(f'GraphDegreeLinkage, {name}', gdl(name), 1)]
    joined = lambda data: np.concatenate([unit(view).numpy() for view in data.views.values()], 1)  # noqa: E731
    methods.append(Method(
        'Ward, side by side',
        lambda data, seed: estimators.AgglomerativeClustering(data.num_clusters).fit_predict(joined(data)), 1,
    ))  # fmt: skip
    for base in ('agglomerative', 'gdl'):
        methods.append(Method(
            f'CoAssociation, {base}',
            lambda data, seed, b=base: estimators.CoAssociation(data.num_clusters, base=b).fit_predict(data.views),
            1,
        ))  # fmt: skip
    for objective in ('jule', 'idec', 'dec'):
        methods.append(Method(
            f'MultiViewClustering, {objective}',
            lambda data, seed, o=objective: estimators.MultiViewClustering(
                data.num_clusters, o, random_state=seed
            ).fit_predict(data.views),
        ))  # fmt: skip
    return methods


def methods_of(data: Data) -> list[Method]:
    """Return the rows of the table of a data set."""
    if data.views is not None:
        return of_views(data)
    return of_graphs(data) if data.edges is not None else of_images(data)
