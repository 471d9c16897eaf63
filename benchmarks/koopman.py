# SPDX-License-Identifier: Apache-2.0
"""Koopman auto-encoders: pendulum, videos of moving sprites, occupancy around a car in the LiDAR city.

    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/koopman.py --part pendulum --page docs/benchmarks.md
    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/koopman.py --part sprites --page docs/benchmarks.md
    OMP_NUM_THREADS=1 PYTHONPATH=.:benchmarks python benchmarks/koopman.py --part city --data work_dirs/koopman_city

"effective dimension" is exp of the entropy of the latents. Errors are of roll-outs on held-out sequences: root mean
square in the units of the pendulum (radians, radians a second), relative to the deviation of the frames for sprites.
For occupancy: intersection over union of occupied cells, where as many cells are taken for occupied as are now, those
of the largest predictions, so that a blurred prediction needs no threshold. A state is two frames, or scans, behind
each other, as one does not tell the velocity. The weights of the terms are the defaults of the estimator and a fifth of
them, not tuned.

Next to them: the last frame repeated; the mean of the training frames; the ridge regression from state to state; and an
auto-encoder of the same layers and epochs that only reconstructs, with the ridge regression from latent to latent. The
ridge is the best of several for one step on the last fifth of the training sequences. What was measured is kept in
--ledger: an interrupted run goes on.
"""

import argparse
import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _seed_ledger import SeedLedger, sources, spread
from _timing import one_thread_each, publish

from clusterplug.estimators import KoopmanAutoencoder
from clusterplug.functional import linear_dynamics, spectral_entropy
from clusterplug.testing.toy_dynamics import pendulum

LEDGER = Path(__file__).with_suffix('.json')
TERMS = {
    'no terms': dict(entropy_weight=0.0),
    'entropy maximized, 0.01': dict(entropy_weight=0.01),
    'entropy maximized, 0.05': dict(entropy_weight=0.05),
    'entropy minimized, 0.05 (the sign of the released code)': dict(entropy_weight=0.05, released_sign=True),
    'contrast alone, 0.1': dict(entropy_weight=0.0, contrast_weight=0.1),
    'both, 0.05 and 0.1': dict(entropy_weight=0.05, contrast_weight=0.1),
    'entropy maximized, 0.05, orthogonal K': dict(operator='orthogonal'),
}
# of what is measured: raise one where the measure changes, so that older entries of the ledger are not taken
VERSIONS = {'pendulum': 1, 'sprites': 1, 'city': 2}
PLAIN = ('last repeated', 'mean of training', 'ridge from state to state', 'plain auto-encoder, ridge in the latent')
GROUND = (40, 44, 48, 49, 60, 72)  # road, parking, sidewalk, other ground, lane marking, terrain
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)


class ReleasedSign(KoopmanAutoencoder):
    """The entropy as the released code has it: added to the loss."""

    def _losses(self, batch):
        losses = super()._losses(batch)
        return {**losses, 'loss_entropy': -losses['loss_entropy']}


class OnlyReconstruction(KoopmanAutoencoder):
    """An auto-encoder that knows of no time; its map is fitted to the latents afterwards."""

    def _losses(self, batch):
        decoded = self.decoder_(self.encoder_(batch.flatten(0, 1)))
        return dict(loss_reconstruction=(decoded - batch.flatten(0, 1)).square().mean())

    def fit(self, X, y=None):
        super().fit(X)
        self.operator_ = fitted_map(self.transform(X))
        return self


def fitted_map(z: np.ndarray) -> np.ndarray:
    """(D, D) ridge regression from each step of sequences (B, T, D) to the next, over all of them."""
    z = torch.from_numpy(z)
    size = float(z.square().mean())

    def fit(rows, ridge):
        pairs = (rows[:, part].flatten(0, 1) for part in (slice(None, -1), slice(1, None)))
        return linear_dynamics(*pairs, ridge=ridge * size)

    few = max(1, len(z) // 5)
    held = z[-few:]
    errors = {ridge: float((held[:, :-1] @ fit(z[:-few], ridge) - held[:, 1:]).square().mean()) for ridge in RIDGES}
    return fit(z, min(errors, key=errors.get)).numpy()


def fitted(X, latent_dim: int, seed: int, *, released_sign: bool = False, **options):
    model = (ReleasedSign if released_sign else KoopmanAutoencoder)(latent_dim, random_state=seed, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='the spectral radius')
        return model.fit(X)


def predicted(arm: str, X: np.ndarray, starts: np.ndarray, latent_dim: int, seed: int, steps: int, options: dict):
    """(B, steps + 1, D) states from starts (B, D) by a way that learned sequences X, and the effective dimension."""
    if arm == 'last repeated':
        half = starts.shape[-1] // 2
        return np.repeat(np.concatenate([starts[:, half:]] * 2, -1)[:, None], steps + 1, 1), None
    if arm == 'mean of training':
        return np.broadcast_to(X.mean((0, 1)), (len(starts), steps + 1, X.shape[-1])), None
    if arm == 'ridge from state to state':
        states, step = [starts], fitted_map(X)
        for _ in range(steps):
            states.append(states[-1] @ step)
        return np.stack(states, 1), None
    if arm in TERMS:
        model = fitted(X, latent_dim, seed, **options, **TERMS[arm])
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='the spectral radius')
            model = OnlyReconstruction(latent_dim, random_state=seed, operator='ridge', **options).fit(X)
    found = spectral_entropy(torch.from_numpy(model.transform(X)).flatten(0, 1)).exp()
    return model.rollout(starts, steps), float(found)


