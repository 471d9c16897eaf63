"""One scan as a web page in one file: it turns, and can be coloured in several ways."""

import base64
import html
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clusterplug.files import whole_file
from clusterplug.visualization._checks import check_cloud


def save_page(
    path: str | os.PathLike,
    points: np.ndarray,
    colorings: Sequence[tuple[str, np.ndarray]],
    *,
    title: str = 'Point cloud',
    legend: Sequence[tuple[str, np.ndarray]] = (),
) -> None:
    """Write a page that needs no network and no server; any browser with WebGL opens it.

    Dragging turns the view, dragging with shift moves it, the wheel zooms, buttons choose the colouring.

    Args:
        path: HTML file to write, whole or not at all. About 20 + 4 bytes a point for each colouring.
        points: (N, 3 or more) x, y, z in metres; points that are not finite are left out.
        colorings: (name, (N, 3) RGB in 0 ... 255), at least one.
        title: heading.
        legend: (name, RGB).

    Raises:
        ValueError: no colouring, or shapes that do not fit.
    """
    points = np.asarray(points)
    if not colorings:
        raise ValueError('colorings must hold at least one (name, colours)')
    for name, colors in colorings:
        check_cloud(points, np.asarray(colors), f"colours of '{name}'")
    finite = np.isfinite(points[:, :3]).all(1)
    places = points[finite, :3].astype('<f4')
    far = np.abs(places[:, :2]).max(1) if len(places) else np.ones(1)
    data = dict(
        title=title,
        points=_base64(places),
        radius=max(1.0, float(np.quantile(far, 0.9))),
        colorings=[(name, _base64(np.asarray(colors)[finite].astype(np.uint8))) for name, colors in colorings],
        legend=[(name, 'rgb({}, {}, {})'.format(*(int(v) for v in color))) for name, color in legend],
    )
    page = Path(__file__).with_name('point_cloud_page.html').read_text(encoding='utf-8')
    head, _, rest = page.partition('{{title}}')
    middle, _, end = rest.partition('{{data}}')
    # in a script element, only `</` could end what is a JSON string
    script = json.dumps(data).replace('</', '<\\/')
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, encoding='utf-8') as file:
        file.writelines((head, html.escape(title), middle, script, end))


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode('ascii')
