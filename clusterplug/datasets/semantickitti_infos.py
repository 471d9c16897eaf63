"""Info files for any folder in SemanticKITTI layout, written only after every scan in them was checked.

mmdet3d's own converter lists the 43,552 scans of the full set from constants, whether they exist or not. Here the
folder is read: ``sequences/<sequence>/velodyne/<scan>.bin`` and ``sequences/<sequence>/labels/<scan>.label``.
"""

import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path

from clusterplug.core.files import whole_file

BYTES_PER_POINT = 16  # x, y, z in metres and remission, float32 each
BYTES_PER_LABEL = 4  # uint32: class in the lower, instance in the upper 16 bits


def find_scans(data_root: str | Path, selection: Sequence[str] = ()) -> list[str]:
    """Names ``sequence/scan`` of the scans that exist, sorted.

    Args:
        data_root (str | Path): Folder that holds ``sequences``.
        selection (Sequence[str]): What to take: ``'08'`` (a sequence), ``'08/000010'`` (a scan) or
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
    return scans


def check_scan(data_root: str | Path, scan: str, with_labels: bool = True) -> list[str]:
    """What is wrong with the files of one scan, in words with byte counts; empty when nothing is.

    Args:
        data_root (str | Path): Folder that holds ``sequences``.
        scan (str): ``'08/000010'``.
        with_labels (bool): Whether a label file is needed.

    Returns:
        list[str]: One sentence per fault.

    Example:
        >>> check_scan('/no/such/folder', '08/000010', with_labels=False)
        ['/no/such/folder/sequences/08/velodyne/000010.bin is missing']
    """
    points, labels = _files(Path(data_root), scan)
    if not points.is_file():
        return [f'{points} is missing']
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
    return faults


def write_infos(path: str | Path, data_root: str | Path, scans: Iterable[str], with_labels: bool = True) -> int:
    """Check ``scans`` and write mmdet3d's info file for them; ``path`` appears complete or not at all.

    Args:
        path (str | Path): The info file, usually ``<data_root>/semantickitti_infos_train.pkl``.
        data_root (str | Path): Folder that holds ``sequences``; the same as ``data_root`` in the config.
        scans (Iterable[str]): Names as ``find_scans`` gives them.
        with_labels (bool): Whether the scans have labels; a test set may have none.

    Returns:
        int: Number of scans written.

    Raises:
        ValueError: When a file is missing or truncated: all of them, with byte counts. Nothing is written.
    """
    scans, root = list(scans), Path(data_root)
    faults = [fault for scan in scans for fault in check_scan(root, scan, with_labels)]
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
    content = dict(metainfo=dict(DATASET='SemanticKITTI'), data_list=entries)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, 'wb') as file:
        pickle.dump(content, file)
    return len(entries)


def _files(root: Path, scan: str) -> tuple[Path, Path]:
    sequence, name = scan.split('/')
    folder = root / 'sequences' / sequence
    return folder / 'velodyne' / f'{name}.bin', folder / 'labels' / f'{name}.label'
