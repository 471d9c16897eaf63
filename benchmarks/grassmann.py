# SPDX-License-Identifier: Apache-2.0
"""Grassmann heads: time of a step against the SVD form, and digits against linear and cosine heads over seeds.

    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/grassmann.py
    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/grassmann.py --page docs/benchmarks.md

Digits: an MLP 64-64-32 on 900 of scikit-learn's digits. "spread" is the mean angle of training features to the mean of
their class; "transfer" the accuracy of a logistic regression for 5 to 9 on features that were trained on 0 to 4 alone:
standardized, or of length 1, as the cosine and Grassmann heads see them (which regularizes the regression more).
Network, learning rates and the probes were chosen on seeds 100 to 109 and 200 to 202, which are not reported.
"""

import argparse
import statistics

import torch
from _timing import Row, describe_machine, interleaved, one_thread_each, publish, rows, table
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import nn

from clusterplug.experiments import compare
from clusterplug.functional import grassmann_step
from clusterplug.heads import GrassmannHead
from clusterplug.optim import RiemannianSGD, grassmann_groups

DIGITS = (3, 1, 3, 3)  # of the columns
SIZES = {(1000, 2048, 8): 2.0, (300, 2048, 16): None, (100, 512, 8): None}


class CosineHead(nn.Linear):
    """Softmax over cosines."""

    def forward(self, x):
        return 25 * nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))


def measure_steps(repeats: int) -> list[Row]:
    found = []
    for (count, size, dim), target in SIZES.items():
        generator = torch.Generator().manual_seed(0)
        bases = torch.linalg.qr(torch.randn(count, size, dim, generator=generator)).Q.mT.contiguous()
        gradient = 0.05 * torch.randn(count, dim, size, generator=generator)

        def ours(bases=bases, gradient=gradient):
            return grassmann_step(bases.mT, gradient.mT, -0.1).mT

        def svd(bases=bases, gradient=gradient):
            tangent = gradient - gradient @ bases.mT @ bases
            u, s, vh = torch.linalg.svd(tangent.mT, full_matrices=False)
            turned = (bases.mT @ vh.mT) * (-0.1 * s).cos()[:, None] + u * (-0.1 * s).sin()[:, None]
            return (turned @ vh).mT.contiguous()

        gap = float((ours() - svd()).abs().max())
        assert gap < 2e-6, gap
        times = interleaved({'ours': ours, 'SVD of D x n, as the authors': svd}, repeats)
        name = f'step of {count} subspaces, {dim} of {size}'
        remark = {'SVD of D x n, as the authors': f'equal to {gap:.0e}'}
        found += rows(name, times, 'ours', {'SVD of D x n, as the authors': target} if target else {}, remark)
    return found


def fit(head: str, seed: int, x, y, classes: int, epochs: int = 30):
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    if head.startswith('Grassmann'):
        last = GrassmannHead(32, classes, int(head.rsplit(' ', 1)[1]))
    else:
        last = {'linear': nn.Linear, 'cosine': CosineHead}[head](32, classes)
    model = nn.Sequential(body, last)
    lr = 0.1 if head == 'linear' else 0.02
    groups = grassmann_groups(model) if head.startswith('Grassmann') else model.parameters()
    optimizer = RiemannianSGD(groups, lr, 0.9)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return model.eval(), body


@torch.no_grad()
def measure_digits(head: str, seed: int) -> tuple[float, ...]:
    x, y = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    x = x.float() / 16
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:900], order[900:]
    with torch.enable_grad():
        model, body = fit(head, seed, x[train], y[train], 10)
    accuracy = float((model(x[test]).argmax(1) == y[test]).float().mean())
    features = nn.functional.normalize(body(x[train]))
    means = nn.functional.normalize(torch.stack([features[y[train] == k].mean(0) for k in range(10)]))
    angles = (features * means[y[train]]).sum(1).clamp(-1, 1).acos()
    few = train[y[train] < 5]
    with torch.enable_grad():
        _, body = fit(head, seed, x[few], y[few], 5)
    new = [each[y[each] >= 5] for each in (train, test)]
    rows = [body(x[each]) for each in new]
    transfers = []
    for scaler in (StandardScaler(), Normalizer()):
        probe = make_pipeline(scaler, LogisticRegression(max_iter=2000))
        probe.fit(rows[0].numpy(), y[new[0]].numpy())
        transfers.append(probe.score(rows[1].numpy(), y[new[1]].numpy()))
    return accuracy, float(angles.rad2deg().mean()), *transfers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=5, help='at least 3')
    parser.add_argument('--seeds', type=int, default=10)
    parser.add_argument('--page', help='page whose part between the marks "grassmann" is replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine(('scikit-learn',))
    lines = [
        f'| Head, digits, {options.seeds} seeds | Accuracy (sd) | Spread, degrees (sd) '
        '| Transfer, standardized (sd) | Transfer, length 1 (sd) |',
        '|---|---|---|---|---|',
    ]
    with one_thread_each():
        timed = table(measure_steps(options.repeats))
        results = {}
        for head in ('linear', 'cosine', *(f'Grassmann, n = {dim}' for dim in (1, 2, 4, 8))):
            found = list(zip(*(measure_digits(head, seed) for seed in range(options.seeds)), strict=True))
            results[head] = found
            cells = [
                f'{statistics.mean(values):.{digits}f} ({statistics.stdev(values):.{digits}f})'
                for values, digits in zip(found, DIGITS, strict=True)
            ]
            lines.append(f'| {head} | {" | ".join(cells)} |')
    for one, other in (('Grassmann, n = 1', 'Grassmann, n = 8'), ('linear', 'Grassmann, n = 8')):
        cells = []
        for before, after, digits in zip(results[one], results[other], DIGITS, strict=True):
            pair = compare(before, after)
            cells.append(f'{pair.difference[0]:+.{digits}f} (p {pair.p_value:.1g})')
        lines.append(f'| {other} against {one}, paired | {" | ".join(cells)} |')
    print('\n'.join([*machine, *timed, '', *lines]))
    if options.page:
        publish(options.page, 'grassmann', ['', *(f'{line}<br>' for line in machine), '', *timed, '', *lines, ''])


if __name__ == '__main__':
    main()
