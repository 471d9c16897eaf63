# SPDX-License-Identifier: Apache-2.0
"""Single objects of a LiDAR city: their points, a sentence about each, and a plain description of their shape."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clusterplug.core.checks import check_count
from clusterplug.datasets.lidar_city.world.catalogue import SUBTYPES
from clusterplug.datasets.lidar_city.world.subtypes import load_subtypes

GROUND = ('road', 'parking', 'sidewalk', 'other-ground', 'terrain')
_NOT_LOOKED_AT = -2  # a label of scan_objects


class CityObject(NamedTuple):
    """One object, in the scan that shows most of it.

    Attributes:
        name: ``sequence/frame/instance``.
        class_name: of ``CLASSES``. subtype: its hidden kind.
        points: (n, 4) x, y, z in meters from the sensor, remission.
        caption: sub-type, class, size and distance in words.
    """

    name: str
    class_name: str
    subtype: str
    points: np.ndarray
    caption: str


def city_objects(
    root: str | os.PathLike, *, min_points: int = 50, classes: Sequence[str] | None = None
) -> list[CityObject]:
    """Return the objects of all scans of a city, each once, in the order of their names.

    Args:
        root: What ``generate_lidar_city`` wrote.
        min_points: Objects of which no scan shows as many points are skipped.
        classes: Classes to take; default all but ground.

    Raises:
        FileNotFoundError: There are no scans, or no table of sub-types.
        ValueError: An unknown class, or no object with as many points.
    """
    from clusterplug.analysis import scan_objects  # workers that only write scans have no use for it

    check_count(min_points, 'min_points', 1)
    known = {subtype.class_name for subtype in SUBTYPES}
    wanted = known.difference(GROUND) if classes is None else set(classes)
    if not wanted <= known:
        raise ValueError(f'classes must be of {sorted(known)}, got {sorted(wanted - known)}')
    files = sorted(Path(root).glob('sequences/*/labels/*.label'))
    if not files:
        raise FileNotFoundError(f'no scans in {root}/sequences; write a city with tools/prepare_lidar_city.py')
    best: dict[tuple[str, int], tuple[int, str, np.ndarray, int]] = {}
    chosen = np.array([subtype.class_name in wanted for subtype in SUBTYPES])
    for file in files:
        sequence = file.parents[1]
        points = np.fromfile(sequence / 'velodyne' / f'{file.stem}.bin', '<f4').reshape(-1, 4)
        instances, kinds = np.fromfile(file, '<u4') >> 16, load_subtypes(file)
        kinds = np.where((kinds >= 0) & chosen[kinds], kinds, _NOT_LOOKED_AT)
        for each in scan_objects(points, kinds, instances, min_points=min_points, max_size=None):
            number = int(instances[each.rows[0]])
            key = (sequence.name, number)
            if key not in best or len(each.rows) > best[key][0]:
                name = f'{sequence.name}/{file.stem}/{number}'
                best[key] = (len(each.rows), name, points[each.rows], each.label)
    if not best:
        raise ValueError(f'no object of {sorted(wanted)} has {min_points} points in a scan; lower min_points')
    found = []
    for _, name, points, kind in sorted(best.values(), key=lambda each: each[1]):
        subtype = SUBTYPES[kind]
        found.append(CityObject(name, subtype.class_name, subtype.name, points, _caption(subtype, points)))
    return found


def _caption(subtype, points: np.ndarray) -> str:
    """A sentence. The length is that along the object, to half a meter."""
    flat = points[:, :2].astype(float)
    axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2] if len(flat) > 1 else np.eye(2)
    length = np.ptp((flat - flat.mean(0)) @ axes[0])
    height, away = np.ptp(points[:, 2]), np.linalg.norm(flat.mean(0))
    words, kind = subtype.name.replace('_', ' '), subtype.class_name.replace('-', ' ')
    return (
        f'a {words} ({kind}), {np.round(2 * length) / 2:.1f} m long and {np.round(2 * height) / 2:.1f} m high, '
        f'{away:.0f} m away'
    )


def shape_features(clouds: Sequence[np.ndarray]) -> np.ndarray:
    """Return (N, 59) float64 numbers that describe point clouds (n, 4) without any training.

    Extents along the main directions, ratios of the spread, distance and number of points, a map of 4 x 6 cells of
    height and distance from the axis, and histograms of height and remission: a baseline for trained encoders.

    Raises:
        ValueError: No cloud, or one that is not (n, 4) with n >= 1 and finite.
    """
    if not len(clouds):
        raise ValueError('clouds must hold at least one array (n, 4), got none')
    return np.stack([_shape(np.asarray(cloud, float)) for cloud in clouds])


def _shape(cloud: np.ndarray) -> np.ndarray:
    if cloud.ndim != 2 or cloud.shape[1] != 4 or not len(cloud) or not np.isfinite(cloud).all():
        raise ValueError(f'clouds must be finite (n, 4) with n >= 1, got shape {cloud.shape}')
    flat, z, shine = cloud[:, :2], cloud[:, 2], cloud[:, 3]
    middle = flat - flat.mean(0)
    along = middle @ np.linalg.eigh(middle.T @ middle)[1][:, ::-1]
    spread = np.sqrt(np.sort(np.linalg.eigvalsh(np.cov(cloud[:, :3].T, bias=True)).clip(0))[::-1])
    extents = np.array([np.ptp(along[:, 0]), np.ptp(along[:, 1]), np.ptp(z)])
    away = np.linalg.norm(flat.mean(0))
    height = (z - z.min()) / max(np.ptp(z), 1e-9)
    radius = np.hypot(*along.T)
    radius = radius / max(radius.max(), 1e-9)
    cells = np.histogram2d(height, radius, bins=(6, 4), range=((0, 1), (0, 1)))[0].ravel() / len(cloud)
    bins = [np.histogram(v, bins=10, range=(0, 1))[0] / len(cloud) for v in (height, shine.clip(0, 1))]
    plain = [z.min(), z.max(), np.log(len(cloud)), away, np.log(len(cloud)) + 2 * np.log(max(away, 1.0)),
             shine.mean(), shine.std(), height.mean(), height.std()]  # fmt: skip
    return np.concatenate([extents, np.log1p(extents), spread, spread[1:] / max(spread[0], 1e-9), plain, cells, *bins])


def side_view(cloud: np.ndarray, size: int = 96) -> np.ndarray:
    """Return (size, size, 3) uint8: the object from the side, along its shorter direction, colored by remission."""
    cloud = np.asarray(cloud, float)
    middle = cloud[:, :2] - cloud[:, :2].mean(0)
    axis = np.linalg.eigh(middle.T @ middle)[1][:, -1]
    across, up = middle @ axis, cloud[:, 2] - cloud[:, 2].min()
    scale = (size - 8) / max(np.ptp(across), np.ptp(up), 0.5)
    columns = np.round((across - across.min()) * scale + (size - np.ptp(across) * scale) / 2).astype(int)
    rows = size - 4 - np.round(up * scale).astype(int)
    picture = np.full((size, size, 3), 255, np.uint8)
    shine = (cloud[:, 3].clip(0, 1) * 200).astype(np.uint8)
    inside = (columns >= 0) & (columns < size) & (rows >= 0) & (rows < size)
    picture[rows[inside], columns[inside]] = np.stack([shine, shine // 2, 200 - shine], 1)[inside]
    return picture
