# SPDX-License-Identifier: Apache-2.0
"""Koopman auto-encoders: pendulum, videos of moving sprites, occupancy around a car in the LiDAR city.

    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/koopman.py --part pendulum --page docs/benchmarks.md
    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/koopman.py --part sprites --page docs/benchmarks.md
    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/koopman.py --part city --data work_dirs/koopman_city

"effective dimension" is exp of the entropy of the latents. Errors are of roll-outs on held-out sequences: root mean
square in the units of the pendulum (radians, radians a second), relative to the deviation of the frames for sprites.
For occupancy: intersection over union of occupied cells. The weights of the terms are the defaults of the estimator and
a fifth of them, not tuned.
"""

import argparse
import statistics
import warnings
from pathlib import Path

import numpy as np
import torch
from _timing import describe_machine, one_thread_each, publish

from clusterplug.estimators import KoopmanAutoencoder
from clusterplug.testing.toy_dynamics import pendulum

TERMS = {
    'no terms': dict(entropy_weight=0.0),
    'entropy maximized, 0.01': dict(entropy_weight=0.01),
    'entropy maximized, 0.05': dict(entropy_weight=0.05),
    'entropy minimized, 0.05 (the sign of the released code)': dict(entropy_weight=0.05, released_sign=True),
    'contrast alone, 0.1': dict(entropy_weight=0.0, contrast_weight=0.1),
    'both, 0.05 and 0.1': dict(entropy_weight=0.05, contrast_weight=0.1),
}


class ReleasedSign(KoopmanAutoencoder):
    """The entropy as the released code has it: added to the loss."""

    def _losses(self, batch):
        losses = super()._losses(batch)
        return {**losses, 'loss_entropy': -losses['loss_entropy']}


def fitted(X, latent_dim: int, seed: int, *, released_sign: bool = False, **options):
    model = (ReleasedSign if released_sign else KoopmanAutoencoder)(latent_dim, random_state=seed, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='the spectral radius')
        return model.fit(X)


def on_pendulum(seeds: list[int], number: int | None = None) -> list[str]:
    lines = [
        f'| Pendulum, 16 latents, learned K, 25 epochs, {len(seeds)} seeds: mean (sd) | effective dimension '
        '| error after 10 steps | after 60 steps | spectral radius |',
        '|---|---|---|---|---|',
    ]
    arms = {**TERMS, 'entropy maximized, 0.05, orthogonal K': dict(operator='orthogonal')}
    for name, options in list(arms.items())[:number]:
        found = []
        for seed in seeds:
            X, held = pendulum(64, seed), pendulum(64, 1000 + seed, 61)
            model = fitted(X, 16, seed, **options)
            errors = np.sqrt(np.square(model.rollout(held[:, 0], 60) - held).mean((0, 2)))
            found.append((model.effective_dim_, errors[10], errors[60], float(np.abs(model.spectrum()).max())))
        lines.append(row(name, found, (2, 3, 2, 3)))
        print(lines[-1], flush=True)
    return lines


def row(name: str, found: list[tuple], digits: tuple[int, ...]) -> str:
    cells = []
    for values, places in zip(zip(*found, strict=True), digits, strict=True):
        if None in values:
            cells.append('-')
            continue
        values = [float(value) for value in values]
        spread = f' ({statistics.stdev(values):.{places}f})' if len(values) > 1 else ''
        cells.append(f'{statistics.mean(values):.{places}f}{spread}')
    return f'| {name} | {" | ".join(cells)} |'


def sprite_videos(per_sprite: int, seed: int, steps: int = 16, size: int = 16) -> np.ndarray:
    """(N, steps - 1, 2 size^2): gray frames minus the video's median frame, each with the one after it."""
    from clusterplug.datasets.moving_sprites import all_sprites, render_sprite

    videos = []
    for number, sprite in enumerate(all_sprites()):
        for repeat in range(per_sprite):
            generator = np.random.default_rng([seed, number, repeat])
            gray = render_sprite(sprite, steps, size, generator).mean(-1).reshape(steps, -1) / 255
            videos.append(gray - np.median(gray, 0))
    videos = np.stack(videos)
    # one frame does not tell the velocity; two do
    return np.concatenate([videos[:, :-1], videos[:, 1:]], -1)


