# SPDX-License-Identifier: Apache-2.0
"""An object of a scan from above, with what is around it."""

import numpy as np

from clusterplug.visualization.birds_eye import birds_eye

_AROUND, _OBJECT = (110, 116, 128), (255, 170, 40)


def object_crop(points: np.ndarray, rows: np.ndarray, size: int = 240, margin: float = 3.0) -> np.ndarray:
    """Draw the points ``rows`` of a scan in color and the others around them in gray, x upwards and y to the left.

    Args:
        points: (N, 3 or more) x, y, z in meters.
        rows: (n,) of the object, n >= 1.
        size: Pixels of a side.
        margin: Meters around the object.

    Returns:
        (size, size, 3) uint8, RGB.

    Example:
        >>> object_crop(np.zeros((1, 3)), np.array([0]), size=9)[4, 4].tolist()
        [255, 170, 40]
    """
    points, rows = np.asarray(points, float)[:, :3], np.asarray(rows)
    if rows.ndim != 1 or not len(rows):
        raise ValueError(f'rows must name at least one point, got shape {rows.shape}')
    low, high = points[rows].min(0), points[rows].max(0)
    radius = (high - low)[:2].max() / 2 + margin
    moved = points - (low + high) / 2
    colors = np.full((len(points), 3), _AROUND)
    colors[rows] = _OBJECT
    near = (np.abs(moved[:, :2]) <= radius).all(1)
    picture = birds_eye(moved[near], colors[near], size, radius)
    own = birds_eye(moved[rows], colors[rows], size, radius)  # over what hangs above it
    hit = (own == _OBJECT).all(-1)
    picture[hit] = _OBJECT
    return picture
