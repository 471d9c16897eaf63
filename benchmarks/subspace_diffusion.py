# SPDX-License-Identifier: Apache-2.0
"""Low-rank diffusion: phase transition of subspace recovery, the denoiser against k-subspaces, Jacobians.

    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/subspace_diffusion.py
    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/subspace_diffusion.py --page docs/benchmarks.md

Mixtures of Gaussians on 6-dimensional subspaces of R^48, orthogonal to each other, noise 0.01. Errors are Frobenius
distances of projectors, the largest of the best matching. One CPU thread.

At N = d the error is about the noise over the smallest singular value of a square Gaussian matrix, which comes
arbitrarily close to 0: few draws dominate the mean, and that of 20 draws, as the reference has, scatters by 0.08.
"""

import argparse
import statistics
import time
import warnings

import torch
from _timing import describe_machine, publish

from clusterplug.datasets import MoLRG
from clusterplug.estimators import SubspaceDiffusion
from clusterplug.functional import clustering_accuracy, jacobian_svd, k_subspaces, linear_assignment

WIDTH, DIM, NOISE = 48, 6, 0.01
# mean over 20 draws of an independent implementation of PCA
PCA = {2: 2.72, 4: 1.96, 5: 1.42, 6: 0.46, 7: 0.30, 12: 0.10, 60: 0.03}


def projector_error(bases, true) -> float:
    first, second = ([basis.double() @ basis.double().T for basis in each] for each in (bases, true))
    cost = torch.stack([torch.stack([(p - q).norm() for q in second]) for p in first])
    rows, columns = linear_assignment(cost)
    return float(cost[rows, columns].max())


def spread(values: list[float]) -> str:
    return f'{statistics.mean(values):.3f} ({min(values):.3f} .. {max(values):.3f})'


def one_subspace(draws: int) -> list[str]:
    lines = [
        f'| N | N / d | error, mean of {draws} draws | median | deviation of a mean of 20 draws | reference, 20 draws '
        '| bound sqrt(2 (d - N)) |',
        '|---|---|---|---|---|---|---|',
    ]
    for count, reference in PCA.items():
        errors = []
        for seed in range(draws):
            data = MoLRG(WIDTH, [DIM], count, noise=NOISE, seed=seed, dtype=torch.float64)
            leading = torch.linalg.eigh(data.x.T @ data.x)[1][:, -DIM:]
            errors.append(projector_error([leading], data.bases))
        bound = f'{(2 * (DIM - count)) ** 0.5:.2f}' if count < DIM else '-'
        figures = f'{statistics.mean(errors):.3f} | {statistics.median(errors):.3f} '
        figures += f'| {statistics.stdev(errors) / 20**0.5:.3f} | {reference:.2f}'
        lines.append(f'| {count} | {count / DIM:.2f} | {figures} | {bound} |')
    return lines


def several_subspaces(seeds: int) -> list[str]:
    lines = [
        '| K | N of each | k-subspaces: error | accuracy | denoiser, soft: error | accuracy | denoiser, hard: error |',
        '|---|---|---|---|---|---|---|',
    ]
    for number in (2, 3):
        for count in (4, 8, 24, 60):
            found = {name: ([], []) for name in ('k', 'soft', 'hard')}
            for seed in range(seeds):
                data = MoLRG(WIDTH, [DIM] * number, count, noise=NOISE, seed=seed)
                generator = torch.Generator().manual_seed(seed)
                plain = k_subspaces(data.x.double(), number, DIM, num_restarts=30, generator=generator)
                results = {'k': (plain.bases, plain.labels)}
                for name in ('soft', 'hard'):
                    model = SubspaceDiffusion(number, DIM, soft=name == 'soft', n_init=30, random_state=seed)
                    with warnings.catch_warnings():
                        warnings.simplefilter('ignore', UserWarning)
                        model.fit(data.x)
                    results[name] = model.subspaces_, model.labels_
                for name, (bases, labels) in results.items():
                    found[name][0].append(projector_error(bases, data.bases))
                    found[name][1].append(float(clustering_accuracy(data.labels, labels)))
            accuracy = {name: statistics.mean(values[1]) for name, values in found.items()}
            lines.append(
                f'| {number} | {count} | {spread(found["k"][0])} | {accuracy["k"]:.2f} | {spread(found["soft"][0])} '
                f'| {accuracy["soft"]:.2f} | {spread(found["hard"][0])} |'
            )
    return lines


def jacobians() -> list[str]:
    """Ten singular values of a network of 3,072 numbers: passes, seconds, error."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3072, 512), torch.nn.Tanh(), torch.nn.Linear(512, 3072))
    net.requires_grad_(False)
    with torch.no_grad():
        # a spectrum that falls, as those of denoisers do
        net[0].weight.mul_((0.9 ** torch.arange(512))[:, None])
    x = torch.randn(3072)
    start = time.process_time()
    found = jacobian_svd(net, x, 10, method='power').s
    ours = time.process_time() - start
    start = time.process_time()
    full = torch.linalg.svdvals(torch.func.jacrev(net, chunk_size=256)(x))[:10]
    theirs = time.process_time() - start
    error = float((found / full - 1).abs().max())
    return [
        '| Ten singular values, 3,072 inputs and outputs | seconds | largest relative difference |', '|---|---|---|',
        f'| jacobian_svd, at most 400 passes | {ours:.2f} | {error:.1e} |',
        f'| all 3,072 passes and the full SVD | {theirs:.2f} | - |',
    ]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=5, help='of several subspaces')
    parser.add_argument('--draws', type=int, default=2000, help='of one subspace')
    parser.add_argument('--part', choices=('one', 'several', 'jacobians'), help='what is measured (default: all)')
    parser.add_argument('--page', help='page whose parts between the marks "subspace_diffusion_PART" are replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine(())
    parts = {
        'one': lambda: one_subspace(options.draws),
        'several': lambda: several_subspaces(options.seeds),
        'jacobians': jacobians,
    }
    for name in [options.part] if options.part else parts:
        lines = parts[name]()
        print('\n'.join([*machine, '', *lines]), flush=True)
        if options.page:
            page = ['', *(f'{line}<br>' for line in machine), '', *lines, '']
            publish(options.page, f'subspace_diffusion_{name}', page)


if __name__ == '__main__':
    main()
