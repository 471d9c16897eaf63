# SPDX-License-Identifier: Apache-2.0
"""Generated videos for text-video retrieval: colored shapes that move, real mp4 files, captions by template."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clusterplug.core.checks import whole_number
from clusterplug.core.files import whole_file
from clusterplug.core.outputs import locked_folder
from clusterplug.datasets.claims import begin, finish

MARKER = 'moving_sprites.json'

SHAPES = ('circle', 'ring', 'cross', 'bar')
COLORS = {
    'red': (220, 40, 40), 'green': (40, 190, 60), 'blue': (50, 90, 230), 'yellow': (235, 215, 50),
    'magenta': (215, 60, 200), 'white': (245, 245, 245),
}  # fmt: skip
MOTIONS = ('across the top', 'across the bottom', 'along the left', 'along the right', 'in a circle', 'not at all')
_TEMPLATES = (
    'a {color} {shape} moves {motion}',
    'the {shape} is {color} and it goes {motion}',
    'there is a {color} {shape} moving {motion}',
)


class Sprite(NamedTuple):
    """What one video shows."""

    shape: str
    color: str
    motion: str


def all_sprites() -> list[Sprite]:
    """Every shape in every color with every motion: 144.

    Example:
        >>> len(all_sprites())
        144
    """
    return [Sprite(shape, color, motion) for shape in SHAPES for color in COLORS for motion in MOTIONS]


def caption_of(sprite: Sprite, template: int = 0) -> str:
    """A sentence about a video.

    Args:
        sprite: What it shows.
        template: Which of the three sentences.

    Example:
        >>> caption_of(Sprite('circle', 'red', 'across the top'))
        'a red circle moves across the top'
    """
    return _TEMPLATES[template % len(_TEMPLATES)].format(**sprite._asdict())


def render_sprite(sprite: Sprite, num_frames: int, size: int, generator: np.random.Generator) -> np.ndarray:
    """Draw a video: a sprite on a dark, patchy background with dim moving dots that belong to no caption.

    Start, phase, speed, radius, background and dots are random.

    Args:
        sprite: What it shows.
        num_frames: T.
        size: Height and width in pixels.
        generator: Where randomness comes from.

    Returns:
        (T, size, size, 3) uint8.
    """
    coarse = generator.uniform(20, 90, (4, 4, 3))
    background = np.kron(coarse, np.ones((-(-size // 4), -(-size // 4), 1)))[:size, :size]
    radius = size * generator.uniform(0.17, 0.21)
    places = _path(sprite.motion, num_frames, size, radius, generator)
    dots = generator.uniform(0, size, (4, 2))
    drift = generator.uniform(-0.06, 0.06, (4, 2)) * size
    dim = generator.uniform(60, 130, (4, 3))
    rows, columns = np.mgrid[:size, :size] + 0.5
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    for number, (row, column) in enumerate(places):
        frame = background.copy()
        for dot, step, color in zip(dots, drift, dim):
            spot = (dot + number * step) % size
            frame[_shape('circle', rows - spot[0], columns - spot[1], 0.045 * size)] = color
        frame[_shape(sprite.shape, rows - row, columns - column, radius)] = COLORS[sprite.color]
        frames[number] = np.clip(frame + generator.normal(0, 4, frame.shape), 0, 255)
    return frames


def generate_moving_sprites(
    folder: str | os.PathLike,
    videos_per_sprite: dict[str, int] | None = None,
    num_frames: int = 12,
    size: int = 48,
    rate: int = 6,
    seed: int = 0,
) -> Iterator[tuple[str, int, int]]:
    """Write mp4 files, a table of captions for each split, and the words of all captions.

    ``folder`` gets ``videos/<split>_<number>.mp4`` (H.264), ``<split>.csv`` (video_id, caption) and
    ``vocabulary.txt``, and at the end ``moving_sprites.json``. A second call with the same settings writes only the
    videos that are missing; a folder of other settings is refused.

    Args:
        folder: Where.
        videos_per_sprite: Videos of each of the 144 sprites by split; by default 6 for ``train``, 1 for ``test``.
        num_frames: Frames of a video.
        size: Pixels, even.
        rate: Frames per second.
        seed: Of everything random.

    Yields:
        Split, videos done, videos in all.

    Raises:
        ValueError: ``size`` is odd or below 16; a number that must be positive and is not; a bad name of a split.
        FileExistsError: The folder holds sprites of other settings, or other videos.
        FolderInUse: Another process writes to it.
        ModuleNotFoundError: PyAV is missing.
    """
    from clusterplug.datasets.video.encoding import write_video
    from clusterplug.datasets.video.tokenizers import write_vocabulary

    if size < 16 or size % 2:
        raise ValueError(f'size must be even and at least 16, got {size}')
    counts = dict({'train': 6, 'test': 1} if videos_per_sprite is None else videos_per_sprite)
    settings = dict(generator=1, num_frames=num_frames, rate=rate, seed=seed, size=size, videos_per_sprite=counts)
    for name, value in (*settings.items(), *counts.items()):
        low = 0 if name in ('seed', *counts) else 1
        if name != 'videos_per_sprite':
            whole_number(name, value, least=low)
    if not counts or not all(name.isidentifier() for name in counts):
        raise ValueError(f'videos_per_sprite must have names of splits as keys, letters and digits, got {counts}')
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f'folder must be a folder, got the file {folder}')

    def foreign() -> bool:
        tables = [folder / f'{split}.csv' for split in counts]
        return any(path.exists() for path in (*tables, folder / 'vocabulary.txt')) or any(folder.glob('videos/*'))

    with locked_folder(folder):
        begin(folder, MARKER, settings, foreign, 'moving sprites')
        (folder / 'videos').mkdir(exist_ok=True)
        captions = []
        for split_number, split in enumerate(counts):
            yield from _write_split(folder, split, split_number, settings, captions, write_video)
        write_vocabulary(folder / 'vocabulary.txt', captions)
        finish(folder, MARKER, settings)


def _write_split(
    folder: Path, split: str, split_number: int, settings: dict, captions: list[str], write_video
) -> Iterator[tuple[str, int, int]]:
    sprites, rows = all_sprites(), []
    total = settings['videos_per_sprite'][split] * len(sprites)
    for number in range(total):
        sprite = sprites[number % len(sprites)]
        video_id = f'{split}_{number:05d}'
        # the test has one sentence of one form for each video, as MSR-VTT 1k-A has
        rows.append((video_id, caption_of(sprite, number // len(sprites) if split == 'train' else 0)))
        path = folder / 'videos' / f'{video_id}.mp4'
        if not path.is_file() or not path.stat().st_size:
            generator = np.random.default_rng([settings['seed'], split_number, number])
            write_video(
                path, render_sprite(sprite, settings['num_frames'], settings['size'], generator), settings['rate']
            )
        yield split, number + 1, total
    captions += [caption for _, caption in rows]
    with whole_file(folder / f'{split}.csv') as file:
        file.write('video_id,caption\n' + ''.join(f'{video},{caption}\n' for video, caption in rows))


def _path(motion: str, count: int, size: int, radius: float, generator: np.random.Generator) -> Sequence:
    """Rows and columns (count, 2) of the middle of the sprite."""
    low, high = radius, size - radius
    # from one side to the other and back again, from a random point of the way on
    phase = generator.uniform(0, 2) + np.arange(count) * generator.uniform(0.14, 0.2)
    way = low + (high - low) * np.abs((phase + 1) % 2 - 1)
    rest = generator.uniform(low, high, 2)
    near = low + 0.2 * (rest - low)  # of the top or the left side
    if motion == 'across the top':
        return np.stack([np.full(count, near[0]), way], 1)
    if motion == 'across the bottom':
        return np.stack([np.full(count, size - near[0]), way], 1)
    if motion == 'along the left':
        return np.stack([way, np.full(count, near[1])], 1)
    if motion == 'along the right':
        return np.stack([way, np.full(count, size - near[1])], 1)
    if motion == 'in a circle':
        angle = np.pi * phase
        reach = (high - low) / 2 * generator.uniform(0.75, 1)
        return np.stack([size / 2 + reach * np.sin(angle), size / 2 + reach * np.cos(angle)], 1)
    return np.tile(rest, (count, 1))


def _shape(name: str, down: np.ndarray, right: np.ndarray, radius: float) -> np.ndarray:
    """Pixels inside a shape of a radius around the middle."""
    distance = np.hypot(down, right)
    if name == 'circle':
        return distance < radius
    if name == 'ring':
        return (distance < radius) & (distance > 0.55 * radius)
    if name == 'cross':
        return (np.minimum(abs(down), abs(right)) < 0.3 * radius) & (np.maximum(abs(down), abs(right)) < radius)
    return (abs(down) < 0.3 * radius) & (abs(right) < radius)  # bar
