# SPDX-License-Identifier: Apache-2.0
"""What is in a memory of subclasses: sizes, centers on a plane, drift; each as one PNG."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from clusterplug.visualization._figures import new_figure, save_figure
from clusterplug.visualization._text import PLAIN, label, plain, plain_legend
from clusterplug.visualization.colors import SEMANTICKITTI, class_name


def save_sizes(
    path: str | os.PathLike, sizes: np.ndarray, in_use: np.ndarray, class_names: Sequence[str] | None = None
) -> None:
    """Draw how many anchors each subclass takes, one row of bars for each class, largest first.

    Args:
        path: PNG to write, whole or not at all.
        sizes: (C, K) anchors per step of each subclass.
        in_use: (C, K) bool; others are left out.
        class_names: C names.

    Raises:
        ValueError: shapes that do not fit.
    """
    sizes, in_use = np.asarray(sizes, float), np.asarray(in_use, bool)
    names = _names(sizes, in_use, class_names)
    figure = new_figure(8, 1 + 0.32 * len(names))
    axes = figure.subplots()
    for row, (size, used) in enumerate(zip(sizes, in_use)):
        share = np.sort(size[used])[::-1] / max(size[used].sum(), 1e-12)
        left = 0.0
        for number, width in enumerate(share):
            axes.barh(row, width, left=left, height=0.8, color=_color(row, number % 2), edgecolor='#18181b', lw=0.3)
            left += width
        if not used.any():
            axes.text(0.01, row, 'not seen yet', va='center', fontsize=8, color='gray')
    axes.set_yticks(range(len(names)), [plain(class_name(name)) for name in names], fontsize=8, **PLAIN)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel('share of the anchors of a class that each of its subclasses takes', fontsize=9)
    save_figure(figure, path, bbox_inches='tight')


def save_center_map(
    path: str | os.PathLike,
    centers: np.ndarray,
    sizes: np.ndarray,
    in_use: np.ndarray,
    class_names: Sequence[str] | None = None,
) -> None:
    """Draw the centers on their first two principal components, one color a class, area by size.

    Args:
        path: PNG to write, whole or not at all.
        centers: (C, K, D).
        sizes: (C, K).
        in_use: (C, K) bool; others are left out.
        class_names: C names.

    Raises:
        ValueError: shapes that do not fit.
    """
    centers, sizes, in_use = np.asarray(centers, float), np.asarray(sizes, float), np.asarray(in_use, bool)
    names = _names(sizes, in_use, class_names)
    if centers.shape[:2] != sizes.shape:
        raise ValueError(f'centers must be (C, K, D) with the C, K of sizes {sizes.shape}, got {centers.shape}')
    plane, explained = principal_plane(centers[in_use])
    classes = np.broadcast_to(np.arange(len(names))[:, None], in_use.shape)[in_use]
    area = 20 + 180 * sizes[in_use] / max(sizes[in_use].max(initial=0), 1e-12)
    figure = new_figure(9, 7)
    axes = figure.subplots()
    for c in np.unique(classes):
        mine = classes == c
        axes.scatter(
            *plane[mine].T, s=area[mine], color=_color(c), alpha=0.8, label=label(names[c]), edgecolor='k', lw=0.3
        )
    axes.set_xlabel(f'first principal component ({100 * explained[0]:.0f} % of the variance)', fontsize=9)
    axes.set_ylabel(f'second ({100 * explained[1]:.0f} %)', fontsize=9)
    if len(classes):
        plain_legend(axes.legend(fontsize=8, loc='center left', bbox_to_anchor=(1.01, 0.5), frameon=False))
    save_figure(figure, path, bbox_inches='tight')


def save_curves(
    path: str | os.PathLike,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str = 'training step',
) -> None:
    """Draw numbers over training steps below each other, such as the drift of the centers.

    Args:
        path: PNG to write, whole or not at all.
        curves: steps and values by name.
        xlabel: Below all.

    Raises:
        ValueError: no curve, or as many steps as values are not there.
    """
    if not curves:
        raise ValueError('curves must hold at least one name: (steps, values)')
    figure = new_figure(8, 1.6 * len(curves) + 0.6)
    axes = figure.subplots(len(curves), sharex=True)
    for ax, (name, (steps, values)) in zip(np.atleast_1d(axes), curves.items()):
        if len(steps) != len(values):
            raise ValueError(f"curve '{name}' has {len(steps)} steps but {len(values)} values")
        ax.plot(steps, values, color='#2563eb', lw=1.2)
        ax.set_ylabel(plain(name), fontsize=8, **PLAIN)
        ax.tick_params(labelsize=7)
        ax.grid(alpha=0.3)
    np.atleast_1d(axes)[-1].set_xlabel(plain(xlabel), fontsize=9, **PLAIN)
    save_figure(figure, path, bbox_inches='tight')


def principal_plane(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) coordinates of rows (N, D) on their first two principal components, and (2,) shares of the variance."""
    if len(x) == 0:
        return np.zeros((0, 2)), np.zeros(2)
    centered = x - x.mean(0)
    _, values, axes = np.linalg.svd(centered, full_matrices=False)
    plane, share = np.zeros((len(x), 2)), np.zeros(2)
    found = min(2, len(axes))
    plane[:, :found] = centered @ axes[:found].T
    share[:found] = values[:found] ** 2 / max((values**2).sum(), 1e-12)
    return plane, share


def _names(sizes: np.ndarray, in_use: np.ndarray, names: Sequence[str] | None) -> list[str]:
    if sizes.ndim != 2 or in_use.shape != sizes.shape:
        raise ValueError(f'sizes and in_use must be (C, K), got {sizes.shape} and {in_use.shape}')
    names = [f'class {c}' for c in range(len(sizes))] if names is None else list(names)
    if len(names) != len(sizes):
        raise ValueError(f'class_names must be {len(sizes)} names, got {len(names)}')
    return names


def _color(number: int, pale: int = 0) -> tuple:
    color = SEMANTICKITTI[number % len(SEMANTICKITTI)] / 255
    return tuple(color + 0.35 * pale * (1 - color))
