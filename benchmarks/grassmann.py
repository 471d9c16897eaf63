# SPDX-License-Identifier: Apache-2.0
"""Grassmann heads: time of a step against the SVD form, and digits against linear and cosine heads over seeds.

    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/grassmann.py --part steps --page docs/benchmarks.md
    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/grassmann.py --part digits --page docs/benchmarks.md

Digits: an MLP 64-64-32 on 900 of scikit-learn's digits. "spread" is the mean angle of training features to the mean of
their class; "transfer" the accuracy of a logistic regression for 5 to 9 on features that were trained on 0 to 4 alone:
standardized, or of length 1, as the cosine and Grassmann heads see them (which regularizes the regression more).
Batches of 128 are a quarter of the steps. Network, learning rates, probes and batches were chosen on seeds 100 to 109
and 200 to 202, which are not reported. What was measured is kept in --ledger: an interrupted run goes on.
"""

import argparse
import functools
from pathlib import Path

import torch
from _seed_ledger import SeedLedger, sources, spread
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

LEDGER = Path(__file__).with_suffix('.json')
# column -> digits
COLUMNS = {'accuracy': 3, 'spread, degrees': 1, 'transfer, standardized': 3, 'transfer, length 1': 3}
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


def fit(head: str, seed: int, x, y, classes: int, batch_size: int, epochs: int = 30):
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
        for part in torch.randperm(len(x)).split(batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return model.eval(), body


@torch.no_grad()
def measure_digits(head: str, seed: int, batch_size: int) -> dict[str, float]:
    x, y = (torch.as_tensor(each) for each in load_digits(return_X_y=True))
    x = x.float() / 16
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:900], order[900:]
    with torch.enable_grad():
        model, body = fit(head, seed, x[train], y[train], 10, batch_size)
    accuracy = float((model(x[test]).argmax(1) == y[test]).float().mean())
    features = nn.functional.normalize(body(x[train]))
    means = nn.functional.normalize(torch.stack([features[y[train] == k].mean(0) for k in range(10)]))
    angles = (features * means[y[train]]).sum(1).clamp(-1, 1).acos()
    few = train[y[train] < 5]
    with torch.enable_grad():
        _, body = fit(head, seed, x[few], y[few], 5, batch_size)
    new = [each[y[each] >= 5] for each in (train, test)]
    rows = [body(x[each]) for each in new]
    transfers = []
    for scaler in (StandardScaler(), Normalizer()):
        probe = make_pipeline(scaler, LogisticRegression(max_iter=2000))
        probe.fit(rows[0].numpy(), y[new[0]].numpy())
        transfers.append(probe.score(rows[1].numpy(), y[new[1]].numpy()))
    return dict(zip(COLUMNS, (accuracy, float(angles.rad2deg().mean()), *transfers), strict=True))


def digits(seeds: list[int], ledger: SeedLedger) -> list[str]:
    """Lines of a page: heads over seeds for both sizes of a batch, and paired differences."""
    lines, entries = [], []
    for batch_size in (32, 128):
        lines += [
            f'| Head, digits, batches of {batch_size} | seeds | {" | ".join(COLUMNS)} |',
            f'|---|---|{"---|" * len(COLUMNS)}',
        ]
        results: dict[str, dict[int, dict]] = {}
        for head in ('linear', 'cosine', *(f'Grassmann, n = {dim}' for dim in (1, 2, 4, 8))):
            found = {}
            for seed in seeds:
                key = dict(head=head, batch_size=batch_size, seed=seed)
                entry = ledger.measured(key, functools.partial(measure_digits, head, seed, batch_size))
                if entry is not None:
                    found[seed] = entry['found']
                    entries.append(entry)
            results[head] = found
            cells = [spread((each[name] for each in found.values()), k) for name, k in COLUMNS.items()]
            lines.append(f'| {head} | {len(found)} | {" | ".join(cells)} |')
        for one, other in (('Grassmann, n = 1', 'Grassmann, n = 8'), ('linear', 'Grassmann, n = 8')):
            shared = sorted(set(results[one]) & set(results[other]))
            if len(shared) < 2:
                continue
            cells = []
            for name, k in COLUMNS.items():
                pair = compare(*([results[which][seed][name] for seed in shared] for which in (one, other)))
                cells.append(f'{pair.difference[0]:+.{k}f} (p {pair.p_value:.1g})')
            lines.append(f'| {other} against {one}, paired | {len(shared)} | {" | ".join(cells)} |')
        lines.append('')
    return [*lines, *sources(entries)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--part', choices=('steps', 'digits'), default='steps', help='what is measured')
    parser.add_argument('--repeats', type=int, default=5, help='of a step, at least 3')
    parser.add_argument('--seeds', type=int, nargs='+', default=list(range(10)), help='of the digits')
    parser.add_argument('--ledger', type=Path, default=LEDGER, help='file of what was measured (default: %(default)s)')
    parser.add_argument('--only-print', action='store_true', help='of the digits, what is in the ledger')
    parser.add_argument('--page', help='page whose part between the marks "grassmann_PART" is replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    with one_thread_each():
        if options.part == 'digits':
            lines = digits(options.seeds, SeedLedger(options.ledger, options.only_print, ('scikit-learn',)))
        else:
            machine = [f'{line}<br>' for line in describe_machine(())]
            lines = [*machine, '', *table(measure_steps(options.repeats))]
    print('\n'.join(lines))
    if options.page:
        publish(options.page, f'grassmann_{options.part}', ['', *lines, ''])


if __name__ == '__main__':
    main()
