# SPDX-License-Identifier: Apache-2.0
"""The files that SemanticKITTI's server takes: ``sequences/NN/predictions/<scan>.label``, raw labels, checked."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clusterplug.core.files import whole_file, write_bytes
from clusterplug.core.outputs import refuse_source_targets

# Of several raw labels of one class, the one that the benchmark's own inverse map names; moving ones come last.
_OFFICIAL = (10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81, 252, 253, 254, 255, 259, 258)
UNLABELLED = 0


def raw_labels(mapping: Mapping[int, int] | np.ndarray, num_classes: int) -> np.ndarray:
    """Inverse of ``labels_map``: the raw label of each class, (num_classes,) uint32.

    Args:
        mapping: class of each raw label, as a dict or as the table of mmdet3d's data set.
        num_classes: classes of the data set.

    Raises:
        ValueError: A class has no raw label.

    Example:
        >>> raw_labels({0: 2, 10: 0, 252: 0, 13: 1, 20: 1}, 2).tolist()
        [10, 20]
    """
    items = mapping.items() if isinstance(mapping, Mapping) else enumerate(np.asarray(mapping).tolist())
    of_class = {}
    for raw, label in items:
        of_class.setdefault(int(label), []).append(int(raw))
    result, rank = [], {raw: position for position, raw in enumerate(_OFFICIAL)}
    for label in range(num_classes):
        if label not in of_class:
            raise ValueError(f'labels_map gives no raw label class {label}, so that its points cannot be written')
        result.append(min(of_class[label], key=lambda raw: (rank.get(raw, len(rank)), raw)))
    return np.array(result, dtype=np.uint32)


def prediction_path(out: str | os.PathLike, scan: str | os.PathLike) -> Path:
    """Where the prediction of ``.../sequences/NN/velodyne/<scan>.bin`` goes.

    Raises:
        ValueError: The file is not in that layout.

    Example:
        >>> prediction_path('out', 'data/sequences/11/velodyne/000003.bin').as_posix()
        'out/sequences/11/predictions/000003.label'
    """
    parts = Path(scan).parts
    if len(parts) < 4 or parts[-4] != 'sequences' or parts[-2] != 'velodyne' or Path(scan).suffix != '.bin':
        raise ValueError(f'a scan must lie in sequences/<sequence>/velodyne/<scan>.bin to be submitted, got {scan}')
    return Path(out, 'sequences', parts[-3], 'predictions', f'{Path(scan).stem}.label')


def write_prediction(
    out: str | os.PathLike,
    scan: str | os.PathLike,
    classes: np.ndarray,
    inverse: np.ndarray,
    *,
    finite: np.ndarray | None = None,
    columns: int = 4,
) -> Path:
    """Write the raw labels of one scan, one uint32 for each point of its file; raise if the numbers differ.

    Args:
        out: Folder of the submission.
        scan: The point file.
        classes: (N,) predicted classes; what is no class (an output for ignored points) becomes unlabeled, 0.
        inverse: (C,) of :func:`raw_labels`.
        finite: (P,) which points of the file were read; the others become unlabeled. None: all.
        columns: float32 numbers of a point in the file.

    Returns:
        The file.
    """
    target = prediction_path(out, scan)
    refuse_source_targets([Path(scan).parents[2]], [target.parent, target])
    classes = np.asarray(classes).astype(np.int64)
    known = (classes >= 0) & (classes < len(inverse))
    labels = np.where(known, inverse[np.where(known, classes, 0)], UNLABELLED).astype('<u4')
    if finite is not None and len(labels) == int(finite.sum()):
        whole = np.full(len(finite), UNLABELLED, '<u4')
        whole[finite] = labels
        labels = whole
    count = os.path.getsize(scan) // (4 * columns)
    if len(labels) != count:
        raise ValueError(
            f'{scan} has {count} points, but {len(labels)} predictions; the test pipeline must keep all points, in '
            'their order (no sampling, no range filter)'
        )
    write_bytes(target, labels.tobytes())
    return target


def check_submission(out: str | os.PathLike, scans: Mapping[str, int]) -> list[str]:
    """Faults of a submission, in words; empty when every scan has as many labels as points and nothing is left over.

    Args:
        out: Folder of the submission.
        scans: number of points by point file.
    """
    faults, wanted = [], set()
    for scan, count in scans.items():
        path = prediction_path(out, scan)
        wanted.add(path)
        if not path.is_file():
            faults.append(f'{path} is missing, the prediction of {scan}')
        elif path.stat().st_size != 4 * count:
            faults.append(f'{path} has {path.stat().st_size / 4:g} labels, but {scan} has {count} points')
    foreign = sorted(path for path in Path(out, 'sequences').rglob('*') if path.is_file() and path not in wanted)
    return faults + [f'{path} belongs to no scan of the split' for path in foreign]


def missing_scans(scans: Mapping[str, int]) -> dict[str, int]:
    """Point files that lie next to the predicted ones and were not predicted: number by folder."""
    folders = {}
    for scan in scans:
        folders.setdefault(str(Path(scan).parent), set()).add(Path(scan).name)
    counts = {
        folder: len({path.name for path in Path(folder).glob('*.bin')} - names) for folder, names in folders.items()
    }
    return {folder: count for folder, count in counts.items() if count}


def zip_submission(out: str | os.PathLike, path: str | os.PathLike, scans: Mapping[str, int]) -> None:
    """Put the predictions of ``scans`` into one zip, ``sequences`` at its top, whole or not at all."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, 'wb') as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        for scan in sorted(scans):
            source = prediction_path(out, scan)
            archive.write(source, source.relative_to(out).as_posix())
