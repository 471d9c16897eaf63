# SPDX-License-Identifier: Apache-2.0
"""Image-volume: what the features of whole volumes tell after a short training without labels.

    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/image_volume.py
    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/image_volume.py --page docs/benchmarks.md

Volumes of 16 slices of 16 x 16: generated balls, shells, rods and plates (k-means accuracy), and, where
``CLUSTERPLUG_DATA`` has ``volumes/adrenalmnist3d_64.npz``, AdrenalMNIST3D averaged over 4 x 4 x 4 voxels (AUC of a
logistic regression on the official test volumes). The backbone is a CNN of three layers, 64 features; all features are
of the trained model but for the first row of each table.

``--parts frozen``: slices of AdrenalMNIST3D through the frozen DINOv2-S of ``CLUSTERPLUG_DATA``/vit (features are kept
under ``--out``), and what an inter-slice encoder over them tells more than their mean: without and with labels.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from _timing import describe_machine, publish
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


def adrenal(folder):
    with np.load(folder / 'volumes' / 'adrenalmnist3d_64.npz') as file:
        parts = []
        for part in ('train', 'test'):
            x = file[f'{part}_images']
            x = x.reshape(len(x), 16, 4, 16, 4, 16, 4).mean((2, 4, 6), dtype=np.float32)
            parts += [x.round().astype(np.uint8), file[f'{part}_labels'].reshape(-1).astype(int)]
    return parts


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


def auc(x, y, x_test, y_test):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=0.1)).fit(x, y)
    return float(roc_auc_score(y_test, probe.decision_function(x_test)))


def cell(values):
    return f'{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}' if len(values) > 1 else f'{values[0]:.3f}'


def table(title, seeds, measure, lines):
    lines += ['', f'| {title} | mean of the slices of the backbone | mean of the mixed slices |', '|---|---|---|']
    for name, weights in TERMS.items():
        runs = [measure(weights, seed) for seed in range(seeds)]
        lines.append(f'| {name} | {cell([run[0] for run in runs])} | {cell([run[1] for run in runs])} |')
        print(lines[-1], flush=True)


def frozen(options) -> list[str]:
    from _frozen_slices import frozen_lines

    data = Path(os.environ.get('CLUSTERPLUG_DATA', ''))
    lines = frozen_lines(data, options.out, options.seeds, options.frozen_steps, cell)
    runs = '1 seed' if options.seeds == 1 else f'{options.seeds} seeds, mean ± standard deviation'
    return [f'{runs}; penalties chosen on the validation volumes.', '', *lines]


def trained(options) -> list[str]:
    lines = [f'{options.seeds} seeds, mean ± standard deviation; {options.steps} steps of 32 volumes.']

    def of_shapes(weights, seed):
        x, y = shapes(400, seed)
        return [accuracy(each, y) for each in features(train(x, weights, seed, options.steps), x)]

    table('four shapes, accuracy of k-means', options.seeds, of_shapes, lines)
    x, y = shapes(400, 0)
    lines += ['', f'k-means of the voxels of the shapes: {accuracy(x.reshape(len(x), -1).astype(np.float32), y):.3f}.']
    folder = Path(os.environ.get('CLUSTERPLUG_DATA', ''))
    if (folder / 'volumes' / 'adrenalmnist3d_64.npz').is_file():
        x, y, x_test, y_test = adrenal(folder)

        def of_glands(weights, seed):
            model = train(x, weights, seed, options.steps)
            return [auc(a, y, b, y_test) for a, b in zip(features(model, x), features(model, x_test), strict=True)]

        table('AdrenalMNIST3D, AUC', options.seeds, of_glands, lines)
        voxels = [each.reshape(len(each), -1).astype(np.float32) for each in (x, x_test)]
        lines += ['', f'Logistic regression on the 4,096 averaged voxels: {auc(voxels[0], y, voxels[1], y_test):.3f}.']
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--parts', nargs='+', choices=('trained', 'frozen'), default=['trained'])
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--frozen-steps', type=int, default=200, help='of the encoder over frozen slices')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/image_volume'), help='features of frozen slices')
    parser.add_argument('--page', help='page whose parts "image_volume" and "image_volume_frozen" are replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine(('scikit-learn',))
    for part, mark in (('trained', 'image_volume'), ('frozen', 'image_volume_frozen')):
        if part in options.parts:
            lines = {'trained': trained, 'frozen': frozen}[part](options)
            print('\n'.join([*machine, *lines]))
            if options.page:
                publish(options.page, mark, ['', *(f'{line}<br>' for line in machine), '', *lines, ''])


if __name__ == '__main__':
    main()
