# SPDX-License-Identifier: Apache-2.0
"""Rate reduction, self-expression, semidefinite programs and the estimators on them: figures over seeds.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/rates_and_sdp.py                     # all, some minutes
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/rates_and_sdp.py --only rate mixture
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/rates_and_sdp.py --data FOLDER --page docs/benchmarks.md

Times are process times of one thread. The digits are those of scikit-learn; FOLDER holds scatter/scatter.npz. Values
over seeds or draws: mean (lowest .. highest).
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from _timing import describe_machine, publish

from clusterplug.estimators import DeepSubspaceClustering, KMeans, LikelihoodSDP, ManifoldClustering
from clusterplug.functional import (
    adjusted_rand_index,
    clustering_accuracy,
    coding_rate,
    graph_degree_linkage,
    kmeans_sdp,
    knn_graph,
    likelihood_sdp,
    membership_labels,
    neighbor_contrast,
    normalized_mutual_info,
    rate_reduction,
    self_expression,
    spectral_embedding,
)
from clusterplug.testing import peak_bytes


def seconds(call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def spread(values: list[float]) -> str:
    return f'{statistics.mean(values):.3f} ({min(values):.3f} .. {max(values):.3f})'


def rate(seeds: int) -> list[tuple[str, str]]:
    """Value and gradient of a batch of 1,024 points of 128 dimensions against the dense form."""
    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(1024, 128, generator=generator), dim=1).requires_grad_()
    gamma = (z @ z.T / 0.175).detach().softmax(0).requires_grad_()

    def dense():
        total = gamma.sum(0)
        matrices = torch.eye(128) + (128 / (total * 0.1))[:, None, None] * ((z.T[None] * gamma.T[:, None]) @ z)
        return torch.autograd.grad(coding_rate(z, eps2=0.1) - (total * torch.logdet(matrices)).sum() / 1024, (z, gamma))

    def ours():
        return torch.autograd.grad(rate_reduction(z, gamma, eps2=0.1), (z, gamma))

    for one, other in zip(ours(), dense()):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    times = [(seconds(ours), seconds(dense)) for _ in range(2)]
    mine, theirs = (min(each) for each in zip(*times))
    memory = [peak_bytes(each) / 1e6 for each in (ours, dense)]
    return [
        (
            'rate reduction, 1,024 x 128, value and gradient',
            f'{mine:.2f} s, dense {theirs:.2f} s: {theirs / mine:.1f} x',
        ),
        ('... memory', f'{memory[0]:.0f} MB, dense {memory[1]:.0f} MB'),
    ]


def expression(seeds: int) -> list[tuple[str, str]]:
    x = torch.randn(2000, 256, generator=torch.Generator().manual_seed(0))
    return [
        ('self-expression in closed form, 2,000 samples', f'{seconds(lambda: self_expression(x, ridge=1.0)):.2f} s')
    ]


def program(seeds: int) -> list[tuple[str, str]]:
    lines = []
    for count in (2000, 20_000):
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(count) % 3
        x = torch.randn(count, 5, generator=generator) + 5 * torch.eye(5)[labels]
        began = time.process_time()
        result = kmeans_sdp(x, 3, solver='factorized', tol=1e-4, generator=generator)
        took = time.process_time() - began
        found = membership_labels(result.memberships, 3, generator=generator)
        figure = f'{took:.1f} s, ACC {clustering_accuracy(labels, found):.3f}'
        lines.append((f'k-means program, factorized, {count:,} points', figure))
    return lines


def linkage(seeds: int) -> list[tuple[str, str]]:
    """Graph degree linkage, and the spectral embedding of a sparse graph, of 7,200 points."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(7200) % 100
    x = torch.randn(100, 128, generator=generator)[truth] + 0.7 * torch.randn(7200, 128, generator=generator)
    began = time.process_time()
    found = graph_degree_linkage(x, 100)
    took = time.process_time() - began
    neighbors = knn_graph(x, 10)
    rows = torch.arange(7200).repeat_interleave(10)
    indices = torch.stack([rows, neighbors.indices.flatten()])
    graph = torch.sparse_coo_tensor(indices, torch.ones(72_000), (7200, 7200))
    graph = (graph + graph.mT).coalesce()
    return [
        (
            'graph degree linkage, 7,200 x 128 into 100',
            f'{took:.1f} s, ACC {clustering_accuracy(truth, found):.3f}',
        ),
        (
            'spectral embedding of a sparse graph, 7,200 nodes, 100 vectors (a dense matrix: 415 MB)',
            f'{seconds(lambda: spectral_embedding(graph, 100)):.1f} s, '
            f'{peak_bytes(lambda: spectral_embedding(graph, 100)) / 1e6:.0f} MB of tensors',
        ),
    ]


