# SPDX-License-Identifier: Apache-2.0
"""Pictures: where a point is drawn, which color it gets, and that no half file is left."""

import matplotlib.image
import numpy as np
import pytest

from clusterplug.visualization import SEMANTICKITTI, birds_eye, class_colors, save_panels, subclass_colors


def test_a_point_ahead_is_drawn_above_the_middle_and_one_to_the_left_is_left():
    points = np.array([[8.0, 0.0, 0.0], [0.0, 8.0, 0.0]])
    colors = np.array([[255, 0, 0], [0, 255, 0]], dtype=np.uint8)
    image = birds_eye(points, colors, size=21, radius=10.0)
    assert image[2, 10].tolist() == [255, 0, 0]
    assert image[10, 2].tolist() == [0, 255, 0]


def test_the_highest_point_is_on_top():
    points = np.array([[0.0, 0.0, 5.0], [0.0, 0.0, 1.0]])
    colors = np.array([[1, 2, 3], [200, 200, 200]], dtype=np.uint8)
    assert birds_eye(points, colors, size=9, radius=1.0)[4, 4].tolist() == [1, 2, 3]


def test_no_point_gives_an_empty_picture():
    image = birds_eye(np.empty((0, 3)), np.empty((0, 3), dtype=np.uint8), size=5)
    assert len(np.unique(image)) == 1


def test_class_colors():
    colors = class_colors(np.array([0, 18, 19, -1]))
    assert colors[0].tolist() == SEMANTICKITTI[0].tolist()
    assert colors[1].tolist() == SEMANTICKITTI[18].tolist()
    assert colors[2].tolist() == colors[3].tolist() == [90, 90, 90]


def test_subclasses_of_a_class_have_different_colors():
    colors = subclass_colors(np.zeros(8, dtype=int), np.arange(8), num_clusters=8)
    assert len({tuple(color) for color in colors.tolist()}) == 8
    assert subclass_colors(np.array([-1, 0]), np.array([0, -1]), 8).tolist() == [[90, 90, 90]] * 2


def test_panels_are_written_whole(tmp_path):
    points = np.random.default_rng(0).uniform(-20, 20, (500, 3))
    labels = np.arange(500) % 19
    file = tmp_path / 'new' / 'x.png'
    colors = class_colors(labels)
    save_panels(file, points, [('a', colors), ('b', colors)], legend=[('car', SEMANTICKITTI[0])])
    image = matplotlib.image.imread(file)
    assert image.shape[1] > image.shape[0] > 300
    assert image[..., :3].std() > 0.05
    assert [path.name for path in file.parent.iterdir()] == ['x.png']


def test_a_full_disk_leaves_the_old_picture(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    points, colors = np.zeros((1, 3)), np.zeros((1, 3), dtype=np.uint8)
    file = tmp_path / 'x.png'
    file.write_bytes(b'old')

    def full(self, stream, **_):
        stream.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Figure, 'savefig', full)
    with pytest.raises(OSError, match='the disk is full'):
        save_panels(file, points, [('a', colors)])
    assert file.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [file]


def test_bad_input():
    with pytest.raises(ValueError, match='at least one'):
        save_panels('x.png', np.zeros((1, 3)), [])
    with pytest.raises(ValueError, match="panel 'a'"):
        save_panels('x.png', np.zeros((2, 3)), [('a', np.zeros((1, 3)))])
