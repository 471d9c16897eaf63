"""Spectral clustering of a batch against a loop over scikit-learn's.

    OMP_NUM_THREADS=1 python benchmarks/kernels_spectral.py

One CPU thread, process time, all entries interleaved in one run. The data is separable, so that both must find the
true clusters; the adjusted Rand index of each is printed beside its time.
"""

import argparse
import statistics
import time
import warnings

import torch

from clusterplug.functional.spectral import spectral_clustering


def separable_data(batch, num_points, num_dims, num_clusters, seed=0):
    """Return points in well separated groups and their groups."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(num_points) % num_clusters
    centers = 3 * torch.randn(batch, num_clusters, num_dims, generator=generator)
    return centers[:, truth] + torch.randn(batch, num_points, num_dims, generator=generator), truth


def medians(calls, repeats):
    """Return the median process time of each call in seconds, calls interleaved."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def compare(batch, num_points, num_dims, num_clusters, repeats):
    from sklearn.cluster import SpectralClustering
    from sklearn.metrics import adjusted_rand_score

    x, truth = separable_data(batch, num_points, num_dims, num_clusters)
    arrays = x.numpy()

    def loop(**options):
        estimator = SpectralClustering(
            num_clusters, affinity='nearest_neighbors', n_neighbors=10, random_state=0, **options
        )
        return [estimator.fit_predict(points) for points in arrays]

    calls = {
        'scikit-learn loop': loop,
        "scikit-learn loop, assign_labels='cluster_qr'": lambda: loop(assign_labels='cluster_qr'),
        'clusterplug, eigh': lambda: spectral_clustering(x, num_clusters, sigma='local', solver='eigh').labels,
        'clusterplug, subspace': lambda: spectral_clustering(x, num_clusters, sigma='local', solver='subspace').labels,
        'clusterplug, auto': lambda: spectral_clustering(x, num_clusters, sigma='local').labels,
    }
    seconds = medians(calls, repeats)
    print(f'B{batch} N{num_points} D{num_dims} K{num_clusters}, 10 neighbours')
    for name, call in calls.items():
        rand = statistics.mean(adjusted_rand_score(truth, labels) for labels in call())
        ratio = seconds['scikit-learn loop'] / seconds[name]
        print(f'  {name}: {seconds[name] * 1e3:.0f} ms, {ratio:.2f}x, adjusted Rand index {rand:.3f}', flush=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')  # scikit-learn: the graph is not connected, which is what separable means
    print(f'torch {torch.__version__}, one thread, fp32')
    compare(16, 147, 64, 10, arguments.repeats)
    compare(16, 196, 64, 49, arguments.repeats)
    compare(4, 588, 64, 49, arguments.repeats)
    compare(1, 2000, 64, 49, arguments.repeats)
