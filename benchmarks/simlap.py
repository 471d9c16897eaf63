# SPDX-License-Identifier: Apache-2.0
"""SimLAP on digits: pairs of any two classes with and without gates; and the memory of the gated similarity.

    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/simlap.py
    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/simlap.py --page docs/benchmarks.md

scikit-learn's digits, 1,200 for training and 597 for the test; a CNN of three layers (64 features), a projector to 32
dimensions, batches of 240, 30 epochs of Adam. Judged on the features of the backbone: accuracy of the 20 nearest
training digits and of a logistic regression. Every training is noted in ``--ledger`` and not made again.

``--norms batch``: with batch norm in the projector, as the authors have it, which helps where there are no gates.
``--data mnist``: as many digits of ``CLUSTERPLUG_DATA``/images/mnist_t10k.npz, averaged to 8 x 8, on which norms and
networks were looked at first. ``--networks``, ``--variants``: by their names in the table.
"""

import argparse
import functools
import itertools
from pathlib import Path

import numpy as np
import torch
from _gain_ledger import interval
from _seed_ledger import SeedLedger, sources
from _small_digits import digits, mnist
from _timing import describe_machine, interleaved, publish
from torch import nn

from clusterplug.functional import gated_similarity
from clusterplug.heads import ClassPairGate
from clusterplug.losses import GatedContrastLoss
from clusterplug.testing import peak_bytes

UNGATED = 'any two classes, no gate'
VARIANTS = {  # pairing, mode of the gate, cosine inside the gate; of open gates both forms are one
    'none: an untrained network': ('none', 'open', True),
    UNGATED: ('arbitrary', 'open', True),
    'any two classes, gate': ('arbitrary', 'fuse', True),
    "any two classes, gate, the authors' product": ('arbitrary', 'fuse', False),
    'own class, gate': ('identical', 'fuse', True),
    'own class, no gate (SupCon)': ('identical', 'open', True),
}
NETWORKS = ('strides', 'max pooling')
NORMS = ('none', 'batch')  # of the projector, before its LayerNorm


