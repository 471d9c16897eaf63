# SPDX-License-Identifier: Apache-2.0
"""Rate reduction, self-expression, semidefinite programs and the estimators on them: figures over seeds.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/rates_and_sdp.py                     # all, some minutes
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/rates_and_sdp.py --only rate mixture
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/rates_and_sdp.py --page docs/benchmarks.md

Times are process times of one thread. The digits are those of scikit-learn.
"""

import argparse
import statistics
import time
import warnings

import numpy as np
import torch
from _timing import describe_machine, publish

from clusterplug.estimators import DeepSubspaceClustering, KMeans, LikelihoodSDP, ManifoldClustering
from clusterplug.functional import (
    clustering_accuracy,
    coding_rate,
    kmeans_sdp,
    likelihood_sdp,
    normalized_mutual_info,
    rate_reduction,
    self_expression,
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
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 3
    x = torch.randn(2000, 5, generator=generator) + 5 * torch.eye(5)[labels]
    call = lambda: kmeans_sdp(x, 3, solver='factorized', tol=1e-4, generator=generator)  # noqa: E731
    return [('k-means program, factorized, 2,000 points', f'{seconds(call):.2f} s')]


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
    for seed in range(seeds):
        X, covariances, truth = mixture_of(seed, 75)
        for name, model in {
            'k-means': KMeans(3, random_state=0),
            'Gaussian mixture (EM from k-means)': GaussianMixture(3, random_state=0),
            'LikelihoodSDP': LikelihoodSDP(3, random_state=0),
            'LikelihoodSDP, known covariances': LikelihoodSDP(3, covariances=covariances, random_state=0),
        }.items():
            labels = torch.as_tensor(np.asarray(model.fit_predict(X)))
            found.setdefault(name, []).append(clustering_accuracy(truth, labels.long()))
    return [(f'heterogeneous mixture, {seeds} draws, accuracy: {name}', spread(each)) for name, each in found.items()]


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
    each.__name__: each for each in (rate, expression, program, dense, mixture, subspaces, digits_subspaces, digits)
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=PARTS, nargs='+', default=list(PARTS))
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--page', help='page whose part between the marks "rates_and_sdp" is replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    lines = [
        *(f'{line}<br>' for line in describe_machine(('scikit-learn', 'numpy'))),
        '',
        '| What | Figure |',
        '|---|---|',
    ]
    for part in options.only:
        for what, figure in PARTS[part](options.seeds):
            lines.append(f'| {what} | {figure} |')
            print(lines[-1], flush=True)
    if options.page:
        publish(options.page, 'rates_and_sdp', ['', *lines, ''])


if __name__ == '__main__':
    main()
