# SPDX-License-Identifier: Apache-2.0
"""A tiny data set in SemanticKITTI layout: real files, a street of a few thousand points per scan."""

from pathlib import Path

import numpy as np

from clusterplug.datasets.semantickitti_infos import find_scans, write_infos

# Raw SemanticKITTI labels; trucks, persons and most other classes are absent on purpose.
CAR, ROAD, SIDEWALK, BUILDING, VEGETATION, POLE = 10, 40, 48, 50, 70, 80


def write_tiny_semantickitti(root: str | Path, num_scans: int = 4, num_points: int = 3000, seed: int = 0) -> Path:
    """Write ``num_scans`` scans for training (sequence 00) and two for validation (sequence 08), with info files.

    With ``calib.txt`` and ``poses.txt`` (a laser that stands still), so that configs of several scans run as well.
    Every scan shows a road between sidewalks, walls, hedges, poles, and cars whose instance id is in the upper 16
    bits; 2 % of the points are unlabeled.

    Args:
        root: Folder to write into; what is there already with the same name is replaced.
        num_scans: Number of training scans.
        num_points: Points per scan.
        seed: Same seed, same bytes.

    Returns:
        Path: ``root``, the ``data_root`` of a config.

    Example:
        >>> import tempfile
        >>> root = write_tiny_semantickitti(tempfile.mkdtemp(), num_scans=2, num_points=1000)
        >>> (root / 'sequences/00/velodyne/000001.bin').stat().st_size
        16000
    """
    root = Path(root)
    for sequence, split, count in (('00', 'train', num_scans), ('08', 'val', 2)):
        folder = root / 'sequences' / sequence
        for name in ('velodyne', 'labels'):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for scan in range(count):
            points, labels = _street(np.random.default_rng([seed, int(sequence), scan]), num_points)
            points.astype('<f4').tofile(folder / 'velodyne' / f'{scan:06d}.bin')
            labels.astype('<u4').tofile(folder / 'labels' / f'{scan:06d}.label')
        still = ' '.join(['1 0 0 0', '0 1 0 0', '0 0 1 0'])
        (folder / 'calib.txt').write_text(''.join(f'{name}: {still}\n' for name in ('P0', 'P1', 'P2', 'P3', 'Tr')))
        (folder / 'poses.txt').write_text(f'{still}\n' * len(list((folder / 'velodyne').glob('*.bin'))))
        names = [name for name in find_scans(root, [sequence]) if int(name[-6:]) < count]
        write_infos(root / f'semantickitti_infos_{split}.pkl', root, names)
    return root


def _street(rng: np.random.Generator, num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 4) in meters with remission, and raw labels (N,) uint32, in random order."""
    share = rng.multinomial(num_points, [0.3, 0.15, 0.2, 0.15, 0.05, 0.15])
    parts = [
        (ROAD, _box(rng, share[0], (-20, -4, -1.75), (20, 4, -1.7))),
        (SIDEWALK, _box(rng, share[1], (-20, 4, -1.6), (20, 7, -1.55))),
        (BUILDING, _box(rng, share[2], (-20, 9, -1.6), (20, 9.3, 4))),
        (VEGETATION, _box(rng, share[3], (-20, -9, -1.6), (20, -7, 1))),
    ]
    for x in (-12.0, 0.0, 12.0):
        parts.append((POLE, _box(rng, share[4] // 3, (x, 6, -1.6), (x + 0.15, 6.15, 3))))
    for instance, x in enumerate(rng.uniform(-15, 15, 3), start=1):
        car = _box(rng, share[5] // 3, (x, -3.5, -1.7), (x + 4.2, -1.7, -0.2))
        parts.append((CAR | instance << 16, car))
    missing = num_points - sum(len(part) for _, part in parts)
    parts.append((ROAD, _box(rng, missing, (-20, -4, -1.75), (20, 4, -1.7))))
    points = np.concatenate([part for _, part in parts])
    labels = np.concatenate([np.full(len(part), label, dtype=np.uint32) for label, part in parts])
    labels[rng.random(num_points) < 0.02] = 0
    remission = 0.1 + 0.8 * (labels & 0xFFFF)[:, None] / 100 * rng.uniform(0.8, 1.2, (num_points, 1))
    order = rng.permutation(num_points)
    return np.concatenate([points, remission], 1)[order], labels[order]


def _box(rng: np.random.Generator, count: int, low: tuple, high: tuple) -> np.ndarray:
    return rng.uniform(low, high, (count, 3))
