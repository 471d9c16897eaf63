# SPDX-License-Identifier: Apache-2.0
"""k-means against scikit-learn, faiss, fast-pytorch-kmeans, torch-kmeans and the products of plain Lloyd alone."""

import statistics

import torch
from _timing import Row, interleaved, optional, product_rate, rows

from clusterplug.estimators import MiniBatchKMeans
from clusterplug.functional.kmeans import kmeans


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

    runs = {'clusterplug': lambda: kmeans(x, num_clusters, init=init, num_iters=num_iters, tol=0).centers}
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


def inertia_of(centers, x):
    """Return the mean inertia of each problem: nobody is to be faster by being worse."""
    return torch.cdist(x[: len(centers)], centers).amin(-1).square().sum().item() / len(centers)


def compare(kernel, x, init, num_iters, modules, repeats, wishes):
    """Return rows of one data set, with the products of plain Lloyd (all distances in all iterations) at full rate."""
    batch, num_points, dim = x.shape
    num_clusters = init.shape[1]
    used = kmeans(x, num_clusters, init=init, num_iters=num_iters, tol=1e-30).num_iters.float().mean()
    runs = candidates_for(x, init, num_iters, modules)
    best = inertia_of(runs['clusterplug'](), x)
    remarks = {name: f'inertia {inertia_of(run(), x) / best:.4f} of ours' for name, run in runs.items()}
    times = interleaved(runs | {'product 1024^3': product_rate()}, repeats)
    flops = 2.0 * batch * num_points * dim * num_clusters * num_iters
    limit = flops / (2.0 * 1024**3) * statistics.median(times.pop('product 1024^3'))
    ours = statistics.median(times['clusterplug'])
    lines = rows(kernel, times, 'clusterplug', wishes, remarks)
    remark = f'{flops / 1e9:.2f} GFLOP; no label changes after {used:.1f} iterations'
    lines.append(Row(kernel, 'the products of plain Lloyd alone', ours, limit, wishes.get('limit'), remark))
    return lines


def measure(repeats):
    """Return the rows of k-means."""
    modules = {name: optional(name) for name in ('faiss', 'sklearn.cluster', 'fast_pytorch_kmeans', 'torch_kmeans')}
    if modules['faiss']:
        modules['faiss'].omp_set_num_threads(torch.get_num_threads())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 196, 512, generator=generator)
    lines = []
    for title, data in (('Gaussian', x), ('token-like', tokens(48, 196, 512, generator))):
        kernel = f'kmeans B 48, N 196, D 512, K 49, 10 iterations, {title}'
        wishes = {'faiss loop': 1.0, 'limit': 0.5}
        lines += compare(kernel, data, data[:, ::4].clone(), 10, modules, repeats, wishes)
    x = torch.randn(1, 120_000, 96, generator=generator)
    wishes = {'faiss loop': 1.0, 'scikit-learn loop': 1.0}
    lines += compare('kmeans 120,000 x 96, K 40, 10 iterations', x, x[:, :40].clone(), 10, modules, repeats, wishes)
    x = blobs(2000, 2, 8, generator)
    lines += compare('kmeans 2,000 x 2, K 8, 20 iterations', x, x[:, :8].clone(), 20, modules, repeats, {})
    return lines + minibatch_rows(modules, repeats, generator)


def blobs(num_points, dim, num_clusters, generator):
    """Return (1, N, D) points around ``num_clusters`` centers, in any order."""
    centers = 2 * torch.randn(num_clusters, dim, generator=generator)
    groups = torch.randint(num_clusters, (num_points,), generator=generator)
    return (torch.randn(num_points, dim, generator=generator) + centers[groups])[None]


def minibatch_rows(modules, repeats, generator):
    """Mini-batches until nothing improves, against scikit-learn's; the remark says at which inertia."""
    cluster = modules['sklearn.cluster']
    if cluster is None:
        return []
    lines = []
    for title, x in (
        ('Gaussian', torch.randn(20_000, 16, generator=generator)),
        ('blobs', blobs(20_000, 16, 20, generator)[0]),
    ):
        options = dict(n_clusters=20, batch_size=1024, random_state=0)
        theirs = cluster.MiniBatchKMeans(n_init=1, **options)
        models = {'clusterplug': MiniBatchKMeans(**options), 'scikit-learn': theirs}
        runs = {name: lambda model=model, x=x: model.fit(x.numpy()) for name, model in models.items()}
        inertia = {name: run().inertia_ for name, run in runs.items()}
        remarks = {'scikit-learn': f'inertia {inertia["scikit-learn"] / inertia["clusterplug"]:.4f} of ours'}
        kernel = f'MiniBatchKMeans 20,000 x 16, K 20, {title}'
        lines += rows(kernel, interleaved(runs, repeats), 'clusterplug', {}, remarks)
    return lines
