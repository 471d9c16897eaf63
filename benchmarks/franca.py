# SPDX-License-Identifier: Apache-2.0
"""Franca: what PositionEraser leaves in a real vision transformer, nested heads on digits, memory of the nested loss.

    CLUSTERPLUG_DATA=/path/to/data OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/franca.py
    ... python benchmarks/franca.py --page docs/benchmarks.md    # between the marks "franca" and "franca_heads"

About 4 CPU-minutes; ``--parts heads`` are the nested heads alone, on digits, or with ``--data mnist`` on as many and as
small digits of MNIST, on which their settings were looked at. Without CLUSTERPLUG_DATA the part on the transformer is
skipped, and --page is refused.
"""

import argparse
import io
import os
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from _nested_heads import head_lines
from _seed_ledger import SeedLedger
from _timing import describe_machine, publish

from clusterplug.estimators import PositionEraser
from clusterplug.functional import clustering_accuracy, erase_directions, kmeans
from clusterplug.heads import MatryoshkaHead
from clusterplug.losses import DINOLoss, NestedClusterLoss


def grid(side):
    axes = np.meshgrid(*[np.linspace(0, 1, side)] * 2, indexing='ij')
    return np.stack(axes, -1).reshape(-1, 2)


def r2(train, test, positions, ridge=1e-3):
    """R^2 of a ridge probe with a constant, fitted on some pictures and read on others."""
    x, y = train.reshape(-1, train.shape[-1]), np.tile(positions, (len(train), 1))
    center, middle = x.mean(0), y.mean(0)
    covariance = (x - center).T @ (x - center) / len(x)
    penalty = ridge * covariance.diagonal().mean() * np.eye(len(covariance))
    weights = np.linalg.solve(covariance + penalty, (x - center).T @ (y - middle) / len(x))
    other, goal = test.reshape(-1, train.shape[-1]), np.tile(positions, (len(test), 1))
    error = goal - middle - (other - center) @ weights
    return 1 - (error**2).sum() / ((goal - goal.mean(0)) ** 2).sum()


def energy(before, after):
    """Fraction of the variance that is left."""
    flat, changed = (x.reshape(-1, x.shape[-1]) for x in (before, after))
    return ((changed - changed.mean(0)) ** 2).sum() / ((flat - flat.mean(0)) ** 2).sum()