def contrast(seeds: int) -> list[tuple[str, str]]:
    """Memory of the loss and its gradient, by the number of nodes; blocks of 1,024 rows."""
    lines = []
    for count in (2708, 10_000, 20_000):
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(count, 10, generator=generator).requires_grad_()
        edges = torch.randint(0, count, (2, 4 * count), generator=generator)
        graph = torch.sparse_coo_tensor(edges, torch.ones(4 * count), (count, count)).coalesce()

        def step(z=z, graph=graph):
            neighbor_contrast(z, graph, temperature=2.0, block_size=1024).backward()

        line = f'{peak_bytes(step) / 1e6:.0f} MB, {seconds(step):.2f} s; one dense matrix: {4e-6 * count**2:,.0f} MB'
        lines.append((f'contrast with neighbors, {count:,} nodes, value and gradient', line))
    return lines


def dense(seeds: int) -> list[tuple[str, str]]:
    """The mixture with 500 points and known covariances, to an accuracy of 1e-4."""
    X, covariances, truth = mixture_of(0, 500)
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # not at its accuracy
        result = likelihood_sdp(torch.from_numpy(X), torch.from_numpy(covariances), tol=1e-4, num_iters=400)
    took = time.process_time() - started
    labels = result.memberships.sum(-1).argmax(0)
    return [
        (
            'likelihood program, dense, 500 points, K 3, accuracy 1e-4',
            f'{took:.0f} s, ACC {clustering_accuracy(truth, labels):.3f}, gap {float(result.gap):.1f} nats',
        )
    ]