def network(name):
    """Three convolutions, 64 features."""
    if name == 'strides':
        layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
                  nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()]  # fmt: skip
    else:
        layers = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1),
                  nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]  # fmt: skip
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def parts_of(data, seed):
    """Images and labels for training and for the test; the seed draws both."""
    x, y = mnist(seed) if data == 'mnist' else digits()
    if data == 'digits':
        order = np.random.default_rng(seed).permutation(len(x))
        x, y = x[order], y[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def train(data, name, norm, seed, pairing, mode, inside, epochs):
    torch.manual_seed(seed)
    x, y, x_test, y_test = parts_of(data, seed)
    backbone = network(name)
    middle = [nn.BatchNorm1d(128), nn.ReLU()] if norm == 'batch' else [nn.ReLU()]
    projector = nn.Sequential(nn.Linear(64, 128), *middle, nn.Linear(128, 32, bias=False), nn.LayerNorm(32))
    epochs = 0 if pairing == 'none' else epochs
    pairing = 'identical' if pairing == 'none' else pairing
    gate = ClassPairGate(10, 32, 64, 128, mode=mode)
    loss = GatedContrastLoss(gate, 0.1, pairing, normalize_in_subspace=inside, seed=seed)
    parts = nn.ModuleList([backbone, projector, loss])
    optimizer = torch.optim.Adam(parts.parameters(), 1e-3)
    first = last = 0.0
    for epoch in range(epochs):
        values = []
        for rows in torch.randperm(len(x)).split(240):
            value = loss(projector(backbone(x[rows])), None, y[rows])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        first, last = (np.mean(values) if epoch == 0 else first), np.mean(values)
    backbone.eval()
    with torch.no_grad():
        h, h_test = backbone(x), backbone(x_test)
    return dict(
        knn=knn(h, y, h_test, y_test), linear=linear(h, y, h_test, y_test), first=float(first), last=float(last)
    )


def knn(h, y, h_test, y_test):
    h, h_test = (nn.functional.normalize(each, dim=1) for each in (h, h_test))
    near = y[(h_test @ h.T).topk(20).indices]
    votes = nn.functional.one_hot(near, 10).sum(1)
    return float((votes.argmax(1) == y_test).float().mean())


def linear(h, y, h_test, y_test):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(probe.fit(h.numpy(), y.numpy()).score(h_test.numpy(), y_test.numpy()))


def similarity_lines():
    generator = torch.Generator().manual_seed(0)
    b, n, d = 256, 2048, 256
    z, k = torch.randn(b, d, generator=generator), torch.randn(n, d, generator=generator)
    g = torch.rand(b, d, generator=generator)

    def dense():
        return nn.functional.cosine_similarity((z * g)[:, None], k * g[:, None], dim=-1)

    def ours():
        return gated_similarity(z, k, g)

    gap = (dense() - ours()).abs().max()
    times = {name: np.median(values) for name, values in interleaved({'dense': dense, 'ours': ours}, 3).items()}
    memory = {'dense': peak_bytes(dense) / 2**20, 'ours': peak_bytes(ours) / 2**20}
    return [
        f'`gated_similarity`, {b} anchors, {n} keys, {d} dimensions (equal to {gap:.0e}): {times["ours"]:.0f} ms and '
        f'{memory["ours"]:.0f} MB; the form with a (B, N, D) tensor {times["dense"]:.0f} ms and '
        f'{memory["dense"]:.0f} MB ({times["dense"] / times["ours"]:.0f} and '
        f'{memory["dense"] / memory["ours"]:.0f} times).'
    ]


def cell(values):
    return f'{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}' if len(values) > 1 else f'{values[0]:.3f}'


def training_lines(options, ledger):
    """One table a network; above the trainings without gates: paired by seeds, in points of the 20 nearest."""
    lines, entries = [], []
    for name, norm in itertools.product(options.networks, options.norms):
        title = f'{name}, {"batch norm" if norm == "batch" else "no batch norm"} in the projector: positive pairs'
        lines += ['', f'| {title} | 20-NN | above no gate, points | linear probe | loss |', '|---|---|---|---|---|']
        found = {}
        for variant in options.variants:
            for seed in range(options.seeds):
                key = dict(
                    data=options.data, network=name, norm=norm, variant=variant, seed=seed, epochs=options.epochs
                )
                make = functools.partial(train, options.data, name, norm, seed, *VARIANTS[variant], options.epochs)
                entry = ledger.measured(key, make)
                if entry:
                    entries.append(entry)
                    found.setdefault(variant, []).append(entry['found'])
        for variant, runs in found.items():
            if len(runs) < options.seeds:
                continue
            base, above = found.get(UNGATED), ''
            if base and variant != UNGATED and len(base) == len(runs):
                points = [100 * (a['knn'] - b['knn']) for a, b in zip(runs, base, strict=True)]
                low, high = interval(points)
                above = f'{np.mean(points):+.1f} ({low:+.1f} to {high:+.1f})'
            first, last = (np.mean([run[key] for run in runs]) for key in ('first', 'last'))
            loss = f'{first:.2f} to {last:.2f}' if last else ''
            cells = [cell([run[key] for run in runs]) for key in ('knn', 'linear')]
            lines.append(f'| {variant} | {cells[0]} | {above} | {cells[1]} | {loss} |')
    return lines, entries


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', choices=('digits', 'mnist'), default='digits')
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--norms', nargs='+', choices=NORMS, default=list(NORMS))
    parser.add_argument('--variants', nargs='+', choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--epochs', type=int, default=30)
    parser.add_argument('--ledger', type=Path, default=Path('work_dirs/simlap/ledger.json'))
    parser.add_argument('--only-print', action='store_true', help='write what is noted, train nothing')
    parser.add_argument('--page', help='page whose part between the marks "simlap" is replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines, entries = training_lines(options, SeedLedger(options.ledger, options.only_print, ('scikit-learn',)))
    text = [f'{options.data}, {options.seeds} seeds, mean ± standard deviation; differences paired by seeds, with 95 % '
            'intervals; loss of the first and the last epoch.', *lines]  # fmt: skip
    text += ['', *similarity_lines(), '', 'Trainings measured on:', '', *sources(entries)]
    machine = describe_machine(('scikit-learn',))
    print('\n'.join([*machine, *text]))
    if options.page:
        publish(options.page, 'simlap', ['', *(f'{line}<br>' for line in machine), '', *text, ''])


if __name__ == '__main__':
    main()
