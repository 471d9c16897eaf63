# SPDX-License-Identifier: Apache-2.0
"""Info files for any folder in SemanticKITTI layout, written only after every scan in them was checked.

mmdet3d's own converter lists the 43,552 scans of the full set from constants, whether they exist or not. Here the
folder is read: ``sequences/<sequence>/velodyne/<scan>.bin`` and ``sequences/<sequence>/labels/<scan>.label``.
"""

import pickle
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from clusterplug.core.files import write_bytes
from clusterplug.core.outputs import refuse_source_targets

BYTES_PER_POINT = 16  # x, y, z in meters and remission, float32 each
BYTES_PER_LABEL = 4  # uint32: class in the lower, instance in the upper 16 bits
FARTHEST = 200  # meters; no automotive laser sees as far
# of SemanticKITTI, those that the configs map to a class or to "ignored"
RAW_LABELS = (
    0, 1, 10, 11, 13, 15, 16, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 52, 60, 70, 71, 72, 80, 81, 99, 252, 253, 254,
    255, 256, 257, 258, 259,
)  # fmt: skip


def find_scans(data_root: str | Path, selection: Sequence[str] = ()) -> list[str]:
    """Names ``sequence/scan`` of the scans that exist, sorted.

    Args:
        data_root: Folder that holds ``sequences``.
        selection: What to take: ``'08'`` (a sequence), ``'08/000010'`` (a scan) or
            ``'08/000010-000019'`` (scans from ... to, both included). Empty: everything.

    Returns:
        list[str]: For instance ``['08/000010', '08/000011']``.

    Raises:
        FileNotFoundError: When there is no such sequence or no scan in the selected range.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> folder = Path(tempfile.mkdtemp(), 'sequences', '03', 'velodyne')
        >>> folder.mkdir(parents=True)
        >>> for scan in (7, 8, 9):
        ...     _ = (folder / f'{scan:06d}.bin').write_bytes(b'')
        >>> find_scans(folder.parents[2], ['03/000008-000009'])
        ['03/000008', '03/000009']
    """
    root = Path(data_root) / 'sequences'
    if not root.is_dir():
        raise FileNotFoundError(f'data_root must hold a folder sequences, got {data_root} without one')
    sequences = sorted(path.name for path in root.iterdir() if (path / 'velodyne').is_dir())
    scans = []
    for wanted in selection or sequences:
        sequence, _, part = wanted.partition('/')
        if sequence not in sequences:
            raise FileNotFoundError(f'no sequence {sequence!r} in {root}; there are {", ".join(sequences) or "none"}')
        first, _, last = part.partition('-')
        names = sorted(path.stem for path in (root / sequence / 'velodyne').glob('*.bin'))
        found = [name for name in names if not part or first <= name <= (last or first)]
        if not found:
            span = f'{names[0]} to {names[-1]}' if names else 'no scan'
            raise FileNotFoundError(f'no scan matches {wanted!r} in {root / sequence}; it holds {span}')
        scans += [f'{sequence}/{name}' for name in found]
    return list(dict.fromkeys(scans))


def check_scan(data_root: str | Path, scan: str, with_labels: bool = True) -> list[str]:
    """What is wrong with the files of one scan, in words with byte counts; empty when nothing is.

    Args:
        data_root: Folder that holds ``sequences``.
        scan: ``'08/000010'``.
        with_labels: Whether a label file is needed.

    Returns:
        list[str]: One sentence per fault.

    Example:
        >>> check_scan('/no/such/folder', '08/000010', with_labels=False)
        ['/no/such/folder/sequences/08/velodyne/000010.bin is missing']
    """
    return _inspect(Path(data_root), scan, with_labels)[0]


def _inspect(root: Path, scan: str, with_labels: bool) -> tuple[list[str], list[str]]:
    """Faults of a scan, and what is only worth a word."""
    points, labels = _files(root, scan)
    if not points.is_file():
        return [f'{points} is missing'], []
    size, faults = points.stat().st_size, []
    if size == 0 or size % BYTES_PER_POINT:
        faults.append(
            f'{points} has {size} bytes, which is not a multiple of {BYTES_PER_POINT} (x, y, z, remission as '
            f'float32): {size // BYTES_PER_POINT} whole points and {size % BYTES_PER_POINT} bytes; fetch it again'
        )
    if with_labels and not labels.is_file():
        faults.append(f'{labels} is missing, the label file of {points}')
    elif with_labels and not faults and labels.stat().st_size != size // BYTES_PER_POINT * BYTES_PER_LABEL:
        found, wanted = labels.stat().st_size, size // BYTES_PER_POINT * BYTES_PER_LABEL
        faults.append(
            f'{labels} has {found} bytes ({found / BYTES_PER_LABEL:g} labels), but {points} has {wanted // 4} points, '
            f'which need {wanted} bytes; fetch both again'
        )
    return (faults, []) if faults else _inspect_points(points)


