# SPDX-License-Identifier: Apache-2.0
"""Boxes drawn from above and into an image: pixels that can be computed by hand."""

import numpy as np
import pytest

from clusterplug.visualization.boxes import BoxGroup, box_corners, boxes_from_above, boxes_in_image, draw_line

RED, GREEN = (255, 0, 0), (0, 255, 0)
# a camera that looks along x, as KITTI's: column = 100 - 50 y / x, row = 40 - 50 z / x
CAMERA = np.array([[100.0, -50, 0, 0], [40, 0, -50, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


def marked(image, color):
    rows, columns = np.nonzero((image == color).all(2))
    return rows, columns


def test_corners_of_a_turned_box():
    corners = box_corners(np.array([[1, 2, 3, 4, 2, 5, np.pi / 2]]))[0]
    expected = [[0, 4], [0, 0], [2, 0], [2, 4]]  # front left, back left, back right, front right
    assert np.allclose(corners[:4, :2], expected)
    assert np.allclose(corners[4:, :2], expected)
    assert corners[:4, 2].tolist() == [3] * 4
    assert corners[4:, 2].tolist() == [8] * 4


def test_outline_and_heading_from_above():
    box = np.array([[10.0, 2, -1, 4, 2, 1.5, 0]])
    image = boxes_from_above(np.zeros((0, 3)), [BoxGroup(box, GREEN)], (0, -10, 20, 10), size=201)
    rows, columns = marked(image, GREEN)  # 10 pixels a meter, x = 20 in row 0, y = 10 in column 0
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (80, 120, 70, 90)
    assert (image[80:101, 80] == GREEN).all()  # from the centre to the front
    assert not (image[102:120, 80] == GREEN).any()


def test_points_are_brighter_with_height_and_later_groups_on_top():
    points = np.array([[5.0, 0, -2], [15.0, 0, 0.5]])
    box = np.array([[10.0, 0, -1, 4, 2, 1.5, 0]])
    groups = [BoxGroup(box, GREEN), BoxGroup(box, RED)]
    image = boxes_from_above(points, groups, (0, -10, 20, 10), size=201)
    assert image[150, 100, 0] < image[50, 100, 0]
    assert len(marked(image, GREEN)[0]) == 0
    assert len(marked(image, RED)[0]) > 50
    with pytest.raises(ValueError, match='limits must be a square'):
        boxes_from_above(points, groups, (0, -10, 20, 9))


def test_edges_in_the_image():
    box = np.array([[12.0, 0, -1, 4, 2, 2, 0]])  # depths 10 and 14, 1 m to each side
    blank = np.zeros((80, 200, 3), np.uint8)
    image = boxes_in_image(blank, [BoxGroup(box, RED)], CAMERA, width=1)
    rows, columns = marked(image, RED)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (35, 45, 95, 105)
    inner = 50 / 14
    for row, column in ((40, 95), (40, 105), (40, round(100 - inner)), (40, round(100 + inner))):
        assert tuple(image[row, column]) == RED
    assert not blank.any()


def test_what_is_behind_the_camera_is_cut_off():
    blank = np.zeros((80, 200, 3), np.uint8)
    behind = boxes_in_image(blank, [BoxGroup(np.array([[-5.0, 0, -1, 4, 2, 2, 0]]), RED)], CAMERA)
    assert not behind.any()
    through = boxes_in_image(blank, [BoxGroup(np.array([[1.0, 0, -1.5, 8, 2, 1, 0]]), RED)], CAMERA, width=1)
    rows, _ = marked(through, RED)  # the floor before the camera: below its height only
    assert len(rows)
    assert rows.min() > 40


def test_lines_may_leave_the_picture():
    image = np.zeros((10, 10, 3), np.uint8)
    draw_line(image, (-1e6, 5), (1e6, 5), RED)
    assert (image[5] == RED).all()
    assert (image != 0).any(2).sum() == 10
    draw_line(image, (3, 50), (9, 40), GREEN)
    draw_line(image, (-5, -5), (-5, 90), GREEN)
    assert len(marked(image, GREEN)[0]) == 0
