# SPDX-License-Identifier: Apache-2.0
"""Tokens of a picture: which cluster each belongs to, what they look like in three colors, maps before and after."""

import os
from collections.abc import Sequence

import numpy as np

from clusterplug.core.files import whole_file
from clusterplug.visualization._text import PLAIN, plain

EDGE = (255, 255, 0)


def paint_token_clusters(image: np.ndarray, labels: np.ndarray, color: Sequence[int] = EDGE) -> np.ndarray:
    """Draw the borders between clusters of tokens over a picture.

    Args:
        image: (H, W, 3) uint8.
        labels: (h, w) whole numbers, the cluster of each token; h and w at most H and W.
        color: RGB of the borders.

    Returns:
        (H, W, 3) uint8, a copy.

    Raises:
        ValueError: A shape or type does not fit.

    Example:
        >>> painted = paint_token_clusters(np.zeros((4, 4, 3), np.uint8), np.array([[0, 1]]), (9, 9, 9))
        >>> painted[0, :, 0].tolist()
        [0, 0, 9, 0]
    """
    image, labels = np.asarray(image), np.asarray(labels)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f'image must be (height, width, 3) uint8, got {image.shape} {image.dtype}')
    if labels.ndim != 2 or 0 in labels.shape or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f'labels must be (rows, columns) of whole numbers, got {labels.shape} {labels.dtype}')
    rows = np.arange(image.shape[0]) * labels.shape[0] // image.shape[0]
    columns = np.arange(image.shape[1]) * labels.shape[1] // image.shape[1]
    large = labels[rows[:, None], columns]
    edge = np.zeros(large.shape, bool)
    edge[1:] |= large[1:] != large[:-1]
    edge[:, 1:] |= large[:, 1:] != large[:, :-1]
    painted = image.copy()
    painted[edge] = color
    return painted


def token_colors(tokens: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """Return the first three principal components of tokens as colors.

    Args:
        tokens: (h, w, C) floating.
        like: (h', w', C) tokens whose components and range are used, so that two pictures can be compared; default
            ``tokens``.

    Returns:
        (h, w, 3) uint8.

    Raises:
        ValueError: Shapes do not fit.

    Example:
        >>> token_colors(np.random.default_rng(0).normal(size=(4, 5, 8))).shape
        (4, 5, 3)
    """
    tokens = np.asarray(tokens, np.float64)
    like = tokens if like is None else np.asarray(like, np.float64)
    if tokens.ndim != 3 or like.ndim != 3 or tokens.shape[2] != like.shape[2] or 0 in like.shape:
        raise ValueError(f'tokens must be (height, width, channels), got {tokens.shape} beside {like.shape}')
    flat = like.reshape(-1, like.shape[2])
    middle = flat.mean(0)
    _, _, components = np.linalg.svd(flat - middle, full_matrices=False)
    axes = np.zeros((3, flat.shape[1]))
    axes[: min(3, len(components))] = components[:3]
    # the sign of a component is arbitrary: its largest entry is positive
    axes *= np.where(axes[np.arange(3), np.abs(axes).argmax(1)] < 0, -1, 1)[:, None]
    low, high = np.percentile((flat - middle) @ axes.T, (1, 99), axis=0)
    scaled = ((tokens - middle) @ axes.T - low) / np.where(high > low, high - low, 1)
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8)


def save_token_panels(
    path: str | os.PathLike, panels: Sequence[tuple[str, np.ndarray]], *, columns: int = 3, size: float = 3.0
) -> None:
    """Save pictures and maps beside each other.

    Args:
        path: PNG or JPEG to write; written whole or not at all.
        panels: (title, (H, W, 3) uint8 or (H, W) floating from 0 to 1).
        columns: Panels in a row.
        size: Inches of a panel.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: There is no panel.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_token_panels(f'{folder}/tokens.png', [('map', np.eye(4))])
        ...     pathlib.Path(folder, 'tokens.png').stat().st_size > 1000
        True
    """
    if not panels:
        raise ValueError('panels must hold at least one (title, picture)')
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(columns * size, rows * (size + 0.25)), dpi=100)
    FigureCanvasAgg(figure)
    for number, (title, picture) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(picture, cmap='magma', vmin=0, vmax=1)
        axes.set_title(plain(title), fontsize=9, **PLAIN)
        axes.set_axis_off()
    figure.tight_layout(pad=0.4)
    kind = os.path.splitext(os.fspath(path))[1].lstrip('.') or 'png'
    with whole_file(path, 'wb') as file:
        figure.savefig(file, format=kind)
