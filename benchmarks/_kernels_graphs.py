# SPDX-License-Identifier: Apache-2.0
"""Spectral clustering against a loop over scikit-learn's, and linkage against a loop over scipy's.

The data is separable, so that both spectral forms must find the true clusters; the adjusted Rand index is printed.
"""

import torch
from _timing import interleaved, optional, rows

from clusterplug.functional import adjusted_rand_index, spectral_clustering
from clusterplug.functional.graph import linkage


def separable_data(batch, num_points, num_dims, num_clusters, seed=0):
    """Return points in well separated groups and their groups."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(num_points) % num_clusters
    centers = 3 * torch.randn(batch, num_clusters, num_dims, generator=generator)
    return centers[:, truth] + torch.randn(batch, num_points, num_dims, generator=generator), truth


def compare_spectral(cluster, batch, num_points, num_dims, num_clusters, repeats, wish):
    x, truth = separable_data(batch, num_points, num_dims, num_clusters)

    def loop(**options):
        estimator = cluster.SpectralClustering(
            num_clusters, affinity='nearest_neighbors', n_neighbors=10, random_state=0, **options
        )
        return torch.stack([torch.from_numpy(estimator.fit_predict(points)).long() for points in x.numpy()])

    runs = {
        'clusterplug': lambda: spectral_clustering(x, num_clusters, sigma='local').labels,
        'scikit-learn loop, default (k-means from 10 starts)': loop,
        'scikit-learn loop, 1 start': lambda: loop(n_init=1),
        'scikit-learn loop, cluster_qr': lambda: loop(assign_labels='cluster_qr'),
    }
    rand = {name: sum(adjusted_rand_index(truth, each) for each in run()) / batch for name, run in runs.items()}
    remarks = {name: f'Rand index {value:.3f}, ours {rand["clusterplug"]:.3f}' for name, value in rand.items()}
    kernel = f'spectral_clustering B {batch}, N {num_points}, D {num_dims}, K {num_clusters}'
    return rows(kernel, interleaved(runs, repeats), 'clusterplug', dict.fromkeys(list(runs)[1:], wish), remarks)


def compare_linkage(hierarchy, batch, num_points, method, repeats):
    x = torch.randn(batch, num_points, 64, generator=torch.Generator().manual_seed(0))
    runs = {
        'clusterplug': lambda: linkage(x, method=method),
        'scipy loop': lambda: [hierarchy.linkage(points, method) for points in x.numpy()],
    }
    kernel = f'linkage B {batch}, N {num_points}, D 64, {method}'
    return rows(kernel, interleaved(runs, repeats), 'clusterplug', {})


def measure(repeats):
    """Return the rows of spectral clustering and linkage."""
    lines = []
    cluster, hierarchy = optional('sklearn.cluster'), optional('scipy.cluster.hierarchy')
    if cluster is not None:
        for batch, num_points, num_clusters in ((16, 147, 10), (16, 196, 49), (4, 588, 49), (1, 2000, 49)):
            lines += compare_spectral(cluster, batch, num_points, 64, num_clusters, repeats, 1.0)
    if hierarchy is not None:
        shapes = (
            (64, 196, 'average'),
            (64, 196, 'ward'),
            (256, 64, 'single'),
            (1, 500, 'average'),
            (1, 3000, 'average'),
        )
        for batch, num_points, method in shapes:
            lines += compare_linkage(hierarchy, batch, num_points, method, repeats)
    return lines
