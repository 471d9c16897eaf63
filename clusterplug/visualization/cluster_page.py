# SPDX-License-Identifier: Apache-2.0
"""Maps of clusters over an image: one web page with a slider over the layers, or one PNG."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clusterplug.core.files import whole_file
from clusterplug.visualization._page import to_base64, write_page
from clusterplug.visualization._text import PLAIN, plain
from clusterplug.visualization.cluster_views import ClusterView
from clusterplug.visualization.colors import subclass_colors


def paint_clusters(image: np.ndarray, labels: np.ndarray, colors: str = 'distinct', alpha: float = 0.6) -> np.ndarray:
    """Lay the colors of clusters over an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) int, 0 or more.
        colors: ``'distinct'`` hues, or ``'mean'``: the mean color of the pixels of the cluster.
        alpha: Share of the clusters' colors, 0 to 1.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: Shapes do not fit, or a setting is unknown.

    Example:
        >>> image = np.array([[[0, 0, 0], [100, 100, 100], [7, 8, 9]]], np.uint8)
        >>> paint_clusters(image, np.array([[0, 0, 1]]), 'mean', alpha=1).tolist()
        [[[50, 50, 50], [50, 50, 50], [7, 8, 9]]]
    """
    _check_image(image)
    if labels.shape != image.shape[:2]:
        raise ValueError(f'labels must have the size of the image, {image.shape[:2]}, got {labels.shape}')
    if not 0 <= alpha <= 1:
        raise ValueError(f'alpha must be from 0 to 1, got {alpha}')
    flat = labels.reshape(-1)
    if colors == 'distinct':
        painted = subclass_colors(flat, np.zeros_like(flat), 1).astype(float)
    elif colors == 'mean':
        counts = np.bincount(flat)
        sums = [np.bincount(flat, image[..., channel].reshape(-1).astype(float)) for channel in range(3)]
        painted = (np.stack(sums, 1) / np.maximum(counts, 1)[:, None])[flat]
    else:
        raise ValueError(f"colors must be 'distinct' or 'mean', got {colors!r}")
    mixed = alpha * painted.reshape(image.shape) + (1 - alpha) * image
    return np.round(mixed).astype(np.uint8)


def save_cluster_page(
    path: str | os.PathLike, image: np.ndarray, views: Sequence[ClusterView], *, title: str = 'Clusters'
) -> None:
    """Write a page that needs no network and no server: a slider over the layers, the clusters over the image.

    Sliders choose the layer and how strong its colors are, buttons the kind of colors and whether the pixel that
    stands for each cluster is marked; pointing at a pixel shows its cluster alone.

    Args:
        path: HTML file to write, whole or not at all.
        image: (H, W, 3) uint8 RGB.
        views: At least one.
        title: Heading.

    Raises:
        ValueError: No view, or sizes that do not fit.
    """
    _check_image(image)
    if not views:
        raise ValueError('views must hold at least one view')
    for view in views:
        if view.labels.shape != image.shape[:2]:
            raise ValueError(f"view '{view.name}' must have the size of the image, got {view.labels.shape}")
    data = dict(
        title=title,
        width=image.shape[1],
        height=image.shape[0],
        image=to_base64(image),
        # labels are those of 4 x 4 patches
        views=[
            dict(name=v.name, labels=to_base64(v.labels[::4, ::4].astype('<u2')), marks=v.marks.tolist()) for v in views
        ],
    )
    write_page(path, 'cluster_page.html', data)


def save_cluster_panels(
    path: str | os.PathLike, image: np.ndarray, views: Sequence[ClusterView], *, columns: int = 4, alpha: float = 0.6
) -> None:
    """Draw an image and its views beside each other, with the pixel that stands for each cluster, as one PNG.

    Args:
        path: PNG to write, whole or not at all.
        image: (H, W, 3) uint8 RGB.
        views: At least one; marks are drawn up to 49 clusters.
        columns: Pictures in a row.
        alpha: Share of the clusters' colors.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
        ValueError: No view, or sizes that do not fit.
    """
    if not views:
        raise ValueError('views must hold at least one view')
    pictures = [('image', image, None)]
    for view in views:
        marks = view.marks if len(view.marks) <= 49 else None
        name = f'{view.name}: {len(view.marks)} clusters' if 'groups' not in view.name else view.name
        pictures.append((name, paint_clusters(image, view.labels, alpha=alpha), marks))
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(3 * columns, 3.2 * rows * image.shape[0] / image.shape[1] + 0.2), dpi=100)
    FigureCanvasAgg(figure)
    for number, (name, picture, marks) in enumerate(pictures):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(picture)
        if marks is not None:
            axes.plot(marks[:, 1], marks[:, 0], 'o', markersize=4, markerfacecolor='white', markeredgecolor='black')
        axes.set_title(plain(name), fontsize=9, **PLAIN)
        axes.set_axis_off()
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, 'wb') as file:
        figure.savefig(file, format='png')


def _check_image(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f'image must be (height, width, 3) uint8 RGB, got {image.shape} {image.dtype}')
