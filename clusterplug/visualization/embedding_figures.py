# SPDX-License-Identifier: Apache-2.0
"""What pre-training made of the samples: embeddings on a plane, and the log against the loss of a collapsed model."""

import colorsys
import os
from collections.abc import Sequence

import numpy as np

from clusterplug.core.checks import check_choice
from clusterplug.visualization._figures import new_figure, save_figure
from clusterplug.visualization._text import PLAIN, label, plain, plain_legend
from clusterplug.visualization.colors import class_name
from clusterplug.visualization.memory_figures import principal_plane

_COLLAPSED = 'ln_k'
_PANELS = {
    'prototypes_used': 'share of the\nprototypes in use',
    'code_entropy': 'entropy of\nthe codes / ln K',
    'largest_prototype': 'largest prototype\n/ mean',
    'effective_rank': 'effective rank\nof the features',
}


def save_embedding_map(
    path: str | os.PathLike,
    x: np.ndarray,
    labels: np.ndarray | None = None,
    prototypes: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    method: str = 'pca',
    seed: int = 0,
) -> None:
    """Draw embeddings on a plane, a panel colored by label and one by prototype, where these are given.

    Args:
        path: PNG to write, whole or not at all.
        x: (N, D), N >= 3; rows are scaled to length 1, as the losses compare them.
        labels: (N,) integers, below 0 = none (gray).
        prototypes: (N,) prototype of each row.
        class_names: of the labels; more or fewer than there are raise.
        method: ``'pca'`` (first two principal components, whose share of the variance is said) or ``'tsne'``
            (scikit-learn's, which shows neighbors and no distances; seconds for a thousand rows).
        seed: of t-SNE.

    Raises:
        ValueError: shapes that do not fit, rows that are not finite.
    """
    check_choice(method, 'method', ('pca', 'tsne'))
    x = np.asarray(x, float)
    if x.ndim != 2 or len(x) < 3 or not np.isfinite(x).all():
        raise ValueError(f'x must be (N, D) with at least 3 finite rows, got shape {x.shape}')
    panels = {}
    for name, values in (('label', labels), ('prototype', prototypes)):
        if values is not None:
            panels[name] = np.asarray(values)
            if panels[name].shape != x.shape[:1]:
                raise ValueError(f'{name}s must be ({len(x)},) as x has that many rows, got {panels[name].shape}')
    if class_names is not None and (labels is None or len(class_names) <= panels['label'].max()):
        raise ValueError(f'class_names must name every label, got {len(class_names)} names')
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    if method == 'tsne':
        from sklearn.manifold import TSNE

        plane = TSNE(init='pca', perplexity=min(30, (len(x) - 1) / 3), random_state=seed).fit_transform(x)
        names = ('t-SNE', '')
    else:
        plane, shares = principal_plane(x)
        names = tuple(f'{which} principal component ({100 * share:.0f} % of the variance)'
                      for which, share in zip(('first', 'second'), shares))  # fmt: skip
    figure = new_figure(7.5 * max(len(panels), 1), 6.5, layout='constrained')
    axes = figure.subplots(1, max(len(panels), 1), squeeze=False)[0]
    order = np.random.default_rng(seed).permutation(len(x))  # so that the last class does not hide the others
    for axis, name in zip(axes, panels or {'': None}):
        values = panels.get(name)
        axis.scatter(*plane[order].T, s=9, c='#2563eb' if values is None else _colors(values)[order], lw=0)
        axis.set_xlabel(names[0], fontsize=9)
        axis.set_ylabel(names[1], fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        if values is not None:
            _name_panel(axis, name, values, class_names if name == 'label' else None)
    save_figure(figure, path)


def save_training_curves(path: str | os.PathLike, lines: Sequence[dict]) -> None:
    """Draw the loss of pre-training against that of a collapsed model, and what else tells of collapse, over steps.

    Args:
        path: PNG to write, whole or not at all.
        lines: what mmengine logs (``scalars.json``), oldest first: dicts with ``step`` and ``loss``, of which
            ``ln_k``, ``prototypes_used``, ``code_entropy`` and ``largest_prototype`` are drawn where they are there;
            lines of a validation with ``.../effective_rank`` or ``.../accuracy`` lie at the training step before them.

    Raises:
        ValueError: no line with a loss.
    """
    curves: dict[str, tuple[list, list]] = {}
    step = 0
    for line in lines:
        step = line['step'] if 'loss' in line and 'step' in line else step
        for name, value in line.items():
            own = name if 'loss' in line else name.rpartition('/')[2]
            accuracy = name if name.endswith('probe/accuracy') else None
            wanted = own if own in ('loss', _COLLAPSED, *_PANELS) else accuracy
            if wanted is not None:
                steps, values = curves.setdefault(wanted, ([], []))
                steps.append(step)
                values.append(value)
    if 'loss' not in curves:
        raise ValueError('lines must hold a training line with step and loss, got none')
    panels = [name for name in _PANELS if name in curves]
    probes = [name for name in curves if name.endswith('accuracy')]
    figure = new_figure(8, 2.2 + 1.5 * (len(panels) + bool(probes)), layout='constrained')
    heights = [1.5] + [1.0] * (len(panels) + bool(probes))
    axes = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    axes[0].plot(*curves['loss'], color='#2563eb', lw=1.2, label='loss')
    if _COLLAPSED in curves:
        axes[0].plot(*curves[_COLLAPSED], color='#dc2626', ls='--', lw=1.2, label='of a collapsed model')
    axes[0].legend(fontsize=8, frameon=False)
    axes[0].set_ylabel('loss', fontsize=8)
    for axis, name in zip(axes[1:], panels):
        axis.plot(*curves[name], color='#2563eb', lw=1.2, marker='.' if len(curves[name][0]) < 30 else None)
        axis.set_ylabel(_PANELS[name], fontsize=8)
    for name in probes:
        axes[-1].plot(*curves[name], marker='.', lw=1.2, label=plain(name.rpartition('/')[0]))
    if probes:
        axes[-1].set_ylabel('percent right', fontsize=8)
        plain_legend(axes[-1].legend(fontsize=8, frameon=False))
    for axis in axes:
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel('training step', fontsize=9)
    save_figure(figure, path)


def _name_panel(axis, name: str, values: np.ndarray, class_names: Sequence[str] | None) -> None:
    found = np.unique(values[values >= 0])
    axis.set_title(f'colored by {name} ({len(found)} in use)', fontsize=10)
    if name == 'label' and len(found) <= 20:
        for value in found:
            text = f'class {value}' if class_names is None else class_name(class_names[value])
            axis.scatter([], [], s=25, color=_colors(np.array([value, values.max()]))[0], label=label(text))
        plain_legend(axis.legend(fontsize=8, loc='center left', bbox_to_anchor=(1.0, 0.5), frameon=False))
    elif name == 'prototype':
        largest = np.bincount(values[values >= 0]).max() / max((values >= 0).sum(), 1) if len(found) else 0
        axis.text(0.01, 0.01, f'largest: {100 * largest:.0f} % of the samples', transform=axis.transAxes, fontsize=8,
                  **PLAIN)  # fmt: skip


def _colors(values: np.ndarray) -> np.ndarray:
    """(N, 4) color of each number, gray below 0: matplotlib's ten or twenty, hues by the golden angle beyond."""
    from matplotlib import colormaps

    number = int(values.max(initial=0)) + 1
    if number <= 20:
        table = colormaps['tab10' if number <= 10 else 'tab20'](np.arange(number))
    else:
        hues = (0.381966 * np.arange(number)) % 1
        table = np.array([(*colorsys.hsv_to_rgb(hue, 0.9 - 0.4 * (k % 2), 0.85), 1) for k, hue in enumerate(hues)])
    return np.where((values >= 0)[:, None], table[np.maximum(values, 0)], (0.75, 0.75, 0.75, 1))
