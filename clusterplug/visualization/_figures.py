# SPDX-License-Identifier: Apache-2.0
"""Figures without a window system or global state, and their files."""

import os
from pathlib import Path

from clusterplug.core.files import whole_file


def new_figure(width: float, height: float, **options):
    """Return an empty matplotlib figure of a size in inches: not pyplot's, which keeps each figure alive."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), **{'dpi': 110, **options})
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path: str | os.PathLike, **options) -> None:
    """Write a figure as PNG, whole or not at all; its folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, 'wb') as file:
        figure.savefig(file, format='png', **options)
