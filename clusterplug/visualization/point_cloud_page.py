# SPDX-License-Identifier: Apache-2.0
"""One scan as a web page in one file: it turns, and can be colored in several ways."""

import os
from collections.abc import Sequence

import numpy as np

from clusterplug.visualization._checks import check_cloud
from clusterplug.visualization._page import to_base64, write_page
from clusterplug.visualization.colors import class_name


def save_page(
    path: str | os.PathLike,
    points: np.ndarray,
    colorings: Sequence[tuple[str, np.ndarray]],
    *,
    title: str = 'Point cloud',
    legend: Sequence[tuple[str, np.ndarray]] = (),
) -> None:
    """Write a page that needs no network and no server; any browser with WebGL opens it.

    Dragging turns the view, dragging with shift moves it, the wheel zooms, buttons choose the coloring.

    Args:
        path: HTML file to write, whole or not at all. About 20 + 4 bytes a point for each coloring.
        points: (N, 3 or more) x, y, z in meters; points that are not finite are left out.
        colorings: (name, (N, 3) RGB in 0 ... 255), at least one.
        title: heading.
        legend: (name, RGB).

    Raises:
        ValueError: no coloring, or shapes that do not fit.
    """
    points = np.asarray(points)
    if not colorings:
        raise ValueError('colorings must hold at least one (name, colors)')
    for name, colors in colorings:
        check_cloud(points, np.asarray(colors), f"colors of '{name}'")
    finite = np.isfinite(points[:, :3]).all(1)
    places = points[finite, :3].astype('<f4')
    far = np.abs(places[:, :2]).max(1) if len(places) else np.ones(1)
    data = dict(
        title=title,
        points=to_base64(places),
        radius=max(1.0, float(np.quantile(far, 0.9))),
        colorings=[(name, to_base64(np.asarray(colors)[finite].astype(np.uint8))) for name, colors in colorings],
        legend=[(class_name(name), 'rgb({}, {}, {})'.format(*(int(v) for v in color))) for name, color in legend],
    )
    write_page(path, 'point_cloud_page.html', data)
