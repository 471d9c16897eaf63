# SPDX-License-Identifier: Apache-2.0
"""An object of a scan from above and from the side, with what is around it."""

from typing import NamedTuple

import numpy as np

from clusterplug.visualization.birds_eye import birds_eye

_AROUND, _OBJECT, _BAR = (110, 116, 128), (255, 170, 40), (240, 240, 240)
_BARS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
_GAP = 4  # pixels between the two views


class ObjectViews(NamedTuple):
    """What :func:`object_views` returns."""

    picture: np.ndarray  # (size, 2 size + 4, 3) uint8, RGB
    bar: float  # meters that the bar at the lower left is long


def object_above(points: np.ndarray, rows: np.ndarray, size: int = 240, margin: float = 3.0) -> np.ndarray:
    """Draw the points ``rows`` of a scan in color and the others around them in gray, x upwards and y to the left.

    Args:
        points: (N, 3 or more) x, y, z in meters.
        rows: (n,) of the object, n >= 1.
        size: Pixels of a side.
        margin: Meters around the object.

    Returns:
        (size, size, 3) uint8, RGB.

    Example:
        >>> object_above(np.zeros((1, 3)), np.array([0]), size=9)[4, 4].tolist()
        [255, 170, 40]
    """
    points, rows, own = _read(points, rows)
    low, high = own.min(0), own.max(0)
    everything = np.ones(len(points), bool)
    return _view(points - (low + high) / 2, everything, rows, size, (high - low)[:2].max() / 2 + margin)


def object_views(points: np.ndarray, rows: np.ndarray, size: int = 240, margin: float = 1.5) -> ObjectViews:
    """Draw an object from above and, on the right, from the side: along its longer direction, z upwards.

    Both are of one scale, which a bar shows. From the side only what is near the object is drawn, not the walls in
    front of it and behind.

    Args:
        points: (N, 3 or more) x, y, z in meters.
        rows: (n,) of the object, n >= 1.
        size: Height in pixels, and width of each view.
        margin: Meters around the object.

    Example:
        >>> object_views(np.array([[0.0, 0, 0], [0, 4, 1]]), np.array([0, 1])).bar  # meters
        2.0
    """
    points, rows, own = _read(points, rows)
    middle, radius = (own.min(0) + own.max(0)) / 2, (own.max(0) - own.min(0)).max() / 2 + margin
    moved = points - middle
    axis = (
        np.linalg.svd((own - own.mean(0))[:, :2], full_matrices=False)[2][0] if len(own) > 1 else np.array([0.0, 1.0])
    )
    axis = axis * np.sign(axis[np.abs(axis).argmax()])
    along, depth = moved[:, :2] @ axis, moved[:, :2] @ np.array([-axis[1], axis[0]])
    side = np.stack([moved[:, 2], -along, depth], 1)
    beside = np.abs(depth) <= np.abs(depth[rows]).max() + 1.0
    pictures = [_view(each, kept, rows, size, radius) for each, kept in ((moved, np.ones_like(beside)), (side, beside))]
    bar = max((each for each in _BARS if each <= radius), default=_BARS[0])
    length = max(2, round(bar * (size - 1) / 2 / radius))
    pictures[0][size - 9 : size - 6, 6 : 6 + length] = _BAR
    return ObjectViews(np.concatenate([pictures[0], np.full((size, _GAP, 3), 255, np.uint8), pictures[1]], 1), bar)


def _read(points: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (N, 3), rows of the object (n,), its positions (n, 3)."""
    points, rows = np.asarray(points, float)[:, :3], np.asarray(rows)
    if rows.ndim != 1 or not len(rows):
        raise ValueError(f'rows must name at least one point, got shape {rows.shape}')
    return points, rows, points[rows]


def _view(moved: np.ndarray, kept: np.ndarray, rows: np.ndarray, size: int, radius: float) -> np.ndarray:
    near = kept & (np.abs(moved[:, :2]) <= radius).all(1)
    picture = birds_eye(moved[near], np.full((near.sum(), 3), _AROUND), size, radius)
    own = birds_eye(moved[rows], np.full((len(rows), 3), _OBJECT), size, radius)
    hit = (own == _OBJECT).all(-1)
    picture[hit] = _OBJECT
    return picture
