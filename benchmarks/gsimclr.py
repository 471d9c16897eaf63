# SPDX-License-Identifier: Apache-2.0
"""Cluster-disjoint batches on digits: how many false negatives they remove, and whether SimCLR gains from it.

    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/gsimclr.py
    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/gsimclr.py --page docs/benchmarks.md
    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/gsimclr.py --train

Pseudo-labels are k-means of the pixels, or of a denoising autoencoder. With ``--train`` also SimCLR with batches of 8
(small shifts and noise as views), in batches drawn at random, by pseudo-labels, by the true labels (the most that there
is to gain) and by random labels (which must change nothing); judged by the 20 nearest neighbors of the backbone's
features on 597 digits.
"""

import argparse

import numpy as np
import torch
from _timing import describe_machine, publish
from torch import nn

from clusterplug.datasets.samplers import ClusterDisjointBatchSampler, same_label_rate
from clusterplug.estimators import DenoisingAutoencoder, KMeans
from clusterplug.losses import NTXentLoss


def digits(seed):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    return x[order].astype(np.float32), y[order]


def official_batches(labels, batch_size):
    """The published order: rank of each sample in its cluster, sorted, cut into slices."""
    rank = np.empty(len(labels), dtype=int)
    for cluster in np.unique(labels):
        members = np.flatnonzero(labels == cluster)
        rank[members] = np.arange(len(members))
    order = np.argsort(rank, kind='stable')
    return order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)


def random_batches(number, batch_size, rng, epochs=10):
    size = number // batch_size * batch_size
    return np.concatenate([rng.permutation(number)[:size].reshape(-1, batch_size) for _ in range(epochs)])


def rates(seeds):
    lines = ['| pseudo-labels | batch | pairs of one digit | random batches | published order | coverage |',
             '|---|---|---|---|---|---|']  # fmt: skip
    for k, batch_size, kind in ((10, 8, 'k-means of pixels'), (10, 8, 'autoencoder'), (64, 16, 'k-means of pixels')):
        found = []
        for seed in range(1 if kind == 'autoencoder' else seeds):
            x, y = digits(seed)
            if kind == 'autoencoder':
                model = DenoisingAutoencoder(k, epochs=5, random_state=seed).fit(x.reshape(-1, 1, 8, 8))
            else:
                model = KMeans(k, n_init=5, random_state=seed).fit(x)
            sampler = ClusterDisjointBatchSampler(model.labels_, batch_size, seed=seed)
            found.append([
                same_label_rate(sampler, y),
                same_label_rate(random_batches(len(y), batch_size, np.random.default_rng(seed)), y),
                same_label_rate(official_batches(model.labels_, batch_size), y),
                sampler.coverage,
            ])  # fmt: skip
        cells = [f'{value:.3f}' for value in np.mean(found, 0)]
        lines.append(f'| {kind}, {k} clusters | {batch_size} | {" | ".join(cells)} |')
        print(lines[-1], flush=True)
    return lines


def views(x, generator):
    """Shift by up to one pixel and add noise, each digit by itself."""
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    shift = torch.randint(0, 3, (2, len(x)), generator=generator)
    rows = torch.arange(8)[None, :, None] + shift[0][:, None, None]
    columns = torch.arange(8)[None, None, :] + shift[1][:, None, None]
    moved = padded[torch.arange(len(x))[:, None, None], 0, rows, columns][:, None]
    return moved + 0.1 * torch.randn(moved.shape, generator=generator)


def train(seed, kind, epochs, batch_size=8):
    torch.manual_seed(seed)
    x, y = digits(seed)
    x = torch.tensor(x).reshape(-1, 1, 8, 8) / 16
    rng = np.random.default_rng(seed)
    labels = {
        'random batches': lambda: np.full(1200, -1),
        'pseudo-labels': lambda: KMeans(10, n_init=5, random_state=seed).fit_predict(x[:1200].flatten(1).numpy()),
        'true labels': lambda: y[:1200],
        'random labels': lambda: rng.integers(0, 10, 1200),
    }[kind]()
    sampler = ClusterDisjointBatchSampler(labels, batch_size, seed=seed)
    backbone = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
    )  # fmt: skip
    head = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 50))
    loss = NTXentLoss(0.1)
    optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], 1e-3)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for batch in sampler:
            picked = x[batch]
            value = loss([head(backbone(views(picked, generator))) for _ in range(2)])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    backbone.eval()
    with torch.no_grad():
        h = nn.functional.normalize(backbone(x), dim=1)
    near = torch.tensor(y[:1200])[(h[1200:] @ h[:1200].T).topk(20).indices]
    votes = nn.functional.one_hot(near, 10).sum(1).argmax(1)
    return float((votes == torch.tensor(y[1200:])).float().mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--epochs', type=int, default=6)
    parser.add_argument('--train', action='store_true', help='also train: some minutes')
    parser.add_argument('--page', help='page whose part between the marks "gsimclr" is replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = rates(options.seeds)
    found = {}
    kinds = ('random batches', 'pseudo-labels', 'true labels', 'random labels')
    for kind in kinds if options.train else ():
        found[kind] = [train(seed, kind, options.epochs) for seed in range(options.seeds)]
        print(kind, found[kind], flush=True)
    table = ['| batches disjoint by | 20-NN | against random batches, paired |', '|---|---|---|']
    for kind, values in found.items():
        gain = np.subtract(values, found['random batches'])
        paired = '' if kind == 'random batches' else f'{gain.mean():+.3f} ± {gain.std(ddof=1):.3f}'
        table.append(f'| {kind} | {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} | {paired} |')
    machine = describe_machine(('scikit-learn',))
    text = [
        *lines,
        '',
        f'SimCLR, {options.epochs} epochs of 1,200 digits, batches of 8, {options.seeds} seeds:',
        '',
        *table,
    ]
    print('\n'.join([*machine, *text]))
    if options.page:
        publish(options.page, 'gsimclr', ['', *(f'{line}<br>' for line in machine), '', *text, ''])


if __name__ == '__main__':
    main()
