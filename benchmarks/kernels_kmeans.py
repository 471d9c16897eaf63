"""k-means against scikit-learn, faiss, fast-pytorch-kmeans and torch-kmeans on one CPU thread.

OMP_NUM_THREADS=1 python benchmarks/kernels_kmeans.py [--repeats 7] [--threads 1]
"""

import argparse
import importlib
import statistics
import warnings
from unittest import mock

import torch
from _timing import header, interleaved, product_rate, table, target

from clusterplug.functional import kmeans


def optional(name):
    """Return a module or None, saying so."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f'skipped: {name} is not installed')
        return None


def all_iterations(run):
    """Return a candidate that also runs iterations in which no label changes any more."""
    cpu = importlib.import_module('clusterplug.functional._kmeans_cpu')

    def wrapped():
        with mock.patch.object(cpu, 'RUN_ALL', True):
            return run()

    return wrapped


def tokens(batch, num_points, dim, generator):
    """Return points that take many iterations: a few smooth directions and noise, as image tokens are."""
    smooth = torch.randn(batch, num_points, 6, generator=generator) @ torch.randn(batch, 6, dim, generator=generator)
    return smooth / 6**0.5 + 0.1 * torch.randn(batch, num_points, dim, generator=generator)


def faiss_candidate(faiss, x, init, num_iters):
    def run():
        models = []
        for points, centers in zip(x.numpy(), init.numpy()):
            model = faiss.Kmeans(
                x.shape[-1], init.shape[1], niter=num_iters, min_points_per_centroid=1, max_points_per_centroid=10**9
            )
            model.train(points, init_centroids=centers)
            models.append(torch.from_numpy(model.centroids))
        return torch.stack(models)

    return run


def scikit_candidate(cluster, x, init, num_iters):
    def run():
        centers = []
        for points, start in zip(x.numpy(), init.numpy()):
            model = cluster.KMeans(len(start), init=start, n_init=1, max_iter=num_iters, tol=0, algorithm='lloyd')
            centers.append(torch.from_numpy(model.fit(points).cluster_centers_))
        return torch.stack(centers)

    return run


def candidates_for(x, init, num_iters, modules):
    """Return name -> run, each giving the centers (B, K, D)."""
    batch, num_clusters = init.shape[:2]

    def ours():
        return kmeans(x, num_clusters, init=init, num_iters=num_iters, tol=0).centers

    runs = {'clusterplug': ours, 'clusterplug, idle iterations too': all_iterations(ours)}
    if modules['faiss']:
        runs['faiss loop'] = faiss_candidate(modules['faiss'], x, init, num_iters)
    if modules['sklearn.cluster']:
        runs['scikit-learn loop'] = scikit_candidate(modules['sklearn.cluster'], x, init, num_iters)
    if modules['fast_pytorch_kmeans'] and batch == 1:

        def fast():
            model = modules['fast_pytorch_kmeans'].KMeans(num_clusters, max_iter=num_iters, tol=-1.0)
            model.fit_predict(x[0], init[0].clone())
            return model.centroids.unsqueeze(0)

        runs['fast-pytorch-kmeans'] = fast
    if modules['torch_kmeans'] and batch > 1:

        def four():
            model = modules['torch_kmeans'].KMeans(
                n_clusters=num_clusters, num_init=1, max_iter=num_iters, tol=0.0, verbose=False
            )
            return model(x[:4], centers=init[:4].unsqueeze(1)).centers

        runs['torch-kmeans (4 problems only)'] = four
    return runs


def check_equal(runs, x):
    """Compare the inertia of all before timing: no faster by being worse."""
    for name, run in runs.items():
        centers = run()
        points = x[: len(centers)]
        inertia = torch.cdist(points, centers).amin(-1).square().sum().item() / len(centers)
        print(f'  {name:34s} inertia for each problem {inertia:.6g}')


def compare(title, x, init, num_iters, modules, repeats):
    batch, num_points, dim = x.shape
    num_clusters = init.shape[1]
    flops = 2.0 * batch * num_points * dim * num_clusters * num_iters
    used = kmeans(x, num_clusters, init=init, num_iters=num_iters, tol=1e-30).num_iters.float()
    print(f'\n== {title}: B {batch}, N {num_points}, D {dim}, K {num_clusters}, {num_iters} iterations')
    print(f'  iterations until no label changes: mean {used.mean():.1f} (of at most {num_iters})')
    runs = candidates_for(x, init, num_iters, modules)
    check_equal(runs, x)
    times = interleaved(runs | {'product 1024^3': product_rate()}, repeats)
    rate = 2.0 * 1024**3 / statistics.median(times.pop('product 1024^3')) * 1e3
    roof_ms = flops / rate * 1e3
    roof = f'{flops / 1e9:.2f} GFLOP at {rate / 1e9:.0f} GFLOP/s'
    table(title, times, ours='clusterplug', roof_ms=roof_ms, roof=roof)
    return {name: statistics.median(values) for name, values in times.items()}, roof_ms


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--threads', type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter('ignore')
    modules = {name: optional(name) for name in ('faiss', 'sklearn.cluster', 'fast_pytorch_kmeans', 'torch_kmeans')}
    if modules['faiss']:
        modules['faiss'].omp_set_num_threads(options.threads)
    header(('faiss-cpu', 'scikit-learn', 'fast-pytorch-kmeans', 'torch-kmeans', 'numpy'))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 196, 512, generator=generator)
    for title, data in (('many small, Gaussian', x), ('many small, token-like', tokens(48, 196, 512, generator))):
        medians, roof_ms = compare(title, data, data[:, ::4].clone(), 10, modules, options.repeats)
        everything = medians['clusterplug, idle iterations too']
        target(f'10 full iterations <= 2.0 x the roof (here {everything / roof_ms:.2f} x)', everything <= 2.0 * roof_ms)
        if 'faiss loop' in medians:
            ratio = medians['faiss loop'] / medians['clusterplug']
            target(f'ahead of a faiss loop (here {ratio:.2f} x)', ratio > 1.0)
    x = torch.randn(1, 120_000, 96, generator=generator)
    medians, _ = compare('one large', x, x[:, :40].clone(), 10, modules, options.repeats)
    for name in ('scikit-learn loop', 'faiss loop'):
        if name in medians:
            ratio = medians[name] / medians['clusterplug']
            target(f'at least level with {name.split()[0]} (here {ratio:.2f} x)', ratio >= 1.0)


if __name__ == '__main__':
    main()
