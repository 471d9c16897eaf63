# SPDX-License-Identifier: Apache-2.0
"""Tiny data sets in the layouts of S3DIS and ScanNet: real files, rooms of a few thousand colored points."""

import pickle
from pathlib import Path

import numpy as np

# Raw label of each surface: S3DIS counts its 13 classes from 0, ScanNet uses 20 of the 40 classes of NYU.
_S3DIS = dict(ceiling=0, floor=1, wall=2, table=7, chair=8, clutter=12)
_SCANNET = dict(ceiling=0, floor=2, wall=1, table=7, chair=5, clutter=39)


def write_tiny_s3dis(root: str | Path, num_rooms: int = 2, num_points: int = 4000, seed: int = 0) -> Path:
    """Write ``num_rooms`` rooms of each of the six areas, with info files and scene indices.

    Args:
        root: Folder to write into; what is there already with the same name is replaced.
        num_rooms: Rooms of an area.
        num_points: Points of a room.
        seed: Same seed, same bytes.

    Returns:
        Path: ``root``, the ``data_root`` of a config. ``points/*.bin`` hold x, y, z in meters and red, green, blue
        from 0 to 255 as float32, ``semantic_mask/*.bin`` and ``instance_mask/*.bin`` int64.

    Example:
        >>> import tempfile
        >>> root = write_tiny_s3dis(tempfile.mkdtemp(), num_rooms=1, num_points=500)
        >>> (root / 'points/Area_5_office_0.bin').stat().st_size
        12000
    """
    root = Path(root)
    for area in range(1, 7):
        names = [f'Area_{area}_office_{room}' for room in range(num_rooms)]
        _write(root, f's3dis_infos_Area_{area}.pkl', names, _S3DIS, num_points, (seed, area))
        _write_indices(root / 'seg_info' / f'Area_{area}_resampled_scene_idxs.npy', num_rooms)
    return root


def write_tiny_scannet(root: str | Path, num_rooms: int = 2, num_points: int = 4000, seed: int = 0) -> Path:
    """The same rooms in the layout of ScanNet; arguments as of :func:`write_tiny_s3dis`.

    Example:
        >>> import tempfile
        >>> root = write_tiny_scannet(tempfile.mkdtemp(), num_rooms=1, num_points=500)
        >>> sorted(path.name for path in root.glob('*.pkl'))
        ['scannet_infos_train.pkl', 'scannet_infos_val.pkl']
    """
    root = Path(root)
    for number, split in enumerate(('train', 'val')):
        names = [f'scene{number:04d}_{room:02d}' for room in range(num_rooms)]
        _write(root, f'scannet_infos_{split}.pkl', names, _SCANNET, num_points, (seed, number))
    _write_indices(root / 'seg_info' / 'train_resampled_scene_idxs.npy', num_rooms)
    return root


def _write(root: Path, infos: str, names: list[str], classes: dict, num_points: int, seed: tuple) -> None:
    entries = []
    for room, name in enumerate(names):
        points, surfaces, instances = _room(np.random.default_rng([*seed, room]), num_points)
        labels = np.array([classes[surface] for surface in surfaces])
        for folder, values in (
            ('points', points.astype('<f4')), ('semantic_mask', labels.astype('<i8')),
            ('instance_mask', instances.astype('<i8')),
        ):  # fmt: skip
            (root / folder).mkdir(parents=True, exist_ok=True)
            values.tofile(root / folder / f'{name}.bin')
        entries.append(
            dict(
                lidar_points=dict(num_pts_feats=6, lidar_path=f'{name}.bin'),
                pts_semantic_mask_path=f'{name}.bin',
                pts_instance_mask_path=f'{name}.bin',
                instances=[],
            )
        )
    (root / infos).write_bytes(pickle.dumps(dict(metainfo={}, data_list=entries)))


def _write_indices(path: Path, num_rooms: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.arange(num_rooms))


def _room(rng: np.random.Generator, num_points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (N, 6), surface names (N,) and instance numbers (N,) of one room, in random order."""
    boxes = [
        ('floor', (0, 0, 0), (2.4, 1.8, 0.02)),
        ('ceiling', (0, 0, 2.4), (2.4, 1.8, 2.42)),
        ('wall', (0, 0, 0), (0.03, 1.8, 2.4)),
        ('wall', (0, 1.77, 0), (2.4, 1.8, 2.4)),
        ('table', (0.6, 0.5, 0.7), (1.6, 1.1, 0.75)),
        ('chair', (1.8, 0.6, 0.4), (2.2, 1.0, 0.45)),
        ('chair', (1.8, 1.2, 0.4), (2.2, 1.6, 0.45)),
        ('clutter', (0.2, 1.3, 0), (0.5, 1.6, 0.4)),
    ]
    color = {name: rng.uniform(40, 215, 3) for name in dict.fromkeys(box[0] for box in boxes)}
    share = rng.multinomial(num_points, [0.2, 0.15, 0.15, 0.15, 0.15, 0.06, 0.06, 0.08])
    points, surfaces, instances = [], [], []
    for number, ((name, low, high), count) in enumerate(zip(boxes, share, strict=True)):
        colors = np.clip(color[name] + rng.normal(0, 10, (count, 3)), 0, 255)
        points.append(np.concatenate([rng.uniform(low, high, (count, 3)), colors], 1))
        surfaces += [name] * count
        instances += [number] * count
    order = rng.permutation(num_points)
    return np.concatenate(points)[order], np.array(surfaces)[order], np.array(instances)[order]
