# SPDX-License-Identifier: Apache-2.0
"""Borders of token clusters, colors of tokens, panels."""

import numpy as np
import pytest

from clusterplug.visualization.token_figures import paint_token_clusters, save_token_panels, token_colors


def test_borders_by_hand():
    image = np.full((4, 6, 3), 7, np.uint8)
    painted = paint_token_clusters(image, np.array([[0, 0, 1], [0, 2, 1]]), (1, 2, 3))
    edge = (painted == (1, 2, 3)).all(-1)
    # each token is 2 x 2 pixels; a pixel is marked where the one above or to its left is of another cluster
    assert edge.astype(int).tolist() == [
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 1, 0, 1, 0],
    ]
    assert (painted[~edge] == 7).all()
    assert (image == 7).all()


def test_one_cluster_has_no_border():
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(paint_token_clusters(image, np.zeros((3, 5), int)), image)


def test_colors_are_components():
    generator = np.random.default_rng(0)
    tokens = np.zeros((6, 7, 5))
    tokens[..., 2] = 10 * generator.normal(size=(6, 7))  # the strongest direction, by far
    tokens[..., 4] = generator.normal(size=(6, 7))
    colors = token_colors(tokens)
    order = tokens[..., 2].ravel().argsort()
    assert (np.diff(colors[..., 0].ravel()[order].astype(int)) >= 0).all()
    assert colors[..., 0].min() == 0
    assert colors[..., 0].max() == 255
    assert np.array_equal(token_colors(tokens[:2], like=tokens), colors[:2])
    assert len(np.unique(token_colors(np.ones((2, 2, 5))))) == 1


def test_few_tokens_or_channels():
    assert token_colors(np.ones((1, 1, 2))).shape == (1, 1, 3)


@pytest.mark.parametrize('suffix', ['png', 'jpg'])
def test_panels(tmp_path, suffix):
    from PIL import Image

    panels = [('picture', np.zeros((9, 9, 3), np.uint8)), ('map', np.eye(4)), ('more', np.eye(3)), ('last', np.eye(2))]
    save_token_panels(tmp_path / f'tokens.{suffix}', panels, columns=2, size=2.0)
    picture = Image.open(tmp_path / f'tokens.{suffix}')
    assert picture.size == (400, 450)
    assert len(set(picture.convert('RGB').getdata())) > 10


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: paint_token_clusters(np.zeros((4, 4)), np.zeros((2, 2), int)), 'image must be'),
        (lambda: paint_token_clusters(np.zeros((4, 4, 3), np.uint8), np.zeros((2, 2))), 'labels must be'),
        (lambda: token_colors(np.zeros((4, 4))), 'tokens must be'),
        (lambda: token_colors(np.zeros((4, 4, 3)), np.zeros((4, 4, 2))), 'beside'),
        (lambda: save_token_panels('x.png', []), 'at least one'),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
