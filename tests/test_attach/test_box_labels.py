# SPDX-License-Identifier: Apache-2.0
"""Labels of points, key points and voxels from boxes, against plain loops, and what is refused."""

import math
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')


from mmdet3d.structures import CameraInstance3DBoxes, Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import nn

from clusterplug.attach import BoxLabels
from clusterplug.attach.taps import Rows
from clusterplug.testing import count_host_syncs, count_launches

SIZE, LIMITS = [0.5, 0.5, 1.0], [0.0, -4.0, -2.0, 8.0, 4.0, 2.0]
GRID = (4, 16, 16)  # z, y, x
IGNORED = 99


class KeyPoints(nn.Module):
    def forward(self, points):
        return dict(keypoints=points)


def detector(key_points=False, num_classes=3):
    model = nn.Module()
    model.bbox_head = SimpleNamespace(num_classes=num_classes)
    model.data_preprocessor = SimpleNamespace(voxel_layer=SimpleNamespace(voxel_size=SIZE, point_cloud_range=LIMITS))
    if key_points:
        model.points_encoder = KeyPoints()
    return model


def sample(boxes, labels, kind=LiDARInstance3DBoxes):
    found = Det3DDataSample()
    found.gt_instances_3d = InstanceData(
        bboxes_3d=kind(torch.tensor(boxes).reshape(-1, 7)), labels_3d=torch.tensor(labels, dtype=torch.int64)
    )
    return found


def scenes():
    """Two scans of 400 points with turned boxes, two of which overlap; one class is unknown."""
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor(LIMITS[:3]), torch.tensor(LIMITS[3:])
    points = [low + (high - low) * torch.rand(400, 3, generator=generator) for _ in range(2)]
    first = [[2.0, 0, -1.5, 3, 1.5, 2, 0.7], [2.5, 0.5, -1.5, 3, 2, 2, 0.1], [6.0, -2, -1, 1.5, 3, 2, 1.2]]
    second = [[4.0, 1, -2, 2, 4, 3, -0.5], [6.5, 3, -1, 1, 1, 1, 0.0]]
    return points, [sample(first, [2, 0, -1]), sample(second, [1, 2])]


def plain(point, instances):
    """Class of the first box around a point; -1 for none, -2 for an unknown class."""
    for box, label in zip(instances.bboxes_3d.tensor.tolist(), instances.labels_3d.tolist(), strict=True):
        x, y, z, length, width, height, yaw = box
        a, b = point[0] - x, point[1] - y
        along, across = a * math.cos(yaw) + b * math.sin(yaw), b * math.cos(yaw) - a * math.sin(yaw)
        if abs(along) < length / 2 and abs(across) < width / 2 and z <= point[2] <= z + height:
            return label if label >= 0 else -2
    return -1


def plain_labels(points, samples):
    return [[plain(p, s.gt_instances_3d) for p in scan.tolist()] for scan, s in zip(points, samples, strict=True)]


def final(codes, background):
    return [IGNORED if code == -2 or (code == -1 and not background) else 3 if code == -1 else code for code in codes]


def label(boxes, rows, points, samples, **voxels):
    boxes.read(samples)
    inputs = dict(points=[torch.cat([scan, scan[:, :1]], 1) for scan in points])
    if voxels:
        inputs['voxels'] = voxels
    return boxes(rows, inputs, IGNORED).tolist()


@pytest.mark.parametrize('background', [False, True])
def test_points(background):
    points, samples = scenes()
    boxes = BoxLabels(detector(), 'boxes+background' if background else 'boxes')
    assert boxes.num_classes == 3 + background
    found = label(boxes, Rows(torch.zeros(800, 5)), points, samples)
    expected = [code for codes in plain_labels(points, samples) for code in codes]
    assert found == final(expected, background)
    assert {code: expected.count(code) > 3 for code in (-2, -1, 0, 1, 2)} == dict.fromkeys((-2, -1, 0, 1, 2), True)