def on_pendulum(arm: str, seed: int) -> dict:
    X, held = pendulum(64, seed), pendulum(64, 1000 + seed, 61)
    model = fitted(X, 16, seed, **TERMS[arm])
    errors = np.sqrt(np.square(model.rollout(held[:, 0], 60) - held).mean((0, 2)))
    radius = float(np.abs(model.spectrum()).max())
    return dict(dimension=model.effective_dim_, after_10=float(errors[10]), after_60=float(errors[60]), radius=radius)


def sprite_videos(per_sprite: int, seed: int, steps: int = 16, size: int = 16) -> np.ndarray:
    """(N, steps - 1, 2 size^2): gray frames minus the video's median frame, each with the one after it."""
    from clusterplug.datasets.moving_sprites import all_sprites, render_sprite

    videos = []
    for number, sprite in enumerate(all_sprites()):
        for repeat in range(per_sprite):
            generator = np.random.default_rng([seed, number, repeat])
            gray = render_sprite(sprite, steps, size, generator).mean(-1).reshape(steps, -1) / 255
            videos.append(gray - np.median(gray, 0))
    videos = np.stack(videos).astype(np.float32)
    return np.concatenate([videos[:, :-1], videos[:, 1:]], -1)


def on_sprites(arm: str, seed: int) -> dict:
    X, held = sprite_videos(3, seed), sprite_videos(1, 1000 + seed)
    after = [1, 3, 6]
    options = dict(hidden=(256,), window=10, epochs=12, batch_size=32)
    guess, dimension = predicted(arm, X, held[:, 0], 32, seed, 6, options)
    width = held.shape[-1] // 2
    gaps = (guess[:, after] - held[:, after])[..., width:]
    errors = np.sqrt(np.square(gaps).mean((0, 2))) / held.std()
    return dict(dimension=dimension, **{f'after_{k}': float(error) for k, error in zip(after, errors, strict=True)})


def occupancy(folder: Path, split: tuple[int, ...], cells: int = 32, side: float = 2.0) -> np.ndarray:
    """(streets, scans, cells^2) whether a cell around the car holds a point that is not of the ground.

    By its label, not by its height: the car pitches, and 30 m away the road is half a meter higher then.
    """
    grids = []
    for number in split:
        street, sequence = [], folder / 'sequences' / f'{number:02d}'
        for file in sorted((sequence / 'velodyne').glob('*.bin')):
            points = np.fromfile(file, np.float32).reshape(-1, 4)[:, :3]
            labels = np.fromfile(sequence / 'labels' / f'{file.stem}.label', np.uint32) & 0xFFFF
            points = points[~np.isin(labels, GROUND)]
            place = np.floor(points[:, :2] / side).astype(int) + cells // 2
            place = place[((place >= 0) & (place < cells)).all(1)]
            grid = np.zeros((cells, cells), np.float32)
            grid[place[:, 0], place[:, 1]] = 1
            street.append(grid.ravel())
        grids.append(np.stack(street))
    return np.stack(grids)


CITY = dict(hidden=(256,), window=8, epochs=20)


def city_states(folder: Path) -> list[np.ndarray]:
    """States (streets, scans - 1, 2 cells^2) of the training streets and of others."""
    found = [occupancy(folder, numbers) for numbers in ((0, 1, 2, 3, 4, 5, 6, 7, 9, 10), (8, 22, 23))]
    return [np.concatenate([each[:, :-1], each[:, 1:]], -1) for each in found]


