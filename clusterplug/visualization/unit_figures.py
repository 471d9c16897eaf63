# SPDX-License-Identifier: Apache-2.0
"""Pictures of two networks compared: matched correlations, correlation maps, pairs of activation maps."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from clusterplug.visualization._figures import new_figure, save_figure
from clusterplug.visualization._text import PLAIN, plain, plain_legend


def save_match_curves(path: str | os.PathLike, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw the correlation of every unit with its partner, best first, of each layer.

    Args:
        path: PNG to write, whole or not at all.
        curves: {layer: (of the bipartite matching, of the semi-matching)}, each (units,), descending.

    Raises:
        ValueError: No layer, or curves that are not (units,).
        ModuleNotFoundError: matplotlib is missing.
    """
    if not curves or any(np.ndim(each) != 1 for pair in curves.values() for each in pair):
        raise ValueError('curves must hold at least one layer, with two arrays (units,) each')
    figure, add = _grid(len(curves), 3.4, 2.8)
    for number, (name, (bipartite, semi)) in enumerate(curves.items()):
        axis = add(number)
        axis.plot(np.asarray(semi, float), label=f'semi, mean {np.mean(semi):.3f}')
        axis.plot(np.asarray(bipartite, float), label=f'bipartite, mean {np.mean(bipartite):.3f}')
        axis.set_ylim(min(0.0, float(np.min(bipartite, initial=0))), 1.02)
        axis.set_xlabel('unit, best first', fontsize=8)
        axis.set_ylabel('correlation', fontsize=8)
        axis.set_title(plain(name, 60), fontsize=9, **PLAIN)
        plain_legend(axis.legend(fontsize=7))
    save_figure(figure, path)


def save_unit_correlations(path: str | os.PathLike, corr: np.ndarray, partners: np.ndarray, title: str = '') -> None:
    """Draw the correlations of two networks' units as they came, and with those of B in the order of their partners.

    Rows of the second picture are sorted by the correlation of the pair, so that a shared set of units is a bright
    diagonal from the upper left.

    Args:
        path: PNG to write, whole or not at all.
        corr: (C, D), -1 to 1.
        partners: (C,) column of each row, -1 for none.
        title: Above all.

    Raises:
        ValueError: Shapes that do not fit.
        ModuleNotFoundError: matplotlib is missing.
    """
    corr, partners = np.asarray(corr, float), np.asarray(partners)
    if corr.ndim != 2 or partners.shape != corr.shape[:1]:
        raise ValueError(f'corr must be (C, D) and partners (C,), got {corr.shape} and {partners.shape}')
    rows = np.flatnonzero(partners >= 0)
    rows = rows[np.argsort(-corr[rows, partners[rows]], kind='stable')]
    taken = partners[rows]
    rows = np.concatenate([rows, np.flatnonzero(partners < 0)])
    columns = np.concatenate([taken, np.setdiff1d(np.arange(corr.shape[1]), taken)])
    figure, add = _grid(2, 4.2, 4.0)
    for number, (values, name) in enumerate(((corr, 'as they came'), (corr[np.ix_(rows, columns)], 'matched'))):
        axis = add(number)
        image = axis.imshow(values, cmap='RdBu_r', vmin=-1, vmax=1, interpolation='nearest', aspect='auto')
        axis.set_title(plain(f'{title}: {name}' if title else name, 60), fontsize=9, **PLAIN)
        axis.set_xlabel('units of B', fontsize=8)
        axis.set_ylabel('units of A', fontsize=8)
    figure.colorbar(image, ax=figure.axes, label='correlation', shrink=0.8)
    save_figure(figure, path)


def save_activation_pairs(path: str | os.PathLike, pairs: Sequence[tuple[str, object, object]]) -> None:
    """Draw activations of matched units of two networks next to each other.

    Args:
        path: PNG to write, whole or not at all.
        pairs: (title, of A, of B); each (H, W), or (coordinates (n, 2), values (n,)) of points.

    Raises:
        ValueError: No pair.
        ModuleNotFoundError: matplotlib is missing.
    """
    if not pairs:
        raise ValueError('pairs must hold at least one (title, of A, of B)')
    figure, add = _grid(2 * len(pairs), 2.3, 2.2, columns=4)
    for number, (title, *both) in enumerate(pairs):
        for side, activation in enumerate(both):
            axis = add(2 * number + side)
            if isinstance(activation, tuple):
                where, values = (np.asarray(each, float) for each in activation)
                axis.scatter(where[:, 0], where[:, 1], c=values, s=1, cmap='viridis', linewidths=0)
                axis.set_aspect('equal')
            else:
                axis.imshow(np.asarray(activation, float), cmap='viridis', interpolation='nearest')
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(plain(f'{"AB"[side]}: {title}', 40), fontsize=7, **PLAIN)
    save_figure(figure, path)


def _grid(number: int, width: float, height: float, columns: int = 3):
    columns = min(columns, number)
    rows = -(-number // columns)
    figure = new_figure(columns * width, rows * height, layout='constrained')
    return figure, lambda place: figure.add_subplot(rows, columns, place + 1)
