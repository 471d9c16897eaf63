# SPDX-License-Identifier: Apache-2.0
"""Embeddings on a plane and the log of pre-training: what is drawn where, and what is refused."""

import numpy as np
import pytest

pytest.importorskip('matplotlib')

from clusterplug.visualization import embedding_figures, save_embedding_map, save_training_curves


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, instead of files."""
    found = []
    monkeypatch.setattr(embedding_figures, 'save_figure', lambda figure, path, **options: found.append(figure))
    return found


def two_groups(number=20):
    g = np.random.default_rng(0)
    labels = np.arange(number) % 2
    return np.eye(5)[labels] + 0.05 * g.normal(size=(number, 5)), labels


def test_groups_lie_apart_and_have_the_colors_of_their_labels(figures):
    x, labels = two_groups()
    labels = np.where(np.arange(20) == 3, -1, labels)
    save_embedding_map('x.png', 5 * x, labels, labels.clip(0) + 7, ['even', 'odd'])
    left, right = figures[0].axes
    where, colors = left.collections[0].get_offsets(), left.collections[0].get_facecolors()
    shown = {tuple(color) for color in colors}
    assert len(shown) == 3  # two classes and gray
    sides = {tuple(color): {bool(x > 0) for x in where[(colors == color).all(1), 0]} for color in shown}
    assert all(len(side) == 1 for side in sides.values())
    assert [text.get_text() for text in left.get_legend().get_texts()] == ['even', 'odd']
    assert '2 in use' in right.get_title()
    assert 'largest: 55 %' in right.texts[0].get_text()  # ten even ones, and the one without a label
    # lengths are no part of it: cosines are what the losses see
    save_embedding_map('x.png', x * np.linspace(1, 9, 20)[:, None])
    assert np.abs(np.asarray(figures[1].axes[0].collections[0].get_offsets()) - np.asarray(where)).max() < 1e-9


def test_tsne_keeps_groups_apart(figures):
    x, labels = two_groups(40)
    save_embedding_map('x.png', x, labels, method='tsne')
    axis = figures[0].axes[0]
    where, colors = axis.collections[0].get_offsets(), axis.collections[0].get_facecolors()
    first = (colors == colors[0]).all(1)
    own = np.linalg.norm(where[first] - where[first].mean(0), axis=1).max()
    assert np.linalg.norm(where[~first] - where[first].mean(0), axis=1).min() > own


def test_what_is_refused():
    x, labels = two_groups()
    for change, text in (
        (dict(x=x[:2]), r'\(N, D\)'), (dict(x=x * np.nan), 'finite'), (dict(labels=labels[:3]), 'labels must be'),
        (dict(prototypes=labels[:3]), 'prototypes must be'), (dict(class_names=['a']), 'class_names'),
        (dict(method='umap'), 'method'),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            save_embedding_map('x.png', **{**dict(x=x, labels=labels), **change})
    with pytest.raises(ValueError, match='training line'):
        save_training_curves('x.png', [{'linear_probe/accuracy': 3.0, 'step': 1}])


def test_curves_have_the_line_of_collapse_and_validations_at_their_step(figures):
    lines = [
        dict(step=5, loss=2.5, ln_k=2.3, prototypes_used=0.5, time=0.1),
        dict(step=10, loss=1.5, ln_k=2.3, prototypes_used=1.0, time=0.1),
        {'linear_probe/accuracy': 40.0, 'linear_probe/effective_rank': 7.0, 'step': 1},
        dict(step=15, loss=1.0, ln_k=2.3, prototypes_used=1.0, time=0.1),
        {'linear_probe/accuracy': 45.0, 'linear_probe/effective_rank': 9.0, 'step': 2},
    ]
    save_training_curves('x.png', lines)
    loss, used, rank, accuracy = figures[0].axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[2.5, 1.5, 1.0], [2.3] * 3]
    assert list(used.lines[0].get_ydata()) == [0.5, 1, 1]
    assert (list(rank.lines[0].get_xdata()), list(rank.lines[0].get_ydata())) == ([10, 15], [7, 9])
    assert list(accuracy.lines[0].get_ydata()) == [40, 45]