def tokens_of_frames(folder, count=80):
    """Patch features of DINOv2-S of one frame a video, spread over the videos: (count, 256, 384)."""
    from PIL import Image

    sys.path.insert(0, str(folder / 'vit'))
    from load_dinov2s_focus import load

    archive = zipfile.ZipFile(folder / 'video' / 'msrvtt_1kA_frame_pairs.zip')
    videos = {}
    for name in sorted(archive.namelist()):
        if name.endswith('.jpg'):
            videos.setdefault(name.split('/')[-2], name)
    names = list(videos.values())
    pictures = []
    for name in names[:: len(names) // count][:count]:
        image = Image.open(io.BytesIO(archive.read(name))).convert('RGB').crop((0, 0, 320, 240))
        pictures.append(torch.from_numpy(np.array(image.resize((224, 224), Image.BICUBIC))).permute(2, 0, 1) / 255)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (torch.stack(pictures) - mean[:, None, None]) / deviation[:, None, None]
    vit = load()[0]
    with torch.inference_mode():
        return torch.cat([vit(part)[0][:, 1:] for part in x.split(8)]).double().numpy()


def agreement(tokens, clusters=20):
    """Information (nats) that the cluster of a token has of its position, and k-means' share of the variance."""
    x = torch.from_numpy(tokens.reshape(-1, tokens.shape[-1])).float()
    result = kmeans(x, clusters, num_iters=30, generator=torch.Generator().manual_seed(0))
    labels = result.labels.view(len(tokens), -1)
    counts = torch.stack([(labels == k).float().mean(0) for k in range(clusters)])  # cluster x position
    mean = counts.mean(1, keepdim=True)
    return float((counts * (counts / mean.clamp(min=1e-12)).clamp(min=1e-12).log()).sum(0).mean())


def eraser_rows(folder):
    """One row a removal, on features of a trained transformer."""
    tokens = tokens_of_frames(folder)
    positions = grid(16)
    train, test = tokens[:50], tokens[50:]
    yield 'none', 0, train, test, test
    x, y = train.reshape(-1, 384), np.tile(positions, (50, 1))
    cross = torch.from_numpy(((x - x.mean(0)).T @ (y - y.mean(0))).T.copy())
    erase = [erase_directions(torch.from_numpy(part), cross).numpy() for part in (train, test)]
    yield 'cross-covariance projected out', 2, *erase, test
    for mode, numbers in (('iterative', (1, 2, 4, 8, 16, 32)), ('leace', (8,))):
        for number in numbers:
            eraser = PositionEraser(number, mode=mode).fit(train, positions)
            name = f'iterative, T = {number}' if mode == 'iterative' else "PositionEraser() ('leace')"
            removed = 2 * number if mode == 'iterative' else 2
            yield name, removed, eraser.transform(train), eraser.transform(test), test


def synthetic(spread=0.9, images=60, side=12, dim=64, seed=0):
    """Class means of 6 Voronoi cells, 8 functions of the position in orthonormal directions, noise."""
    draw, positions = np.random.default_rng(seed), grid(side)
    functions = np.stack([f(a) for a in positions.T for f in (lambda v: v, lambda v: np.sin(3 * v),
                                                              lambda v: np.cos(3 * v), np.square)], 1)  # fmt: skip
    functions = (functions - functions.mean(0)) / functions.std(0)
    frame = np.linalg.qr(draw.standard_normal((dim, 8)))[0].T
    seeds = draw.random((images, 6, 2))
    labels = ((positions[None, :, None] - seeds[:, None]) ** 2).sum(-1).argmin(-1)
    means = spread * draw.standard_normal((6, dim))
    return means[labels] + 6 * functions @ frame + 0.6 * draw.standard_normal((images, side**2, dim)), positions, labels


REMOVALS = {
    'none': None,
    'iterative, T = 1': dict(n_iter=1, mode='iterative'),
    'iterative, T = 2': dict(n_iter=2, mode='iterative'),
    'iterative, T = 4': dict(n_iter=4, mode='iterative'),
    'iterative, T = 8': dict(n_iter=8, mode='iterative'),
    'sigmoid, T = 4': dict(n_iter=4, mode='sigmoid'),
    "PositionEraser() ('leace')": dict(),
}


def synthetic_lines(seeds: int) -> list[str]:
    """R^2 of position and accuracy of k-means by the scale of the class means, on which four iterations depend."""
    scales = (0.3, 0.9, 1.5, 3.0)
    lines = [
        f'| Synthetic features, {seeds} seeds: R2 of position / k-means accuracy on classes | '
        + ' | '.join(f'class means of deviation {scale}' for scale in scales) + ' |', '|---' * (len(scales) + 1) + '|',
    ]  # fmt: skip
    for name, options in REMOVALS.items():
        cells = []
        for scale in scales:
            found = np.array([synthetic_numbers(scale, seed, options) for seed in range(seeds)])
            (r, a), (dr, da) = found.mean(0), found.std(0)
            cells.append(f'{r:.2f} ± {dr:.2f} / {a:.2f} ± {da:.2f}')
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return lines


def synthetic_numbers(scale: float, seed: int, options: dict | None) -> tuple[float, float]:
    x, positions, labels = synthetic(spread=scale, seed=seed)
    train, test = x[:30], x[30:]
    if options is not None:
        eraser = PositionEraser(**options).fit(train, positions)
        train, test = eraser.transform(train), eraser.transform(test)
    flat = torch.from_numpy(test.reshape(-1, 64)).float()
    found = kmeans(flat, 6, num_iters=50, generator=torch.Generator().manual_seed(seed)).labels
    return r2(train, test, positions), float(clustering_accuracy(torch.from_numpy(labels[30:].reshape(-1)), found))


def kept_megabytes(lazy):
    """What autograd keeps of one nested loss: K 16384, 10 crops of 64 images, 5 levels."""
    torch.manual_seed(0)
    head = MatryoshkaHead(64, 16384, hidden_channels=64, bottleneck=64)
    views = [torch.randn(64, 64) for _ in range(10)]
    sizes = {}

    def pack(x):
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    make = head.factors if lazy else head
    begin = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        levels = [list(each.split([64] * 10)) for each in make(torch.cat(views))]
        with torch.no_grad():
            goals = [list(each.split([64] * 2)) for each in make(torch.cat(views[:2]))]
        value = NestedClusterLoss(DINOLoss())(levels, goals)
    kept = sum(sizes.values()) / 2**20
    value.backward()
    return kept, time.process_time() - begin


def fit_seconds():
    x, positions = torch.randn(100_000, 384), torch.rand(100_000, 2)
    x[:, :2] += 3 * positions
    begin = time.process_time()
    PositionEraser().fit(x, positions)
    return time.process_time() - begin


def head_part(options) -> list[str]:
    ledger = SeedLedger(options.ledger, options.only_print, ('scikit-learn',))
    return head_lines(ledger, options.data, options.head_seeds, options.epochs, options.prototypes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--page', help='page whose parts "franca" and "franca_heads" are replaced')
    parser.add_argument('--parts', nargs='+', choices=('eraser', 'heads'), default=['eraser', 'heads'])
    parser.add_argument('--data', choices=('digits', 'mnist'), default='digits', help='of the nested heads')
    parser.add_argument('--head-seeds', type=int, default=5)
    parser.add_argument('--epochs', type=int, default=60)
    parser.add_argument('--prototypes', type=int, default=120)
    parser.add_argument('--ledger', type=Path, default=Path('work_dirs/franca/heads.json'), help='of the nested heads')
    parser.add_argument('--only-print', action='store_true', help='train no nested heads, write what is noted')
    options = parser.parse_args()
    folder = os.environ.get('CLUSTERPLUG_DATA')
    if options.page and not folder:
        parser.error('--page needs CLUSTERPLUG_DATA: half a table cannot be read')
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    machine = ['', *(f'{line}<br>' for line in describe_machine(('numpy', 'scikit-learn'))), '']
    for part, make, mark in (('eraser', eraser_part, 'franca'), ('heads', head_part, 'franca_heads')):
        if part in options.parts:
            lines = [*(machine if part == 'eraser' else ['']), *make(options), '']
            print('\n'.join(lines))
            if options.page:
                publish(options.page, mark, lines)


def eraser_part(options) -> list[str]:
    folder, lines = os.environ.get('CLUSTERPLUG_DATA'), []
    if folder:
        lines += [
            '| Removal, DINOv2-S, 80 frames of 80 videos | Directions | R2 of position | Energy kept |',
            '|---|---|---|---|',
        ]
        kept = {}
        for name, removed, train, test, plain in eraser_rows(Path(folder)):
            kept[name] = test
            lines.append(f'| {name} | {removed} | {r2(train, test, grid(16)):.3f} | {energy(plain, test):.3f} |')
        about = {name: agreement(kept[name]) for name in ('none', "PositionEraser() ('leace')")}
        lines += ['', 'Information of 20 k-means clusters about the position of a token, over the 30 other videos: '
                  + ', '.join(f'{name} {value:.3f}' for name, value in about.items()) + ' nats.', '']  # fmt: skip
    lines += synthetic_lines(options.seeds)
    for name, lazy in (('scores', False), ('factors', True)):
        kept, seconds = kept_megabytes(lazy)
        lines += ['', f'Nested DINO loss of {name}: {kept:.0f} MB kept for the backward pass, '
                  f'{seconds:.1f} CPU-s a step.']  # fmt: skip
    return [*lines, '', f'`PositionEraser().fit` on 100,000 x 384: {fit_seconds():.1f} CPU-s.']


if __name__ == '__main__':
    main()
