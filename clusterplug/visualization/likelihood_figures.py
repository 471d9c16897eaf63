# SPDX-License-Identifier: Apache-2.0
"""Which samples of a data set look rare: a scatter, bars of likelihoods, contact sheets; each as one PNG."""

import os
from collections.abc import Callable, Sequence

import numpy as np

from clusterplug.visualization._figures import new_figure, save_figure
from clusterplug.visualization._text import PLAIN, plain


def save_likelihood_scatter(path: str | os.PathLike, embedding: np.ndarray, likelihood: np.ndarray) -> None:
    """Draw samples on the first two dimensions of their embedding, colored by likelihood.

    Args:
        path: PNG to write, whole or not at all.
        embedding: (N, d), d >= 1.
        likelihood: (N,) from 0 to 1.

    Raises:
        ValueError: shapes that do not fit.
    """
    embedding, likelihood = np.asarray(embedding, float), np.asarray(likelihood, float)
    if embedding.ndim != 2 or likelihood.shape != embedding.shape[:1]:
        raise ValueError(f'embedding must be (N, d) and likelihood (N,), got {embedding.shape} and {likelihood.shape}')
    plane = np.pad(embedding[:, :2], ((0, 0), (0, max(0, 2 - embedding.shape[1]))))
    figure = new_figure(7, 6, dpi=100)
    axes = figure.add_subplot()
    order = np.argsort(-likelihood, kind='stable')  # the rare ones on top
    drawn = axes.scatter(*plane[order].T, c=likelihood[order], s=12, cmap='viridis', vmin=0, vmax=1)
    figure.colorbar(drawn, ax=axes, label='likelihood')
    axes.set_xticks([])
    axes.set_yticks([])
    save_figure(figure, path)


def save_likelihood_bars(path: str | os.PathLike, likelihood: np.ndarray, weights: np.ndarray) -> None:
    """Draw the likelihoods of all samples, the smallest first, and their weights in the loss.

    Args:
        path: PNG to write. likelihood: (N,). weights: (N,).
    """
    likelihood, weights = np.asarray(likelihood, float), np.asarray(weights, float)
    if likelihood.ndim != 1 or likelihood.shape != weights.shape:
        raise ValueError(f'likelihood and weights must be (N,), got {likelihood.shape} and {weights.shape}')
    order = np.argsort(likelihood, kind='stable')
    figure = new_figure(8, 4, dpi=100)
    axes = figure.add_subplot()
    axes.fill_between(np.arange(len(order)), likelihood[order], step='mid', color='#3b82f6', alpha=0.5)
    axes.plot(np.arange(len(order)), weights[order], color='#dc2626', lw=1.5)
    axes.set_xlabel('samples, the least likely first')
    axes.set_ylabel('likelihood (area), weight (line)')
    axes.set_ylim(0, max(1.0, float(weights.max())) * 1.05)
    save_figure(figure, path)


def save_contact_sheet(
    path: str | os.PathLike,
    pictures: Sequence[Callable[[], np.ndarray]],
    titles: Sequence[str],
    columns: int = 4,
    cell: tuple[float, float] = (3.2, 2.6),
) -> None:
    """Draw pictures of samples in a grid.

    Args:
        path: PNG to write.
        pictures: functions that give (H, W, 3) uint8; called one after the other.
        titles: one for each, of one or more lines.
        columns: pictures in a row.
        cell: width and height of a picture with its title, in inches of 100 pixels.
    """
    if not pictures or len(pictures) != len(titles):
        raise ValueError(f'pictures and titles must be as many, at least one, got {len(pictures)} and {len(titles)}')
    import matplotlib.figure

    rows = -(-len(pictures) // columns)
    figure = matplotlib.figure.Figure(figsize=(cell[0] * columns, cell[1] * rows), dpi=100)
    for number, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(picture())
        axes.set_title('\n'.join(map(plain, title.splitlines())), fontsize=7, **PLAIN)
        axes.axis('off')
    figure.tight_layout()
    save_figure(figure, path)
