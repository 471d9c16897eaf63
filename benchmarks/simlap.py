# SPDX-License-Identifier: Apache-2.0
"""SimLAP on digits: pairs of any two classes with and without gates; and the memory of the gated similarity.

    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/simlap.py
    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/simlap.py --page docs/benchmarks.md

scikit-learn's digits, 1,200 for training and 597 for the test; a CNN of three layers (64 features), a projector to 32
dimensions, batches of 240, 30 epochs of Adam. Judged on the features of the backbone: accuracy of the 20 nearest
training digits and of a logistic regression.
"""

import argparse

import numpy as np
import torch
from _timing import describe_machine, interleaved, publish
from torch import nn

from clusterplug.functional import gated_similarity
from clusterplug.heads import ClassPairGate
from clusterplug.losses import GatedContrastLoss
from clusterplug.testing import peak_bytes

VARIANTS = {
    'any two classes, gate': ('arbitrary', 'fuse'),
    'own class, gate': ('identical', 'fuse'),
    'any two classes, no gate': ('arbitrary', 'open'),
    'own class, no gate (SupCon)': ('identical', 'open'),
    'none: an untrained network': ('none', 'open'),
}


def digits(seed):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x = torch.tensor(x[order], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(y[order])
    return x[:1200], y[:1200], x[1200:], y[1200:]


def train(seed, pairing, mode, epochs):
    torch.manual_seed(seed)
    x, y, x_test, y_test = digits(seed)
    backbone = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    projector = nn.Sequential(
        nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 32, bias=False), nn.LayerNorm(32)
    )
    epochs = 0 if pairing == 'none' else epochs
    pairing = 'identical' if pairing == 'none' else pairing
    loss = GatedContrastLoss(ClassPairGate(10, 32, 64, 128, mode=mode), 0.1, pairing, seed=seed)
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
    return dict(knn=knn(h, y, h_test, y_test), linear=linear(h, y, h_test, y_test), first=first, last=last)


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--epochs', type=int, default=30)
    parser.add_argument('--page', help='page whose part between the marks "simlap" is replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = ['| positive pairs | 20-NN | linear probe | loss, first to last epoch |', '|---|---|---|---|']
    for name, (pairing, mode) in VARIANTS.items():
        runs = [train(seed, pairing, mode, options.epochs) for seed in range(options.seeds)]
        cells = [f'{np.mean(v):.3f} ± {np.std(v, ddof=1):.3f}' if len(v) > 1 else f'{v[0]:.3f}'
                 for v in ([run[key] for run in runs] for key in ('knn', 'linear'))]  # fmt: skip
        first, last = (np.mean([run[key] for run in runs]) for key in ('first', 'last'))
        lines.append(f'| {name} | {cells[0]} | {cells[1]} | {first:.2f} to {last:.2f} |')
        print(lines[-1], flush=True)
    text = [f'{options.seeds} seeds, mean ± standard deviation:', '', *lines, '', *similarity_lines()]
    machine = describe_machine(('scikit-learn',))
    print('\n'.join([*machine, *text]))
    if options.page:
        publish(options.page, 'simlap', ['', *(f'{line}<br>' for line in machine), '', *text, ''])


if __name__ == '__main__':
    main()