def likeliest(guess: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(..., cells) True for the ``count`` (...) cells of the largest values."""
    ranks = (-guess).argsort(-1, kind='stable').argsort(-1, kind='stable')
    return ranks < count[..., None]


def on_city(arm: str, seed: int, folder: Path) -> dict:
    X, held = city_states(folder)
    width, after = held.shape[-1] // 2, [1, 3, 5]
    starts = np.arange(0, held.shape[1] - max(after), 2)
    now = held[:, starts].reshape(-1, 2 * width)
    true = np.stack([held[:, starts + step].reshape(-1, 2 * width)[:, width:] for step in after], 1) > 0.5
    guess, dimension = predicted(arm, X, now, 64, seed, max(after), CITY)
    guess = likeliest(guess[:, after, width:], now[:, None, width:].sum(-1))
    ious = (guess & true).sum((0, 2)) / (guess | true).sum((0, 2))
    return dict(dimension=dimension, **{f'after_{k}': float(iou) for k, iou in zip(after, ious, strict=True)})


def draw_city(path: str, folder: Path, steps: int = 5) -> None:
    """Occupancy now, some scans later, and what two ways expect then: one row a street."""
    from clusterplug.visualization import save_image_grid

    X, held = city_states(folder)
    starts, later = held[:, 10], held[:, 10 + steps]
    arms = {'ridge': 'ridge from state to state', 'Koopman': 'entropy maximized, 0.01'}
    columns = {'now': starts, f'{steps} m on': later}
    columns |= {name: predicted(arm, X, starts, 64, 0, steps, CITY)[0][:, steps] for name, arm in arms.items()}
    side = int((held.shape[-1] // 2) ** 0.5)
    images = [[2 * each[row, -(side**2) :].reshape(1, side, side) - 1 for each in columns.values()] for row in range(3)]
    save_image_grid(path, images, [f'street {row + 1}' for row in range(3)], list(columns))


FEW = ('no terms', 'entropy maximized, 0.01', 'contrast alone, 0.1', 'both, 0.05 and 0.1')
# part -> what it is, its arms, heads and digits of its columns
PARTS: dict[str, tuple[str, tuple[str, ...], dict[str, tuple[str, int]]]] = {
    'pendulum': (
        'Pendulum, 16 latents, learned K, 25 epochs', tuple(TERMS),
        dict(
            dimension=('effective dimension', 2), after_10=('error after 10 steps', 3), after_60=('after 60 steps', 2),
            radius=('spectral radius', 3),
        ),
    ),
    'sprites': (
        'Sprite videos, 16 x 16, 32 latents', PLAIN + FEW,
        dict(
            dimension=('effective dimension', 1), after_1=('error after 1 frame', 3), after_3=('after 3', 3),
            after_6=('after 6', 3),
        ),
    ),
    'city': (
        'Occupancy of 32 x 32 cells of 2 m, 1 m a scan, 64 latents', PLAIN + FEW,
        dict(
            dimension=('effective dimension', 1), after_1=('IoU after 1 scan', 3), after_3=('after 3', 3),
            after_5=('after 5', 3),
        ),
    ),
}  # fmt: skip


def measured(part: str, seeds: list[int], ledger: SeedLedger, measure: Callable) -> list[str]:
    """Lines of a page: mean and deviation over the seeds of every arm."""
    title, arms, columns = PARTS[part]
    lines, entries = [], []
    for arm in arms:
        found = []
        # what neither draws nor, on the one city, sees other data has one result
        for seed in seeds[:1] if part == 'city' and arm in PLAIN[:3] else seeds:
            key = dict(part=part, arm=arm, seed=seed, terms=TERMS.get(arm, {}), version=VERSIONS[part])
            entry = ledger.measured(key, functools.partial(measure, arm, seed))
            found += [] if entry is None else [entry]
        cells = [spread((entry['found'][name] for entry in found), digits) for name, (_, digits) in columns.items()]
        lines.append(f'| {arm} | {len(found)} | {" | ".join(cells)} |')
        entries += found
    names = ' | '.join(name for name, _ in columns.values())
    rule = '---|' * (len(columns) + 2)
    return [f'| {title}: mean (sd) | seeds | {names} |', f'|{rule}', *lines, '', *sources(entries)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--part', choices=tuple(PARTS), default='pendulum', help='what is measured')
    parser.add_argument('--seeds', type=int, nargs='+', default=list(range(5)))
    parser.add_argument('--data', type=Path, default=Path('work_dirs/koopman_city'), help='where the city is kept')
    parser.add_argument('--ledger', type=Path, default=LEDGER, help='file of what was measured (default: %(default)s)')
    parser.add_argument('--only-print', action='store_true', help='fit nothing; the table of what is in the ledger')
    parser.add_argument('--picture', help='of the city: PNG of what is expected, and nothing else')
    parser.add_argument('--page', help='page whose part between the marks "koopman_PART" is replaced')
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure = {'pendulum': on_pendulum, 'sprites': on_sprites}.get(options.part)
    if measure is None:
        from clusterplug.datasets.lidar_city import generate_lidar_city

        if not options.only_print:
            city = dict(num_train=400, num_val=120, columns=512, scans_per_street=40, spacing=1.0)
            generate_lidar_city(options.data, **city)
        if options.picture:
            return draw_city(options.picture, options.data)
        measure = functools.partial(on_city, folder=options.data)
    with one_thread_each():
        lines = measured(options.part, options.seeds, SeedLedger(options.ledger, options.only_print), measure)
    print('\n'.join(lines))
    if options.page:
        publish(options.page, f'koopman_{options.part}', ['', *lines, ''])


if __name__ == '__main__':
    main()