def mixture_of(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    covariances = np.stack([np.eye(4) * 0.15, np.diag([4, 0.2, 0.2, 0.2]), np.diag([0.2, 4, 0.2, 0.2])])
    means = [[0, 0, 0, 0], [2.2, 1.6, 0, 0], [1.6, -2.2, 0, 0]]
    rng, sizes = np.random.default_rng(seed), [count // 3 + (k < count % 3) for k in range(3)]
    X = np.concatenate([rng.multivariate_normal(m, c, size) for m, c, size in zip(means, covariances, sizes)])
    return X, covariances, torch.arange(3).repeat_interleave(torch.tensor(sizes))


def mixture(seeds: int) -> list[tuple[str, str]]:
    """Three Gaussians of unequal covariances in 4 dimensions, 25 points each."""
    from sklearn.mixture import GaussianMixture

    found: dict[str, list[float]] = {}
    for seed in range(2 * seeds):
        X, covariances, truth = mixture_of(seed, 75)
        for name, model in {
            'k-means': KMeans(3, random_state=0),
            'Gaussian mixture (EM from k-means)': GaussianMixture(3, random_state=0),
            'LikelihoodSDP': LikelihoodSDP(3, random_state=0),
            'LikelihoodSDP, three starts': LikelihoodSDP(3, n_init=3, random_state=0),
            'LikelihoodSDP, known covariances': LikelihoodSDP(3, covariances=covariances, random_state=0),
        }.items():
            labels = torch.as_tensor(np.asarray(model.fit_predict(X)))
            found.setdefault(name, []).append(clustering_accuracy(truth, labels.long()))
    return [
        (f'heterogeneous mixture, {2 * seeds} draws, accuracy: {name}', spread(each)) for name, each in found.items()
    ]


def scatter(seeds: int) -> list[tuple[str, str]]:
    """Plane sets with one or several labelings: number of clusters of the first, noise of a labeling left out."""
    from sklearn.mixture import GaussianMixture

    file, lines = np.load(FOLDER / 'scatter' / 'scatter.npz'), []
    for name in ('dense', 'x2', 'fuzzyx'):
        labelings = file[f'L_{name}'].astype(np.int64)
        kept = labelings[0] > 0
        X, labelings = file[f'X_{name}'][kept].astype(np.float64), labelings[:, kept]
        count = int(labelings[0].max())
        for method, model in {
            'k-means': KMeans(count, n_init=10, random_state=0),
            'Gaussian mixture': GaussianMixture(count, n_init=10, random_state=0),
            'LikelihoodSDP': LikelihoodSDP(count, random_state=0),
            'LikelihoodSDP, three starts': LikelihoodSDP(count, n_init=3, random_state=0),
        }.items():
            found = torch.as_tensor(np.asarray(model.fit_predict(X))).long()
            values = [
                adjusted_rand_index(torch.from_numpy(each[each > 0]), found[torch.from_numpy(each > 0)])
                for each in labelings
            ]
            lines.append((
                f'{name}, {len(X)} points, {count} clusters, {len(values)} labelings, ARI: {method}',
                f'{values[0]:.3f} (first), mean {np.mean(values):.3f}, best {max(values):.3f}',
            ))  # fmt: skip
    return lines


def subspaces(seeds: int) -> list[tuple[str, str]]:
    truth, found = torch.arange(5).repeat_interleave(40), []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        frames = [np.linalg.qr(rng.normal(size=(64, 3)))[0] for _ in range(5)]
        X = np.concatenate([rng.normal(size=(40, 3)) @ frame.T for frame in frames])
        model = DeepSubspaceClustering(5, 3, random_state=0).fit(X + 0.02 * rng.normal(size=X.shape))
        found.append(clustering_accuracy(truth, torch.as_tensor(model.labels_)))
    return [(f'5 subspaces of dimension 3 in 64, {seeds} draws, accuracy of DeepSubspaceClustering', spread(found))]


def digits(seeds: int) -> list[tuple[str, str]]:
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    images, truth = (X.reshape(-1, 1, 8, 8) / 16).astype(np.float32), torch.as_tensor(y)
    scores = []
    for seed in range(seeds):
        labels = torch.as_tensor(ManifoldClustering(10, encoder='cnn', random_state=seed).fit_predict(images))
        scores.append((clustering_accuracy(truth, labels), normalized_mutual_info(truth, labels)))
    accuracy, information = ([*each] for each in zip(*scores))
    return [(f'digits, {seeds} seeds, ManifoldClustering, ACC / NMI', f'{spread(accuracy)} / {spread(information)}')]


def digits_subspaces(seeds: int) -> list[tuple[str, str]]:
    """300 digits, nine coefficients a sample."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    images, truth = (X[:300].reshape(-1, 1, 8, 8) / 16).astype(np.float32), torch.as_tensor(y[:300])
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        for name, model, data in (
            ('k-means', KMeans(10, random_state=seed), images.reshape(300, -1)),
            ('closed form', DeepSubspaceClustering(10, 9, encoder='cnn', random_state=seed), images),
            ('gradient', DeepSubspaceClustering(10, 9, encoder='cnn', solver='gradient', random_state=seed), images),
        ):
            labels = torch.as_tensor(np.asarray(model.fit_predict(data)))
            found.setdefault(name, []).append(clustering_accuracy(truth, labels.long()))
    return [(f'300 digits, top-9, {seeds} seeds, accuracy: {name}', spread(each)) for name, each in found.items()]


PARTS = {
    each.__name__: each
    for each in (
        rate, expression, linkage, contrast, program, dense, mixture, scatter, subspaces, digits_subspaces, digits,
    )
}  # fmt: skip
FOLDER = None  # of the real data


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=PARTS, nargs='+', help='parts (default: all that have data)')
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--data', type=Path, help='folder of the real data, for the part scatter')
    parser.add_argument('--page', help='page whose part between the marks "rates_and_sdp" is replaced')
    options = parser.parse_args()
    global FOLDER
    FOLDER = options.data
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    lines = [
        *(f'{line}<br>' for line in describe_machine(('scikit-learn', 'numpy'))),
        '',
        '| What | Figure |',
        '|---|---|',
    ]
    for part in options.only or [each for each in PARTS if each != 'scatter' or options.data]:
        for what, figure in PARTS[part](options.seeds):
            lines.append(f'| {what} | {figure} |')
            print(lines[-1], flush=True)
    if options.page:
        publish(options.page, 'rates_and_sdp', ['', *lines, ''])


if __name__ == '__main__':
    main()
