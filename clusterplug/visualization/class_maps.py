# SPDX-License-Identifier: Apache-2.0
"""A number for every pair of classes, as a heat map."""

import os
from collections.abc import Sequence

import numpy as np

from clusterplug.visualization._figures import new_figure, save_figure
from clusterplug.visualization._text import PLAIN, plain


def save_class_map(
    path: str | os.PathLike,
    values: np.ndarray,
    names: Sequence[str] | None = None,
    title: str = '',
    label: str = '',
) -> None:
    """Draw values of pairs of classes as a heat map, with the names of the classes on both sides.

    Args:
        path: PNG to write, whole or not at all.
        values: (K, K); NaN stays white.
        names: K names; default the numbers.
        title: Above it.
        label: Of the color bar.

    Raises:
        ValueError: Shapes that do not fit.
    """
    values = np.asarray(values, float)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or not values.size:
        raise ValueError(f'values must have shape (K, K) with K >= 1, got {values.shape}')
    names = [str(each) for each in range(len(values))] if names is None else list(names)
    if len(names) != len(values):
        raise ValueError(f'names must be one for each of the {len(values)} classes, got {len(names)}')
    side = min(16.0, 2.5 + 0.28 * len(names))
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    image = axes.imshow(values, cmap='viridis', interpolation='nearest')
    # names of very many classes would lie on top of each other
    every = -(-len(names) // 60)
    ticks = range(0, len(names), every)
    shown = [plain(names[each]) for each in ticks]
    axes.set_xticks(ticks, shown, fontsize=7, rotation=90, **PLAIN)
    axes.set_yticks(ticks, shown, fontsize=7, **PLAIN)
    axes.set_title(plain(title), fontsize=9, **PLAIN)
    figure.colorbar(image, ax=axes, fraction=0.046, label=label)
    save_figure(figure, path, bbox_inches='tight')
