# SPDX-License-Identifier: Apache-2.0
"""The public function that writes a city."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path

from clusterplug.core.files import PART, write_bytes
from clusterplug.core.outputs import locked_folder
from clusterplug.core.processes import available_cores
from clusterplug.datasets.claims import OtherSettings, begin, finish, forget, settings_of
from clusterplug.datasets.lidar_city.progress import Progress
from clusterplug.datasets.lidar_city.scanner.raycasting import import_open3d
from clusterplug.datasets.lidar_city.scanner.render import Job, is_described, missing_frames
from clusterplug.datasets.lidar_city.workers import run_jobs
from clusterplug.datasets.lidar_city.world.scene_settings import scene_settings
from clusterplug.datasets.lidar_city.write import info_bytes, sequence_folder

MARKER = 'lidar_city.json'
GENERATOR = 2  # raised whenever the same settings would give other bytes
INFO_FILES = tuple(f'semantickitti_infos_{split}.pkl' for split in ('train', 'val', 'test'))
_TRAIN_SEQUENCES, _VAL_SEQUENCES = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10), (8,)  # SemanticKITTI's own split
_FIRST_EXTRA = 22  # SemanticKITTI ends with sequence 21


def generate_lidar_city(
    out_dir: str | os.PathLike,
    *,
    num_train: int = 160,
    num_val: int = 40,
    seed: int = 0,
    columns: int = 1024,
    scans_per_street: int = 20,
    spacing: float = 5.0,
    train_scenes: Sequence[Mapping] | None = None,
    val_scenes: Sequence[Mapping] | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a city of generated streets, scanned by a 64-beam lidar, in the SemanticKITTI layout.

    ``out_dir/sequences/NN`` holds ``velodyne/*.bin``, ``labels/*.label``, ``calib.txt``, ``poses.txt``, ``times.txt``
    and ``subtypes.json``; ``out_dir/semantickitti_infos_{train,val,test}.pkl`` are mmdet3d's info files (the test file
    lists the validation scans). Training streets take SemanticKITTI's training numbers (00 to 07, 09, 10), validation
    streets begin with 08; further streets follow from 22 on. No street serves both.

    The bytes depend on the settings alone, not on ``workers`` or on interruptions; on another processor type the last
    bits of a coordinate may differ. An interrupted run is continued by the same call.

    Args:
        out_dir: target folder; made if missing.
        num_train: training scans, at least 1.
        num_val: validation scans, at least 1.
        seed: non-negative integer; another seed is another city.
        columns: firings in a turn, 16 to 4096.
        scans_per_street: scans on one street before the next street begins, at least 1.
        spacing: meters driven between two scans, 0.1 to 20.
        train_scenes: what is asked of each training street, in order: one dict a street, with any of ``street``,
            ``objects``, ``traffic``, ``parked``, ``people``, ``greenery``, ``weather``, ``sensor_height`` and
            ``beams`` (names of levels or numbers; see ``world/scene_settings.py``). None: nothing is asked.
        val_scenes: the same for validation streets.
        workers: processes; by default ``OMP_NUM_THREADS`` or else one per usable core, or this process alone for less
            than 40 scans.
        overwrite: replace a city of other settings in ``out_dir``.
        progress: show a bar (plain lines when standard error is no terminal).

    Returns:
        ``out_dir`` as a Path.

    Raises:
        TypeError, ValueError: an argument is out of range.
        FileExistsError: ``out_dir`` holds a city of other settings, or other data.
        FolderInUse: another process writes to ``out_dir``.
        RuntimeError: a worker failed or was killed; the scan that it was casting is named.
        OSError: the disk is full, no permission ...; finished files are kept, none is half-written.
        ImportError: Open3D is missing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     city = generate_lidar_city(folder, num_train=2, num_val=1, columns=64, progress=False)
        ...     sorted(str(path.relative_to(city)) for path in city.glob('sequences/*/velodyne/*.bin'))
        ['sequences/00/velodyne/000000.bin', 'sequences/00/velodyne/000001.bin', 'sequences/08/velodyne/000000.bin']
    """
    _check_integer('num_train', num_train, 1, 10**6)
    _check_integer('num_val', num_val, 1, 10**6)
    _check_integer('seed', seed, 0, 2**63 - 1)
    _check_integer('columns', columns, 16, 4096)
    _check_integer('scans_per_street', scans_per_street, 1, 1000)
    if workers is not None:
        _check_integer('workers', workers, 1, 1024)
    if isinstance(spacing, bool) or not isinstance(spacing, Real) or not 0.1 <= spacing <= 20.0:
        raise ValueError(f'spacing must be a number of meters from 0.1 to 20, got {spacing!r}')
    import_open3d()
    settings = {
        'generator': GENERATOR,
        'num_train': int(num_train),
        'num_val': int(num_val),
        'seed': int(seed),
        'columns': int(columns),
        'scans_per_street': int(scans_per_street),
        'spacing': float(spacing),
    }
    train, val = street_lengths(settings)
    scenes = {}
    for name, asked, streets in (('train_scenes', train_scenes, train), ('val_scenes', val_scenes, val)):
        if asked is not None:
            settings[name] = _asked(name, asked, len(streets))
            scenes.update(zip(streets, settings[name]))
    out_dir = Path(out_dir).absolute()
    if out_dir.exists() and not out_dir.is_dir():
        raise FileExistsError(f'out_dir must be a folder, got the file {out_dir}')
    with locked_folder(out_dir):
        _claim(out_dir, settings, overwrite)
        _run(out_dir, settings, {**train, **val}, scenes, workers, progress)
        for name, streets in zip(INFO_FILES, (train, val, val)):
            scans = [(sequence, frame) for sequence, length in streets.items() for frame in range(length)]
            _write_if_other(out_dir / name, info_bytes(scans))
        finish(out_dir, MARKER, settings)
    return out_dir


