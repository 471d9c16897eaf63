# SPDX-License-Identifier: Apache-2.0
"""What nested heads do for the first channels of a small encoder: 8 x 8 digits, k-means accuracy."""

import functools
import itertools

import numpy as np
import torch
from _gain_ledger import interval
from _seed_ledger import SeedLedger, sources
from _small_digits import digits, mnist
from swav import view
from torch import Tensor, nn

from clusterplug.functional import clustering_accuracy, kmeans
from clusterplug.heads import MatryoshkaHead
from clusterplug.losses import NestedClusterLoss, SwAVLoss

WIDTHS = (8, 16, 32, 64)
HEADS = {'nested, widths 8 16 32 64': (8, 4, 2, 1), 'one head': (1,)}


def parts_of(nesting: tuple[int, ...], prototypes: int) -> tuple[nn.Module, MatryoshkaHead]:
    """A CNN to 64 channels, and heads with batch norm in the projectors, without which the loss stays near ln K."""
    widths = ((1, 16, 1), (16, 32, 2), (32, 64, 1))
    layers = [(nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b, stride in widths]
    encoder = nn.Sequential(*itertools.chain(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return encoder, MatryoshkaHead(
        64, prototypes, nesting, hidden_channels=128, bottleneck=32, num_layers=2, norm='batch'
    )  # fmt: skip


def accuracy(z: Tensor, y: Tensor) -> float:
    """Of the best of five k-means on the directions of rows."""
    z = nn.functional.normalize(z, dim=1)
    runs = (kmeans(z, 10, num_iters=100, generator=torch.Generator().manual_seed(n)) for n in range(5))
    return float(clustering_accuracy(y, min(runs, key=lambda result: float(result.inertia)).labels))


def of_slices(data: str, seed: int, nesting: tuple[int, ...], epochs: int, prototypes: int) -> dict:
    """Accuracy on the first 8, 16, 32 and all 64 channels of an encoder that was trained with these heads; the loss."""
    torch.manual_seed(seed)
    x, y = {'digits': digits, 'mnist': mnist}[data]()
    encoder, head = parts_of(nesting, prototypes)
    loss, steps = NestedClusterLoss(SwAVLoss()), epochs * (len(x) // 256)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = torch.randperm(len(x), generator=generator)[:256]
        views = torch.cat([view(x[rows], generator) for _ in range(2)])
        value = loss([list(level.chunk(2)) for level in head(encoder(views))])
        optimizer.zero_grad()
        value.backward()
        if step < 30:
            for level in head.levels:
                level.prototypes.grad = None
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        z = encoder.eval()(x)
    at_collapse = sum(float(np.log(number)) for number in head.num_prototypes)
    found = {f'first {width}': accuracy(z[:, :width], y) for width in WIDTHS}
    return dict(found, loss=float(value), ln_k=at_collapse)


def head_lines(ledger: SeedLedger, data: str, seeds: int, epochs: int, prototypes: int) -> list[str]:
    """A row for nested heads, one for a single head, and their difference, paired by seeds."""
    names, found, entries = [f'first {width}' for width in WIDTHS], {}, []
    for seed in range(seeds):
        for name, nesting in HEADS.items():
            key = dict(data=data, heads=name, seed=seed, epochs=epochs, prototypes=prototypes)
            make = functools.partial(of_slices, data, seed, nesting, epochs, prototypes)
            entry = ledger.measured(key, make)
            if entry:
                entries.append(entry)
                found.setdefault(name, []).append(entry['found'])
    lines = [
        f'{data}, {seeds} seeds, {epochs} epochs, {prototypes} prototypes of the widest level; mean ± standard '
        'deviation, differences paired by seeds with 95 % intervals.', '',
        f'| k-means accuracy by channels | {" | ".join(names)} | last loss (of a collapse) |',
        '|---' * (len(names) + 2) + '|',
    ]  # fmt: skip
    if len(found) < 2 or {len(runs) for runs in found.values()} != {seeds}:
        return [*lines, '| not measured | | | | | |']
    columns = {name: np.array([[run[each] for each in names] for run in runs]) for name, runs in found.items()}
    for name, runs in found.items():
        cells = [f'{column.mean():.3f} ± {column.std(ddof=1):.3f}' for column in columns[name].T]
        loss = f'{np.mean([run["loss"] for run in runs]):.2f} ({runs[0]["ln_k"]:.2f})'
        lines.append(f'| {name} | {" | ".join(cells)} | {loss} |')
    nested, single = columns.values()
    cells = []
    for column in (nested - single).T:
        low, high = interval(column.tolist())
        cells.append(f'{column.mean():+.3f} ({low:+.3f} to {high:+.3f})')
    return [*lines, f'| nested above one head | {" | ".join(cells)} | |', '', 'Measured on:', '', *sources(entries)]