def voxels_of(points, stride=1):
    """Cells (batch, z, y, x) that hold points, in random order, and which points."""
    cells = {}
    for number, scan in enumerate(points):
        for index, point in enumerate(scan.tolist()):
            place = [int((p - low) / size) for p, low, size in zip(point, LIMITS, SIZE, strict=False)]
            cells.setdefault((number, *(axis // stride for axis in reversed(place))), []).append(index)
    order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(1)).tolist()
    keys = [list(cells)[i] for i in order]
    return keys, [cells[key] for key in keys]


def expected_of_cells(keys, members, points, samples, background):
    """A class wins over an unknown one, and that over the background."""
    codes = plain_labels(points, samples)
    best = []
    for (number, *_), inside in zip(keys, members, strict=True):
        found = [codes[number][i] for i in inside]
        known = [code for code in found if code >= 0]
        best.append(max(known) if known else -2 if -2 in found else -1)
    return final(best, background)


@pytest.mark.parametrize('background', [False, True])
def test_voxels(background):
    points, samples = scenes()
    keys, members = voxels_of(points)
    boxes = BoxLabels(detector(), 'boxes+background' if background else 'boxes')
    rows = Rows(torch.zeros(len(keys), 5))
    voxels = dict(coors=torch.tensor(keys), num_points=torch.ones(len(keys)))
    found = label(boxes, rows, points, samples, **voxels)
    assert found == expected_of_cells(keys, members, points, samples, background)
    assert len({*found}) == 4 + background


@pytest.mark.parametrize('stride', [2, 4])
def test_sparse_rows_of_any_stride_also_where_no_point_is(stride):
    points, samples = scenes()
    points[0] = points[0][points[0][:, 1] < -1]  # the grid is not reached to its end
    keys, members = voxels_of(points, stride)
    empty = [(1, 0, 0, 0)] if (1, 0, 0, 0) not in keys else []
    indices = torch.tensor(keys + empty).int()
    rows = Rows(torch.zeros(len(indices), 5), indices, tuple(size // stride for size in GRID))
    found = label(BoxLabels(detector(), 'boxes+background'), rows, points, samples)
    assert found == expected_of_cells(keys, members, points, samples, True) + [IGNORED] * len(empty)


def test_points_outside_the_grid_label_no_voxel():
    box = sample([[9.0, 0, -2, 6, 8, 4, 0.0]], [0])  # from x = 6 to 12; the grid ends at 8
    points = [torch.tensor([[9.0, 0, 0], [7.75, 0.25, 0.5], [7.75, 0.25, 2.5]])]
    keys = torch.tensor([[0, 2, 8, 15], [0, 2, 8, 14]])
    voxels = dict(coors=keys, num_points=torch.ones(2))
    found = label(BoxLabels(detector()), Rows(torch.zeros(2, 1)), points, [box], **voxels)
    assert found == [0, IGNORED]


def test_key_points():
    points, samples = scenes()
    model = detector(key_points=True).train()
    boxes = BoxLabels(model)
    chosen = torch.cat([torch.cat([torch.full((64, 1), n), scan[:64]], 1) for n, scan in enumerate(points)])
    model.points_encoder(chosen)
    expected = final([code for codes in plain_labels(points, samples) for code in codes[:64]], False)
    assert label(boxes, Rows(torch.zeros(128, 5)), points, samples) == expected
    model.eval().points_encoder(chosen)
    assert boxes.key_points is None


@pytest.mark.parametrize('stride', [None, 1, 2])
def test_where_voxels_lie(stride):
    """Their centers, in the coordinates of the points: 0.5 x 0.5 x 1 m from (0, -4, -2), twice that at stride 2."""
    points, samples = scenes()
    keys = torch.tensor([[0, 0, 0, 0], [1, 1, 5, 3]])
    if stride is None:  # voxels of the preprocessor
        boxes = BoxLabels(detector())
        label(boxes, Rows(torch.zeros(2, 1)), points, samples, coors=keys, num_points=keys)
    else:
        boxes = BoxLabels(detector())
        label(boxes, Rows(torch.zeros(2, 1), keys.int(), tuple(s // stride for s in GRID)), points, samples)
    positions, batch = boxes.place()
    scale = stride or 1
    expected = [[0.25 * scale, -4 + 0.25 * scale, -2 + 0.5 * scale]]
    expected += [[3.5 * 0.5 * scale, -4 + 5.5 * 0.5 * scale, -2 + 1.5 * scale]]
    torch.testing.assert_close(positions, torch.tensor(expected))
    assert batch.tolist() == [0, 1]


def test_where_points_and_key_points_lie():
    points, samples = scenes()
    boxes = BoxLabels(model := detector(key_points=True).train())
    label(boxes, Rows(torch.zeros(800, 5)), points, samples)
    positions, batch = boxes.place()
    assert torch.equal(positions, torch.cat(points))
    assert batch.tolist() == [0] * 400 + [1] * 400
    model.points_encoder(torch.cat([torch.cat([torch.full((64, 1), n), p[:64]], 1) for n, p in enumerate(points)]))
    label(boxes, Rows(torch.zeros(128, 5)), points, samples)
    positions, batch = boxes.place()
    assert torch.equal(positions, torch.cat([scan[:64] for scan in points]))
    assert batch.tolist() == [0] * 64 + [1] * 64


def test_no_boxes_and_boxes_without_points():
    points, _ = scenes()
    nothing = [sample([], []), sample([[100.0, 0, 0, 1, 1, 1, 0]], [1])]
    assert set(label(BoxLabels(detector()), Rows(torch.zeros(800, 5)), points, nothing)) == {IGNORED}
    both = BoxLabels(detector(), 'boxes+background')
    assert set(label(both, Rows(torch.zeros(800, 5)), points, nothing)) == {3}


def test_what_does_not_fit():
    points, samples = scenes()
    with pytest.raises(ValueError, match='17 rows, which are neither of 800 points;'):
        label(BoxLabels(detector()), Rows(torch.zeros(17, 5)), points, samples)
    voxels = dict(coors=torch.zeros(3, 4, dtype=torch.int64), num_points=torch.ones(3))
    with pytest.raises(ValueError, match='17 rows, which are neither of 800 points, 3 voxels;'):
        label(BoxLabels(detector()), Rows(torch.zeros(17, 5)), points, samples, **voxels)
    with pytest.raises(ValueError, match='let the pipeline pack'):
        BoxLabels(detector()).read([Det3DDataSample()])
    with pytest.raises(TypeError, match=r'got CameraInstance3DBoxes; convert them with convert_to'):
        BoxLabels(detector()).read([sample([[1.0] * 7], [0], CameraInstance3DBoxes)])
    with pytest.raises(ValueError, match='has no rpn_head or bbox_head with num_classes'):
        BoxLabels(nn.Module())
    with pytest.raises(ValueError, match=r"must be one of .*got 'box'"):
        BoxLabels(detector(), 'box')
    model = detector()
    del model.data_preprocessor
    rows = Rows(torch.zeros(3, 1), torch.zeros(3, 4).int(), GRID)
    with pytest.raises(ValueError, match='voxel_layer, which tells where voxels lie'):
        label(BoxLabels(model), rows, points, samples)


def test_no_host_synchronisation():
    points, samples = scenes()
    keys, _ = voxels_of(points, 2)
    indices = torch.tensor(keys).int()
    boxes = BoxLabels(detector())
    inputs = dict(points=points)
    for rows in (Rows(torch.zeros(800, 5)), Rows(torch.zeros(len(keys), 5), indices, tuple(s // 2 for s in GRID))):

        def step(rows=rows):
            boxes.read(samples)
            boxes(rows, inputs, IGNORED)

        assert count_host_syncs(step).total() == 0
        assert count_launches(step).total() < 150