def _write_if_other(path: Path, content: bytes) -> None:
    if not path.is_file() or path.is_symlink() or path.read_bytes() != content:
        path.unlink(missing_ok=True)  # a link is not written through
        write_bytes(path, content)


def _asked(name: str, scenes, count: int) -> list[dict]:
    """Plain settings of every street of a split."""
    if isinstance(scenes, str | bytes | Mapping) or not isinstance(scenes, Sequence):
        raise TypeError(f'{name} must be a list of dicts, one a street, got {type(scenes).__name__}')
    if len(scenes) != count:
        raise ValueError(
            f'{name} must have one entry a street, {count}, got {len(scenes)}; the number of streets is the number of '
            'scans over scans_per_street, rounded up'
        )
    return [scene_settings(scene, f'{name}[{index}]')._asdict() for index, scene in enumerate(scenes)]


def _check_integer(name: str, value, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f'{name} must be an integer, got {value!r}')
    if not low <= value <= high:
        raise ValueError(f'{name} must be from {low} to {high}, got {value}')


def street_lengths(settings: dict) -> tuple[dict[int, int], dict[int, int]]:
    """Number of scans of every training and every validation street, by sequence number.

    Example:
        >>> street_lengths({'num_train': 30, 'num_val': 25, 'scans_per_street': 20})
        ({0: 20, 1: 10}, {8: 20, 22: 5})
    """
    extra, splits = _FIRST_EXTRA, []
    for total, numbers in ((settings['num_train'], _TRAIN_SEQUENCES), (settings['num_val'], _VAL_SEQUENCES)):
        per_street = settings['scans_per_street']
        lengths = [min(per_street, total - done) for done in range(0, total, per_street)]
        numbers = list(numbers[: len(lengths)])
        missing = len(lengths) - len(numbers)
        numbers += range(extra, extra + missing)
        extra += missing
        splits.append(dict(zip(numbers, lengths)))
    return splits[0], splits[1]


def _claim(out_dir: Path, settings: dict, overwrite: bool) -> None:
    """Make sure that the folder is ours: new, the same city begun before, or to be replaced."""
    found = settings_of(out_dir, MARKER)
    ours = overwrite and found is not None
    if ours:
        _remove(out_dir, found)

    def foreign() -> bool:
        return not ours and any(os.path.lexists(out_dir / name) for name in ('sequences', *INFO_FILES))

    try:
        begin(out_dir, MARKER, settings, foreign, 'a LiDAR city')
    except OtherSettings as error:
        raise FileExistsError(f'{error}, or replace that city with --overwrite (overwrite=True)') from None


def _remove(out_dir: Path, found: dict) -> None:
    """Remove the files of an earlier city, info files first, its markers last; links, and not what they lead to."""
    try:
        numbers = [number for streets in street_lengths(found) for number in streets]
    except (KeyError, TypeError, ValueError):
        raise FileExistsError(f'{out_dir / MARKER} is damaged; remove the folder by hand or choose another') from None
    for name in INFO_FILES:
        (out_dir / name).unlink(missing_ok=True)
    if (out_dir / 'sequences').is_symlink():
        (out_dir / 'sequences').unlink()
    for number in numbers:
        folder = sequence_folder(out_dir, number)
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
    forget(out_dir, MARKER)


def _run(
    out_dir: Path,
    settings: dict,
    streets: dict[int, int],
    scenes: dict[int, dict],
    workers: int | None,
    progress: bool,
) -> None:
    missing = {sequence: missing_frames(out_dir, sequence, length) for sequence, length in streets.items()}
    todo = sum(map(len, missing.values()))
    open_streets = [s for s in streets if missing[s] or not is_described(out_dir, s)]
    if workers is None:
        workers = 1 if todo < 40 else available_cores()
    shares = max(1, -(-workers // max(len(open_streets), 1)))  # fewer streets than workers: share a street out
    jobs = []
    for sequence in open_streets:
        frames, describe = missing[sequence], not is_described(out_dir, sequence)
        size = max(1, -(-len(frames) // shares))
        for start in range(0, max(len(frames), 1), size):
            part = frames[start : start + size]
            first = describe and start == 0
            jobs.append(
                Job(
                    str(out_dir),
                    settings['seed'],
                    sequence,
                    streets[sequence],
                    part,
                    settings['columns'],
                    settings['spacing'],
                    first,
                    scenes.get(sequence),
                )
            )
    total = sum(streets.values())
    with Progress('LiDAR city', total, done=total - todo, enabled=progress) as bar:
        run_jobs(jobs, workers, bar.step)
    for leftover in out_dir.glob(f'sequences/**/.*{PART}'):  # of a run that was killed while writing
        leftover.unlink()
