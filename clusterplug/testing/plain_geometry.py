# SPDX-License-Identifier: Apache-2.0
"""Geometry in plain Python, to compare batched code with."""

import math


def corners(box) -> list[tuple[float, float]]:
    """Corners of a rectangle (x, y, width, height, angle), counter-clockwise."""
    x, y, width, height, angle = box
    cos, sin = math.cos(angle), math.sin(angle)
    local = [(-width / 2, -height / 2), (width / 2, -height / 2), (width / 2, height / 2), (-width / 2, height / 2)]
    return [(cos * a - sin * b + x, sin * a + cos * b + y) for a, b in local]


def area(polygon) -> float:
    """Area of a polygon, negative if its corners run clockwise."""
    following = polygon[1:] + polygon[:1]
    return sum(a[0] * b[1] - a[1] * b[0] for a, b in zip(polygon, following, strict=True)) / 2


def clip(box, other) -> float:
    """Area common to two rectangles, cut side by side (Sutherland and Hodgman).

    Example:
        >>> clip((0, 0, 2, 2, 0), (1, 0, 2, 2, 0))
        2.0
    """
    polygon, window = corners(box), corners(other)
    for a, b in zip(window, window[1:] + window[:1], strict=True):
        kept, before = [], polygon
        for p, q in zip(before[-1:] + before[:-1], before, strict=True):
            side_p, side_q = ((b[0] - a[0]) * (r[1] - a[1]) - (b[1] - a[1]) * (r[0] - a[0]) for r in (p, q))
            if (side_p >= 0) != (side_q >= 0):
                share = side_p / (side_p - side_q)
                kept.append((p[0] + share * (q[0] - p[0]), p[1] + share * (q[1] - p[1])))
            if side_q >= 0:
                kept.append(q)
        polygon = kept
        if not polygon:
            return 0.0
    return area(polygon)