def on_sprites(seeds: list[int]) -> list[str]:
    lines = [
        f'| Sprite videos, 32 latents, {len(seeds)} seeds: mean (sd) | effective dimension | error after 1 frame '
        '| after 3 | after 6 |',
        '|---|---|---|---|---|',
    ]
    options = dict(hidden=(256,), window=10, epochs=12, batch_size=32)
    arms = {name: TERMS[name] for name in ('no terms', 'entropy maximized, 0.01', 'both, 0.05 and 0.1')}
    found = {name: [] for name in ('last frame repeated', 'mean frame', *arms)}
    for seed in seeds:
        X, held = sprite_videos(3, seed), sprite_videos(1, 1000 + seed)
        width, spread = held.shape[-1] // 2, held.std()
        true = held[:, [1, 3, 6], width:]
        for name, guess in (
            ('last frame repeated', held[:, :1, width:]),
            ('mean frame', np.broadcast_to(X[..., width:].mean((0, 1)), true.shape)),
        ):
            found[name].append((None, *(np.sqrt(np.square(guess - true).mean((0, 2))) / spread)))
        for name, terms in arms.items():
            model = fitted(X, 32, seed, **options, **terms)
            guess = model.rollout(held[:, 0], 6)[:, [1, 3, 6], width:]
            found[name].append((model.effective_dim_, *(np.sqrt(np.square(guess - true).mean((0, 2))) / spread)))
    return [*lines, *(row(name, values, (1, 3, 3, 3)) for name, values in found.items())]


def occupancy(folder: Path, split: tuple[int, ...], cells: int = 32, side: float = 2.0) -> np.ndarray:
    """(streets, scans, cells^2) whether a cell around the car holds a point 0.3 to 4 m above the ground."""
    grids = []
    for number in split:
        street = []
        for file in sorted((folder / 'sequences' / f'{number:02d}' / 'velodyne').glob('*.bin')):
            points = np.fromfile(file, np.float32).reshape(-1, 4)[:, :3]
            ground = np.quantile(points[:, 2], 0.05)
            points = points[(points[:, 2] > ground + 0.3) & (points[:, 2] < ground + 4)]
            place = np.floor(points[:, :2] / side).astype(int) + cells // 2
            place = place[((place >= 0) & (place < cells)).all(1)]
            grid = np.zeros((cells, cells), np.float32)
            grid[place[:, 0], place[:, 1]] = 1
            street.append(grid.ravel())
        grids.append(np.stack(street))
    return np.stack(grids)


def on_city(seeds: list[int], folder: Path) -> list[str]:
    from clusterplug.datasets.lidar_city import generate_lidar_city

    generate_lidar_city(folder, num_train=400, num_val=120, columns=512, scans_per_street=40, spacing=1.0)
    train = occupancy(folder, (0, 1, 2, 3, 4, 5, 6, 7, 9, 10))
    held = np.concatenate([occupancy(folder, (number,)) for number in (8, 22, 23)])
    pairs = [np.concatenate([each[:, :-1], each[:, 1:]], -1) for each in (train, held)]
    X, held = pairs
    width = held.shape[-1] // 2
    starts = np.arange(0, held.shape[1] - 5, 2)
    now = held[:, starts].reshape(-1, 2 * width)
    true = np.stack([held[:, starts + step].reshape(-1, 2 * width)[:, width:] for step in (1, 3, 5)], 1) > 0.5

    def overlap(guess: np.ndarray) -> np.ndarray:
        guess = guess > 0.5
        return (guess & true).sum((0, 2)) / (guess | true).sum((0, 2))

    lines = [
        f'| Occupancy of 32 x 32 cells of 2 m, 1 m a scan, 64 latents, {len(seeds)} seeds: mean (sd) '
        '| effective dimension | IoU after 1 scan | after 3 | after 5 |',
        '|---|---|---|---|---|',
        row('last scan repeated', [(None, *overlap(np.repeat(now[:, None, width:], 3, 1)))], (1, 3, 3, 3)),
    ]
    options = dict(hidden=(256,), window=8, epochs=20, batch_size=32)
    arms = {name: TERMS[name] for name in ('no terms', 'entropy maximized, 0.01', 'both, 0.05 and 0.1')}
    for name, terms in arms.items():
        found = []
        for seed in seeds:
            model = fitted(X, 64, seed, **options, **terms)
            found.append((model.effective_dim_, *overlap(model.rollout(now, 5)[:, [1, 3, 5], width:])))
        lines.append(row(name, found, (1, 3, 3, 3)))
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--part', choices=('pendulum', 'sprites', 'city'), default='pendulum', help='what is measured')
    parser.add_argument('--seeds', type=int, nargs='+', default=list(range(5)))
    parser.add_argument('--rows', type=int, help='of the pendulum, the first so many (default: all)')
    parser.add_argument('--data', type=Path, default=Path('work_dirs/koopman_city'), help='where the city is kept')
    parser.add_argument('--page', help='page whose part between the marks "koopman_PART" is replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine(())
    with one_thread_each():
        if options.part == 'city':
            lines = on_city(options.seeds, options.data)
        else:
            pendulum_rows = (options.rows,) if options.part == 'pendulum' else ()
            lines = {'pendulum': on_pendulum, 'sprites': on_sprites}[options.part](options.seeds, *pendulum_rows)
    print('\n'.join([*machine, '', *lines]))
    if options.page:
        publish(options.page, f'koopman_{options.part}', ['', *(f'{line}<br>' for line in machine), '', *lines, ''])


if __name__ == '__main__':
    main()
