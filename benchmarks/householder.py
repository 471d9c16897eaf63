# SPDX-License-Identifier: Apache-2.0
"""Householder products and projectors: time against LAPACK's product and torch's parametrization, errors, a recovery.

    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/householder.py
    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/householder.py --page docs/benchmarks.md

One CPU thread; medians of process time, forward and backward, ours and its peers in turn. Results are compared before
anything is timed.
"""

import argparse
import statistics

import torch
from _timing import Row, describe_machine, interleaved, one_thread_each, publish, rows, table
from torch import nn

from clusterplug.functional import householder_product
from clusterplug.layers import HouseholderProjector, register_householder

TARGETS = {(512, 512): 4.0, (512, 10): 12.0}


def of_lapack(size: int, count: int):
    """Normals in LAPACK's form: unit lower trapezoid, with the factors of the reflections."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(size, count, generator=generator).tril()
    v = v / v.diagonal().clone()
    return v.requires_grad_(), (2 / v.detach().square().sum(0)).requires_grad_()


def measure_products(repeats: int) -> list[Row]:
    found = []
    for (size, count), target in TARGETS.items():
        v, tau = of_lapack(size, count)
        weights = torch.randn(size, count, generator=torch.Generator().manual_seed(1))
        gap = (householder_product(v) - torch.linalg.householder_product(v, tau)).detach().abs().max()
        assert gap < 2e-6, gap

        def ours(v=v, weights=weights):
            torch.autograd.grad(householder_product(v), v, weights)

        def theirs(v=v, tau=tau, weights=weights):
            torch.autograd.grad(torch.linalg.householder_product(v, tau), (v, tau), weights)

        peer = 'torch.linalg.householder_product'
        calls = 1 if count > 100 else 20  # small ones in a row, as each would start with the caches of the other
        times = interleaved({'ours': in_a_row(ours, calls), peer: in_a_row(theirs, calls)}, repeats)
        times = {name: [each / calls for each in values] for name, values in times.items()}
        remark = f'equal to {float(gap):.0e}'
        found += rows(f'product {size} x {count}, forward and backward', times, 'ours', {peer: target}, {peer: remark})
    return found


def in_a_row(call, times: int):
    def run():
        for _ in range(times):
            call()

    return run


def measure_layers(repeats: int) -> list[Row]:
    """A projection 512 -> 512 of rank 10 for a batch of 16, forward and backward."""
    ours, x = HouseholderProjector(512, 512, 10), torch.randn(16, 512)
    plain = nn.utils.parametrizations.orthogonal(nn.Linear(512, 512), orthogonal_map='householder')
    weight = register_householder(nn.Linear(512, 512), 'weight', 10)
    layers = {'ours': ours, 'register_householder (the weight is made)': weight, 'torch orthogonal, 512 of 512': plain}

    def step(layer):
        return lambda: torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()), allow_unused=True)

    times = interleaved({name: step(layer) for name, layer in layers.items()}, repeats)
    return rows('layer 512 -> 512, rank 10, batch 16', times, 'ours', {})


def errors() -> list[str]:
    """Orthogonality before and after training steps, and how well a subspace is found."""
    layer = HouseholderProjector(512, 512, 10)
    lines = ['| What | Figure |', '|---|---|']
    q = householder_product(torch.randn(512, 512, generator=torch.Generator().manual_seed(0)))
    lines.append(
        f'| orthogonality error of 512 reflections, fp32 | {float((q.mT @ q - torch.eye(512)).abs().max()):.1e} |'
    )
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for step in range(100):
        optimizer.zero_grad()
        x = torch.randn(32, 512, generator=torch.Generator().manual_seed(step))
        (layer(x) - x.roll(1, 1)).square().mean().backward()
        optimizer.step()
    values = torch.linalg.svdvals(layer.weight().detach())
    deviation = max(float((values[:10] - 1).abs().max()), float(values[10:].max()))
    lines.append(
        f'| largest deviation of the singular values from ten 1 and zeros after 100 steps of Adam | {deviation:.1e} |'
    )
    sines = [recovered(seed) for seed in range(5)]
    spread = f'{statistics.median(sines):.0e} (largest {max(sines):.0e})'
    lines.append(
        f'| largest sine to a 10-d subspace of R^64, 2,000 points, L-BFGS, float64, 5 seeds: median | {spread} |'
    )
    return lines


def recovered(seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(64, 10, generator=generator, dtype=torch.float64)).Q
    x = torch.randn(2000, 10, generator=generator, dtype=torch.float64) * torch.linspace(3, 1, 10, dtype=torch.float64)
    covariance = basis @ (x.T @ x / len(x)) @ basis.T
    v = (0.05 * torch.randn(64, 10, generator=generator, dtype=torch.float64)).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [v], max_iter=400, tolerance_grad=1e-13, tolerance_change=1e-20, line_search_fn='strong_wolfe'
    )

    def closure():
        optimizer.zero_grad()
        q = householder_product(v)
        loss = covariance.trace() - (q * (covariance @ q)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    q = householder_product(v).detach()
    return float(torch.linalg.matrix_norm(q - basis @ (basis.T @ q), 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=7, help='at least 3')
    parser.add_argument('--page', help='page whose part between the marks "householder" is replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    machine = describe_machine(())
    with one_thread_each():
        timed = table([*measure_products(options.repeats), *measure_layers(options.repeats)])
        found = errors()
    print('\n'.join([*machine, *timed, '', *found]))
    if options.page:
        publish(options.page, 'householder', ['', *(f'{line}<br>' for line in machine), '', *timed, '', *found, ''])


if __name__ == '__main__':
    main()
