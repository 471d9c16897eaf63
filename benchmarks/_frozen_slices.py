# SPDX-License-Identifier: Apache-2.0
"""AdrenalMNIST3D by slices of a frozen 2-D network: their mean against what an inter-slice encoder makes of them."""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from clusterplug.core.files import whole_file
from clusterplug.layers import InterSliceEncoder
from clusterplug.pretraining import MaskedSliceModel

PARTS = ('train', 'val', 'test')
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # of the logistic regressions; for every row the one that is best on val


def slice_features(data: Path, out: Path, size: int = 56) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Part -> (n, 16, 384) class tokens of DINOv2-S, labels, (n, 4096) voxels; kept in ``out``.

    A slice is the mean of four neighbors of 64 x 64 voxels, enlarged or reduced to ``size`` pixels.
    """
    sys.path.insert(0, str(data / 'vit'))
    from load_dinov2s_focus import load

    vit, found = load()[0], {}
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with np.load(data / 'volumes' / 'adrenalmnist3d_64.npz') as file, torch.inference_mode():
        for part in PARTS:
            volumes = file[f'{part}_images']
            slices = volumes.reshape(len(volumes), 16, 4, 64, 64).mean(2, dtype=np.float32) / 255
            voxels = slices.reshape(len(volumes), 16, 16, 4, 16, 4).mean((3, 5)).reshape(len(volumes), -1)
            kept = out / f'slices_{size}_{part}.npy'
            if not kept.is_file():
                images = torch.from_numpy(slices).flatten(0, 1)[:, None]
                tokens = torch.empty(len(images), 384)
                filled = images.flatten(1).any(1)
                empty = ((torch.zeros(3) - mean) / deviation)[None, :, None, None].expand(1, 3, size, size)
                tokens[~filled] = vit(empty)[0][:, 0]
                for rows in filled.nonzero()[:, 0].split(128):
                    x = F.interpolate(images[rows], size=(size, size), mode='bilinear', antialias=True).expand(
                        -1, 3, -1, -1
                    )
                    tokens[rows] = vit((x - mean[:, None, None]) / deviation[:, None, None])[0][:, 0]
                kept.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(kept, 'wb') as target:
                    np.save(target, tokens.unflatten(0, (-1, 16)).numpy())
            found[part] = (np.load(kept), file[f'{part}_labels'].reshape(-1).astype(int), voxels)
    return found


def scaled(parts: dict) -> dict[str, torch.Tensor]:
    """Features with mean 0 and deviation 1 of the training slices."""
    x = {name: torch.from_numpy(each[0]) for name, each in parts.items()}
    flat = x['train'].flatten(0, 1)
    return {name: (each - flat.mean(0)) / (flat.std(0) + 1e-6) for name, each in x.items()}


def encoder(seed: int) -> InterSliceEncoder:
    torch.manual_seed(seed)
    return InterSliceEncoder(384, depth=2, heads=6, downsample=2, dropout=0.1)


def without_labels(x: torch.Tensor, seed: int, steps: int) -> InterSliceEncoder:
    """Trained to predict hidden slices of the training volumes."""
    model = MaskedSliceModel(encoder(seed), mask_ratio=0.25).train()
    _train(model, lambda rows: model(x[rows]), len(x), seed, steps)
    return model.encoder.eval()


def with_labels(x: torch.Tensor, y: np.ndarray, seed: int, steps: int) -> InterSliceEncoder:
    """Trained to tell the two classes by a linear layer over its embedding of the volume."""
    model = nn.ModuleList([encoder(seed), nn.Linear(384, 1)]).train()
    y = torch.from_numpy(y).float()
    weight = (1 - y).sum() / y.sum()

    def loss(rows):
        logits = model[1](10 * model[0].embed(x[rows]))[:, 0]
        return F.binary_cross_entropy_with_logits(logits, y[rows], pos_weight=weight)

    _train(model, loss, len(x), seed, steps)
    return model[0].eval()


def _train(model: nn.Module, loss, number: int, seed: int, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        value = loss(torch.randperm(number, generator=generator)[:64])
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        schedule.step()


def auc_of(rows: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> float:
    """AUC on the test volumes of the logistic regression whose penalty is best on the validation volumes."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    best = (-1.0, 0.0)
    for penalty in PENALTIES:
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=penalty))
        probe.fit(rows['train'], labels['train'])
        scores = {name: roc_auc_score(labels[name], probe.decision_function(rows[name])) for name in ('val', 'test')}
        best = max(best, (scores['val'], scores['test']))
    return float(best[1])


@torch.no_grad()
def embedded(model: InterSliceEncoder, x: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: torch.cat([model.embed(part) for part in each.split(100)]).numpy() for name, each in x.items()}


def frozen_lines(data: Path, out: Path, seeds: int, steps: int, cell) -> list[str]:
    """One row a way from frozen slices to a volume."""
    parts = slice_features(data, out)
    x, labels = scaled(parts), {name: each[1] for name, each in parts.items()}
    rows = {
        'voxels, averaged to 16 x 16 x 16': lambda seed: {name: each[2] for name, each in parts.items()},
        'mean of the slices': lambda seed: {name: each.mean(1).numpy() for name, each in x.items()},
        'all 16 slices side by side': lambda seed: {name: each.flatten(1).numpy() for name, each in x.items()},
        'encoder, untrained': lambda seed: embedded(encoder(seed).eval(), x),
        f'encoder, hidden slices predicted, {steps} steps': (
            lambda seed: embedded(without_labels(x['train'], seed, steps), x)
        ),
        f'encoder, trained with labels, {steps} steps': (
            lambda seed: embedded(with_labels(x['train'], labels['train'], seed, steps), x)
        ),
    }
    lines = ['| AdrenalMNIST3D, AUC of a logistic regression on 298 test volumes | AUC |', '|---|---|']
    for name, make in rows.items():
        found = [auc_of(make(seed), labels) for seed in range(seeds if name.startswith('encoder') else 1)]
        lines.append(f'| {name} | {cell(found)} |')
        print(lines[-1], flush=True)
    return lines