def _inspect_points(path: Path) -> tuple[list[str], list[str]]:
    """Faults of the numbers in a point file of whole points, and what is only worth a word, each a sentence."""
    xyz = np.fromfile(path, '<f4').reshape(-1, BYTES_PER_POINT // 4)
    finite = np.isfinite(xyz).all(1)
    count, bad = len(xyz), int((~finite).sum())
    if count - bad < 2:
        what = f'{count} points, {bad} of them with NaN or inf' if bad else f'{count} point{"s" * (count != 1)}'
        return [f'{path} has {what}; a scan needs at least 2 good ones'], []
    near = float(np.abs(xyz[finite, :2]).max(1).min())
    if near > FARTHEST:
        return [
            f'{path} has no point within {FARTHEST} m of the sensor, the nearest is {near:.0f} m away; coordinates '
            'must be meters from the sensor'
        ], []
    return [], [f'{path}: {bad} of {count} points have NaN or inf; they are left out when it is loaded'] if bad else []


def count_labels(path: str | Path) -> dict[int, int]:
    """Number of points of each raw label (the lower 16 bits) in a label file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), '000000.label')
        >>> np.array([10, 10 | 3 << 16, 40], '<u4').tofile(path)
        >>> count_labels(path)
        {10: 2, 40: 1}
    """
    counts = np.bincount(np.fromfile(path, '<u4') & 0xFFFF)
    return {int(label): int(counts[label]) for label in counts.nonzero()[0]}


def write_infos(
    path: str | Path,
    data_root: str | Path,
    scans: Iterable[str],
    with_labels: bool = True,
    raw_labels: Collection[int] = RAW_LABELS,
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Check ``scans`` and write mmdet3d's info file for them; ``path`` appears complete or not at all.

    Args:
        path: The info file, usually ``<data_root>/semantickitti_infos_train.pkl``.
        data_root: Folder that holds ``sequences``; the same as ``data_root`` in the config. Only read,
            but for the info file.
        scans: Names as ``find_scans`` gives them.
        with_labels: Whether the scans have labels; a test set may have none.
        raw_labels: What a label may be: the keys of ``labels_map`` in the config. By default those
            of SemanticKITTI.
        say: Called with a sentence on each file that is worth a word but no fault: points with NaN or inf,
            a label file without a labeled point.

    Returns:
        int: Number of scans written.

    Raises:
        ValueError: When a file is missing or truncated, or a label is not among ``raw_labels``: all of them, with
            counts. Nothing is written. ``path`` lies among the scans.
    """
    scans, root, path = list(scans), Path(data_root), Path(path)
    refuse_sources(path, root)
    faults, unknown = [], {}
    for scan in scans:
        found, notes = _inspect(root, scan, with_labels)
        faults += found
        for note in notes:
            say(note)
        if found:
            continue
        labels = _files(root, scan)[1]
        counts = count_labels(labels) if with_labels else {}
        if with_labels and not counts.keys() - {0, 1}:
            say(f'{labels}: no point has a label (all are 0 or 1)')
        for label in counts.keys() - set(raw_labels):
            before = unknown.get(label, (0, labels))
            unknown[label] = before[0] + counts[label], before[1]
    faults += _unknown_labels(unknown)
    if not scans or faults:
        listed = faults[:20] + [f'... and {len(faults) - 20} more'] * (len(faults) > 20)
        raise ValueError('\n  '.join([f'{path} was not written: {len(faults)} faults in {len(scans)} scans', *listed]))
    entries = []
    for scan in scans:
        points, labels = _files(Path(), scan)
        entry = dict(lidar_points=dict(lidar_path=points.as_posix(), num_pts_feats=4), sample_id=scan.replace('/', ''))
        if with_labels:
            entry['pts_semantic_mask_path'] = labels.as_posix()
        entries.append(entry)
    write_bytes(path, pickle.dumps(dict(metainfo=dict(DATASET='SemanticKITTI'), data_list=entries)))
    return len(entries)


def _unknown_labels(unknown: dict[int, tuple[int, Path]]) -> list[str]:
    if not unknown:
        return []
    listed = ', '.join(f'{label} ({unknown[label][0]:,} points)' for label in sorted(unknown)[:12])
    more = f', and {len(unknown) - 12} more' if len(unknown) > 12 else ''
    mapped = max(set(unknown) - {255}, default=0) <= 25
    hint = (
        'they look already mapped to classes (0 .. 19): fetch the raw labels (10 is a car, 40 a road), or, for '
        'labels_map of your own config, name its keys with --labels 0-19'
        if mapped
        else 'name the keys of labels_map of your own config with --labels, or fetch the files again'
    )
    first = min((str(path) for _, path in unknown.values()))
    return [f'raw labels that labels_map does not name: {listed}{more}; first in {first}; {hint}']


def refuse_sources(path: Path, root: Path) -> None:
    """Refuse an info file that is, through links, one of the files that are read."""
    sources = [root / 'sequences', *(folder for folder in root.glob('sequences/*'))]
    sources += [part for folder in sources[1:] for part in (folder / 'velodyne', folder / 'labels')]
    if path.is_symlink() and path.parent.resolve() != root.resolve():
        sources.append(root)  # a link into the data set: it would be written through
    refuse_source_targets(sources, [path])


def _files(root: Path, scan: str) -> tuple[Path, Path]:
    sequence, name = scan.split('/')
    folder = root / 'sequences' / sequence
    return folder / 'velodyne' / f'{name}.bin', folder / 'labels' / f'{name}.label'
