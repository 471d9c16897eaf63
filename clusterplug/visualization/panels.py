# SPDX-License-Identifier: Apache-2.0
"""Several bird's-eye views beside each other, with titles and a legend, as one PNG."""

import os
from collections.abc import Sequence

import numpy as np

from clusterplug.visualization._figures import save_figure
from clusterplug.visualization._text import PLAIN, label, plain, plain_legend
from clusterplug.visualization.birds_eye import birds_eye


def save_panels(
    path: str | os.PathLike,
    points: np.ndarray,
    panels: Sequence[tuple[str, np.ndarray]],
    *,
    legend: Sequence[tuple[str, np.ndarray]] = (),
    radius: float = 30.0,
    columns: int = 2,
    size: int = 700,
) -> None:
    """Draw one scan from above once for each coloring.

    Args:
        path: PNG to write; written whole or not at all.
        points: (N, 3 or more) meters around the sensor.
        panels: (title, (N, 3) RGB colors of the points).
        legend: (name, RGB color).
        radius: half the width of each view in meters.
        columns: views in a row.
        size: pixels of a view.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: no panel, or colors that do not fit the points.
    """
    if not panels:
        raise ValueError('panels must hold at least one (title, colors)')
    for title, colors in panels:
        if colors.shape != (len(points), 3):
            raise ValueError(f"colors of panel '{title}' must have shape ({len(points)}, 3), got {colors.shape}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = -(-len(panels) // columns)
    # a Figure of its own and not pyplot: no window system, no global state
    figure = Figure(figsize=(columns * size / 100, rows * (size + 40) / 100 + (0.9 if legend else 0)), dpi=100)
    FigureCanvasAgg(figure)
    for number, (title, colors) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(birds_eye(points, colors, size=size, radius=radius), extent=(radius, -radius, -radius, radius))
        axes.set_title(plain(title), fontsize=12, **PLAIN)
        axes.set_xlabel('y in m', fontsize=8)
        axes.set_ylabel('x in m', fontsize=8)
        axes.tick_params(labelsize=7)
    if legend:
        handles = [Patch(color=np.asarray(color) / 255, label=label(name)) for name, color in legend]
        plain_legend(figure.legend(handles=handles, loc='lower center', ncols=10, fontsize=9, frameon=False))
    figure.tight_layout(rect=(0, 0.9 / figure.get_figheight() if legend else 0, 1, 1))
    save_figure(figure, path)
