# SPDX-License-Identifier: Apache-2.0
"""A point cloud from above as a picture, with numpy alone: no window, no display."""

import numpy as np

_BACKGROUND = 24


def birds_eye(points: np.ndarray, colors: np.ndarray, size: int = 800, radius: float | None = None) -> np.ndarray:
    """Draw points from above, x upwards and y to the left, the highest point of a pixel on top.

    Args:
        points: (N, 3 or more) x, y, z in meters around the sensor.
        colors: (N, 3) red, green, blue in 0 ... 255.
        size: Width and height in pixels.
        radius: Half the width in meters; by default 95 % of the points are inside.

    Returns:
        np.ndarray: (size, size, 3) uint8, RGB.

    Example:
        >>> birds_eye(np.zeros((1, 3)), np.full((1, 3), 255), size=9, radius=1.0)[4, 4].tolist()
        [255, 255, 255]
    """
    image = np.full((size, size, 3), _BACKGROUND, dtype=np.uint8)
    if radius is None:
        radius = float(np.quantile(np.abs(points[:, :2]).max(1), 0.95)) if len(points) else 1.0
    order = np.argsort(points[:, 2], kind='stable')
    scale = (size - 1) / 2 / max(radius, 1e-3)
    rows = np.rint((size - 1) / 2 - points[order, 0] * scale).astype(int)
    columns = np.rint((size - 1) / 2 - points[order, 1] * scale).astype(int)
    for row_step, column_step in ((0, 1), (1, 0), (1, 1), (0, 0)):  # a point covers 2 x 2 pixels
        row, column = rows + row_step, columns + column_step
        inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
        image[row[inside], column[inside]] = colors[order][inside]
    return image
