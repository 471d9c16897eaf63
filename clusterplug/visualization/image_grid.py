# SPDX-License-Identifier: Apache-2.0
"""Images in rows and columns with a name at each, as one PNG."""

import os
from collections.abc import Sequence

import numpy as np

from clusterplug.visualization._figures import new_figure, save_figure
from clusterplug.visualization._text import PLAIN, plain


def save_image_grid(
    path: str | os.PathLike,
    images: Sequence[Sequence[np.ndarray]],
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
) -> None:
    """Draw images in rows and columns.

    Args:
        path: PNG to write, whole or not at all.
        images: Rows of equal length of (C, H, W) in -1 .. 1, C = 1 or 3; values beyond are clipped.
        row_names: One for each row; none = no names.
        column_names: One for each column; none = no names.

    Raises:
        ValueError: No images, rows of unequal length, or another shape.
        ModuleNotFoundError: matplotlib is missing.
    """
    columns = len(images[0]) if len(images) else 0
    if not columns or any(len(row) != columns for row in images):
        raise ValueError(f'images must be rows of equal length, got {[len(row) for row in images]}')
    for names, count, what in ((row_names, len(images), 'row_names'), (column_names, columns, 'column_names')):
        if len(names) not in (0, count):
            raise ValueError(f'{what} must be {count} names or none, got {len(names)}')
    figure = new_figure(1.1 * columns + 0.8, 1.1 * len(images) + 0.4, layout='constrained')
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, line in zip(axes, images):
        for axis, image in zip(row, line):
            if image.ndim != 3 or image.shape[0] not in (1, 3):
                raise ValueError(f'images must have shape (1 or 3, H, W), got {image.shape}')
            pixels = np.clip((np.nan_to_num(np.moveaxis(image, 0, -1)) + 1) / 2, 0, 1)
            axis.imshow(pixels.repeat(3, -1) if pixels.shape[-1] == 1 else pixels, interpolation='nearest')
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, name in zip(axes[:, 0], row_names):
        axis.set_ylabel(plain(name), fontsize=8, **PLAIN)
    for axis, name in zip(axes[0], column_names):
        axis.set_title(plain(name), fontsize=8, **PLAIN)
    save_figure(figure, path)
