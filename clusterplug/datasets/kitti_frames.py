# SPDX-License-Identifier: Apache-2.0
"""The raw files of KITTI's 3D detection benchmark, checked before anything is made from them.

Layout: ``training/{velodyne/<frame>.bin, image_2/<frame>.png, calib/<frame>.txt, label_2/<frame>.txt}`` and, without
labels, ``testing/...``; frames are numbers of six digits.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

BYTES_PER_POINT = 16  # x, y, z in meters and reflectance, float32 each
CLASSES = ('Pedestrian', 'Cyclist', 'Car', 'Van', 'Truck', 'Person_sitting', 'Tram', 'Misc')
DONT_CARE = 'DontCare'
# mmdet3d's converter reads the lines by their number, so the order counts
CALIBRATION = (
    ('P0', 12), ('P1', 12), ('P2', 12), ('P3', 12), ('R0_rect', 9), ('Tr_velo_to_cam', 12), ('Tr_imu_to_velo', 12),
)  # fmt: skip
_FOLDERS = {'velodyne': '.bin', 'image_2': '.png', 'calib': '.txt', 'label_2': '.txt'}


def frame_files(root: str | Path, frame: str, training: bool = True) -> dict[str, Path]:
    """Paths of one frame by folder name; without ``label_2`` for the test set.

    Example:
        >>> frame_files('kitti', '000008')['calib'].as_posix()
        'kitti/training/calib/000008.txt'
    """
    folder = Path(root) / ('training' if training else 'testing')
    return {
        name: folder / name / f'{frame}{suffix}' for name, suffix in _FOLDERS.items() if training or name != 'label_2'
    }


def find_frames(root: str | Path, selection: Sequence[str] = (), training: bool = True) -> list[str]:
    """Names of the frames that exist (by their point file), sorted.

    Args:
        root: folder that holds ``training``.
        selection: frames (``'000008'``), ranges with both ends (``'000000-000007'``) or text files with one frame a
            line, as in KITTI's ``ImageSets``. Empty: everything.
        training: look into ``training``, else into ``testing``.

    Raises:
        FileNotFoundError: no such folder, or a frame that is not there.
        ValueError: a selection that is none of the above.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp(), 'training', 'velodyne')
        >>> folder.mkdir(parents=True)
        >>> for frame in (7, 8, 9):
        ...     _ = (folder / f'{frame:06d}.bin').write_bytes(b'')
        >>> find_frames(folder.parents[1], ['000008-000009'])
        ['000008', '000009']
    """
    folder = Path(root) / ('training' if training else 'testing') / 'velodyne'
    if not folder.is_dir():
        raise FileNotFoundError(f'root must be a folder in KITTI layout with {folder.parent.name}/velodyne, got {root}')
    there = sorted(path.stem for path in folder.glob('*.bin'))
    if not selection:
        return there
    span = f'{there[0]} to {there[-1]}' if there else 'no frame'
    frames = []
    for wanted in _expand(selection):
        first, _, last = wanted.partition('-')
        if not all(len(name) == 6 and name.isdigit() for name in (first, last or first)):
            raise ValueError(
                f"a frame is six digits ('000008'), a range ('000000-000007') or a text file, got {wanted!r}"
            )
        found = [name for name in there if first <= name <= (last or first)]
        if not found:
            raise FileNotFoundError(f'no frame matches {wanted!r} in {folder}; it holds {span}')
        frames += found
    return list(dict.fromkeys(frames))


def _expand(selection: Sequence[str]) -> list[str]:
    names = []
    for wanted in selection:
        path = Path(wanted)
        names += path.read_text(encoding='utf-8', errors='replace').split() if path.suffix == '.txt' else [wanted]
    return names


def check_frame(
    root: str | Path,
    frame: str,
    training: bool = True,
    dont_care: Sequence[str] = (),
    strict: bool = False,
    images: bool = True,
) -> list[str]:
    """What is wrong with the files of one frame, in words with file and line; empty when nothing is.

    An empty label file is a frame without objects, which is allowed.

    Args:
        root: folder that holds ``training``.
        frame: six digits.
        training: whether it lies in ``training`` and has labels.
        dont_care: names of classes besides KITTI's that are allowed.
        strict: refuse what only a rewritten label file can hold: blank lines, two spaces in a row.
        images: whether a picture is needed; data of a laser alone have none.

    Example:
        >>> check_frame('/no/such/folder', '000008')[0]
        '/no/such/folder/training/velodyne/000008.bin is missing'
    """
    files = frame_files(root, frame, training)
    needed = [path for name, path in files.items() if images or name != 'image_2']
    faults = [f'{path} is missing' for path in needed if not path.is_file()]
    points = files['velodyne']
    if points.is_file() and (points.stat().st_size == 0 or points.stat().st_size % BYTES_PER_POINT):
        size = points.stat().st_size
        faults.append(
            f'{points} has {size} bytes, which is not a positive multiple of {BYTES_PER_POINT} (x, y, z, reflectance '
            f'as float32); fetch it again'
        )
    elif points.is_file():
        count, bad = count_points(points)
        if count - bad < 2:
            faults.append(
                f'{points} has {count} points, {bad} of them with NaN or inf; a frame needs at least 2 good ones'
            )
    if files['calib'].is_file():
        faults += check_calibration(files['calib'])
    if training and files['label_2'].is_file():
        faults += check_labels(files['label_2'], dont_care, strict)
    return faults


def count_points(path: Path) -> tuple[int, int]:
    """Number of points of a file, and of those with NaN or inf."""
    finite = np.isfinite(np.fromfile(path, '<f4').reshape(-1, 4)).all(1)
    return len(finite), int((~finite).sum())


def check_calibration(path: Path) -> list[str]:
    """Faults of a calibration file, each with the number of its line."""
    lines, faults = path.read_text(encoding='utf-8', errors='replace').splitlines(), []
    for number, (name, count) in enumerate(CALIBRATION, start=1):
        line = lines[number - 1] if number <= len(lines) else ''
        key, _, values = line.partition(':')
        wanted = f"'{name}: ' and {count} numbers"
        if key.strip() != name:
            got = f'{line[:40]!r}' if line.strip() else 'nothing'
            faults.append(f'{path}:{number} must be {wanted}, got {got}')
        elif _numbers(values.split()) != count:
            faults.append(f'{path}:{number} must be {wanted}, got {values.strip()[:60]!r}')
    return faults


def check_labels(path: Path, dont_care: Sequence[str] = (), strict: bool = False) -> list[str]:
    """Faults of a label file, each with the number of its line."""
    faults = []
    for number, line in enumerate(path.read_text(encoding='utf-8', errors='replace').splitlines(), start=1):
        fields = line.split()
        if strict and (not fields or line.strip() != ' '.join(fields)):
            faults.append(
                f'{path}:{number} has blank space that mmdet3d cannot read; prepare into another folder: --out'
            )
        if not fields:
            continue
        if fields[0] not in (*CLASSES, DONT_CARE, *dont_care):
            faults.append(
                f'{path}:{number} has the unknown class {fields[0]!r}; known are {", ".join((*CLASSES, DONT_CARE))}; '
                f"take it for 'DontCare' with --dont-care {fields[0]}"
            )
        if len(fields) not in (15, 16) or _numbers(fields[1:]) != len(fields) - 1:
            faults.append(
                f'{path}:{number} must be a class and 14 numbers (truncated, occluded, alpha, 4 x box in the image, '
                f'height, width, length, x, y, z, rotation), got {len(fields)} fields: {line[:60]!r}'
            )
        elif fields[0] in CLASSES and min(float(value) for value in fields[8:11]) <= 0:
            faults.append(f'{path}:{number} needs a positive height, width and length, got {" ".join(fields[8:11])}')
    return faults


def clean_labels(text: str, dont_care: Sequence[str] = ()) -> str:
    """The label text without blank lines and with ``dont_care`` classes as KITTI's ``DontCare`` regions, last.

    Example:
        >>> clean_labels('Bus 0 0 0 1 2 3 4 1 1 1 0 0 9 0\\n\\n', ['Bus'])
        'DontCare -1 -1 -10 1 2 3 4 -1 -1 -1 -1000 -1000 -1000 -10\\n'
    """
    objects, regions = [], []
    for line in text.splitlines():
        fields = line.split()
        if fields and fields[0] in (DONT_CARE, *dont_care):
            regions.append(f'{DONT_CARE} -1 -1 -10 {" ".join(fields[4:8])} -1 -1 -1 -1000 -1000 -1000 -10')
        elif fields:
            objects.append(' '.join(fields))
    return ''.join(f'{line}\n' for line in objects + regions)


def _numbers(fields: list[str]) -> int:
    """How many fields there are, or -1 if one is not a finite number."""
    try:
        return len(fields) if all(abs(float(field)) < float('inf') for field in fields) else -1
    except ValueError:
        return -1
