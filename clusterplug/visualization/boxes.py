# SPDX-License-Identifier: Apache-2.0
"""Boxes of a detector drawn into a bird's-eye view and into a camera image, with numpy alone."""

from typing import NamedTuple

import numpy as np

from clusterplug.visualization.birds_eye import birds_eye

_NEAR = 0.1  # meters before the camera at which edges are cut
_EDGES = [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)]


class BoxGroup(NamedTuple):
    """Boxes of one color.

    Attributes:
        boxes: (T, 7) x, y of the center, z of the bottom, sizes along x, y, z in meters, angle about z in radians.
        color: red, green, blue in 0 ... 255.
    """

    boxes: np.ndarray
    color: tuple[int, int, int]


def box_corners(boxes: np.ndarray) -> np.ndarray:
    """(T, 8, 3) corners of boxes (T, 7): the four of the bottom, front left first, counter-clockwise; then the top.

    Example:
        >>> box_corners(np.array([[0, 0, 0, 4, 2, 1, 0.0]]))[0, [0, 6]].tolist()
        [[2.0, 1.0, 0.0], [-2.0, -1.0, 1.0]]
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 7)
    x = boxes[:, 3:4] / 2 * [1, -1, -1, 1, 1, -1, -1, 1]
    y = boxes[:, 4:5] / 2 * [1, 1, -1, -1, 1, 1, -1, -1]
    z = boxes[:, 5:6] * [0, 0, 0, 0, 1, 1, 1, 1]
    cos, sin = np.cos(boxes[:, 6:7]), np.sin(boxes[:, 6:7])
    return np.stack([cos * x - sin * y, sin * x + cos * y, z], 2) + boxes[:, None, :3]


def boxes_from_above(
    points: np.ndarray, groups: list[BoxGroup], limits: tuple[float, float, float, float], size: int = 700
) -> np.ndarray:
    """Points in gray, brighter with height, and the outlines of boxes, x upwards and y to the left.

    A line from the center of a box to its front shows where it heads.

    Args:
        points: (N, 3 or more) meters.
        groups: later ones are drawn over earlier ones.
        limits: least x, least y, largest x, largest y of the view, a square.
        size: pixels of a side.

    Returns:
        (size, size, 3) uint8, RGB.

    Raises:
        ValueError: limits that are no square.

    Example:
        >>> car = BoxGroup(np.array([[5, 0, -1, 4, 2, 1.5, 0.0]]), (0, 255, 0))
        >>> view = boxes_from_above(np.zeros((0, 3)), [car], (0, -5, 10, 5), size=101)
        >>> view[30, 50].tolist(), view[50, 40].tolist()
        ([0, 255, 0], [0, 255, 0])
    """
    low_x, low_y, high_x, high_y = limits
    if high_x - low_x <= 0 or not np.isclose(high_x - low_x, high_y - low_y):
        raise ValueError(f'limits must be a square: least x, least y, largest x, largest y; got {limits}')
    middle, radius = np.array([(low_x + high_x) / 2, (low_y + high_y) / 2, 0]), (high_x - low_x) / 2
    moved = np.asarray(points, np.float64)[:, :3] - middle
    grey = np.clip(90 + 45 * (moved[:, 2:3] + 2), 70, 230).astype(np.uint8)
    image = birds_eye(moved, np.repeat(grey, 3, 1), size=size, radius=radius)
    scale = (size - 1) / 2 / radius
    for boxes, color in groups:
        corners = box_corners(boxes)[:, :4]
        for outline in corners:
            front, centre = (outline[0] + outline[3]) / 2, outline.mean(0)
            lines = [*zip(outline, np.roll(outline, -1, 0), strict=True), (centre, front)]
            for ends in lines:
                column, row = ((size - 1) / 2 - (np.array([e[axis] for e in ends]) - middle[axis]) * scale
                               for axis in (1, 0))  # fmt: skip
                draw_line(image, (column[0], row[0]), (column[1], row[1]), color)
    return image


def boxes_in_image(image: np.ndarray, groups: list[BoxGroup], projection: np.ndarray, width: int = 2) -> np.ndarray:
    """A copy of a camera image with the edges of boxes; what lies behind the camera is cut off.

    Args:
        image: (H, W, 3) uint8, RGB.
        groups: later ones are drawn over earlier ones.
        projection: (4, 4) or (3, 4) from the coordinates of the boxes to (column x depth, row x depth, depth).
        width: of the lines in pixels.

    Returns:
        (H, W, 3) uint8, RGB.

    Example:
        >>> camera = np.array([[10.0, 0, 20, 0], [0, 10, 20, 0], [0, 0, 1, 0]])
        >>> cube = BoxGroup(np.array([[0, 0, 4, 2, 2, 2, 0.0]]), (255, 0, 0))
        >>> drawn = boxes_in_image(np.zeros((41, 41, 3), np.uint8), [cube], camera, width=1)
        >>> [int(c) for c in np.flatnonzero(drawn[20, :, 0])]  # edges 1 m aside at depths of 4 m and 6 m
        [18, 22]
    """
    image = np.array(image)
    projection = np.asarray(projection, np.float64)[:3, :4]
    for boxes, color in groups:
        corners = box_corners(boxes)
        seen = np.append(corners, np.ones((*corners.shape[:2], 1)), 2) @ projection.T
        for box in seen:
            for a, b in _EDGES:
                ends = _before_camera(box[a], box[b])
                if ends is not None:
                    draw_line(image, *(end[:2] / end[2] for end in ends), color, width)
    return image


def draw_line(image: np.ndarray, start, end, color, width: int = 1) -> None:
    """Draw a straight line in place between two points (column, row), which may lie outside."""
    start, end = np.asarray(start, np.float64), np.asarray(end, np.float64)
    height, columns = image.shape[:2]
    ends = _inside(start, end, (-width, -width), (columns + width, height + width))
    if ends is None:
        return
    start, end = ends
    steps = int(np.abs(end - start).max()) + 1
    path = np.rint(start + (end - start) * np.linspace(0, 1, steps + 1)[:, None]).astype(int)
    for row_step in range(width):
        for column_step in range(width):
            column, row = path[:, 0] + column_step, path[:, 1] + row_step
            keep = (row >= 0) & (row < height) & (column >= 0) & (column < columns)
            image[row[keep], column[keep]] = color


def _before_camera(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The part of an edge with a depth of at least ``_NEAR``."""
    if a[2] < _NEAR and b[2] < _NEAR:
        return None
    if a[2] < _NEAR or b[2] < _NEAR:
        share = (_NEAR - a[2]) / (b[2] - a[2])
        cut = a + share * (b - a)
        return (cut, b) if a[2] < _NEAR else (a, cut)
    return a, b


def _inside(start, end, low, high) -> tuple[np.ndarray, np.ndarray] | None:
    """The part of a line within a rectangle."""
    step, first, last = end - start, 0.0, 1.0
    for axis in (0, 1):
        if step[axis] == 0:
            if not low[axis] <= start[axis] <= high[axis]:
                return None
            continue
        times = sorted(((low[axis] - start[axis]) / step[axis], (high[axis] - start[axis]) / step[axis]))
        first, last = max(first, times[0]), min(last, times[1])
    return (start + first * step, start + last * step) if first <= last else None
