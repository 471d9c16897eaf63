# SPDX-License-Identifier: Apache-2.0
"""mmcv's operations on 3D boxes on the CPU against plain loops over points, boxes and cells."""

import math

import pytest
import torch

pytest.importorskip('mmcv', reason='needs mmcv')

from mmcv.ops import (
    RoIAwarePool3d,
    RoIPointPool3d,
    boxes_iou3d,
    boxes_iou_bev,
    boxes_overlap_bev,
    nms3d,
    nms3d_normal,
    points_in_boxes_all,
    points_in_boxes_part,
)

from clusterplug import compat
from clusterplug.compat.mmcv import roi_pooling
from clusterplug.testing.plain_geometry import clip


@pytest.fixture(autouse=True)
def patched():
    compat.apply_all()


def scene(num_points=900, num_boxes=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(num_points, 3, generator=generator) * torch.tensor([10.0, 10, 3])
    boxes = torch.rand(num_boxes, 7, generator=generator) * torch.tensor([10.0, 10, 1, 5, 4, 3, 7])
    boxes[:, 3:6] += 0.5
    return points, boxes


def contains(box, point):
    """Local coordinates of a point in a box with the origin in its lower corner, or None."""
    x, y, z, length, width, height, angle = box
    a, b = point[0] - x, point[1] - y
    along, across = a * math.cos(angle) + b * math.sin(angle), b * math.cos(angle) - a * math.sin(angle)
    if abs(point[2] - (z + height / 2)) > height / 2 or abs(along) >= length / 2 or abs(across) >= width / 2:
        return None
    return along + length / 2, across + width / 2, point[2] - z


def members(boxes, points):
    return [[i for i, p in enumerate(points.tolist()) if contains(box, p)] for box in boxes.tolist()]


def test_points_in_boxes():
    scenes = [scene(seed=seed) for seed in range(2)]
    points, boxes = (torch.stack(each) for each in zip(*scenes, strict=True))
    all_of, part = points_in_boxes_all(points, boxes), points_in_boxes_part(points, boxes)
    for s in range(2):
        inside = members(boxes[s], points[s])
        assert sum(map(len, inside)) > 50
        wanted = torch.zeros(900, 6, dtype=torch.int32)
        first = torch.full((900,), -1, dtype=torch.int32)
        for b in reversed(range(6)):
            wanted[inside[b], b] = 1
            first[inside[b]] = b
        assert torch.equal(all_of[s], wanted)
        assert torch.equal(part[s], first)
    assert (points_in_boxes_part(points, boxes[:, :0]) == -1).all()
    assert points_in_boxes_part(points[:, :0], boxes).shape == (2, 0)


def test_points_in_boxes_of_mmdet3d():
    structures = pytest.importorskip('mmdet3d.structures', reason='needs mmdet3d')
    points, boxes = scene()
    found = structures.LiDARInstance3DBoxes(boxes).points_in_boxes_part(points)
    assert torch.equal(found, points_in_boxes_part(points[None], boxes[None])[0])


@pytest.mark.parametrize('samples', [4, 64])
def test_point_pooling(samples, monkeypatch):
    monkeypatch.setattr(roi_pooling, '_PAIRS', 1800)  # two boxes at a time
    points, boxes = scene()
    boxes[2, :2] = 99.0  # an empty one
    features = torch.randn(900, 5, generator=torch.Generator().manual_seed(1))
    pooled, empty = RoIPointPool3d(samples)(points[None], features[None], boxes[None])
    assert pooled.shape == (1, 6, samples, 8)
    assert empty[0].tolist() == [int(not inside) for inside in members(boxes, points)]
    assert empty[0, 2] == 1
    for b, inside in enumerate(members(boxes, points)):
        for k in range(samples):
            expected = torch.zeros(8)
            if inside:
                row = inside[k % min(len(inside), samples)]
                expected = torch.cat([points[row], features[row]])
            assert torch.equal(pooled[0, b, k], expected)


@pytest.mark.parametrize('mode', ['max', 'avg'])
@pytest.mark.parametrize('limit', [3, 128])
def test_cell_pooling(mode, limit):
    points, boxes = scene(num_boxes=4)
    boxes[1, :2] = 99.0
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(900, 3, generator=generator, requires_grad=True)
    sizes = (2, 3, 2)
    pooled = RoIAwarePool3d(sizes, limit, mode)(boxes, points, features)
    expected = torch.zeros(4, *sizes, 3)
    for b, box in enumerate(boxes.tolist()):
        cells = {}
        for i, point in enumerate(points.tolist()):
            local = contains(box, point)
            if local:
                cell = tuple(min(int(v / (s / n)), n - 1) for v, s, n in zip(local, box[3:6], sizes, strict=True))
                cells.setdefault(cell, []).append(i)
        for cell, inside in cells.items():
            values = features[inside[: limit - 1]]
            expected[(b, *cell)] = values.amax(0) if mode == 'max' else values.mean(0)
    torch.testing.assert_close(pooled, expected)
    weights = torch.randn(pooled.shape, generator=generator)
    grad, wanted = (torch.autograd.grad((x * weights).sum(), features)[0] for x in (pooled, expected))
    torch.testing.assert_close(grad, wanted)
    assert grad.abs().sum() > 1


def test_overlaps():
    _, boxes = scene(num_boxes=9)
    _, others = scene(num_boxes=7, seed=1)
    flat = [[(*b[:2], *b[3:5], b[6]) for b in each.double().tolist()] for each in (boxes, others)]
    common = torch.tensor([[clip(a, b) for b in flat[1]] for a in flat[0]])
    torch.testing.assert_close(boxes_overlap_bev(boxes, others), common, rtol=1e-5, atol=1e-5)
    areas = (boxes[:, 3] * boxes[:, 4])[:, None], others[:, 3] * others[:, 4]
    ends = [torch.cat([b[:, :2] - b[:, 3:5] / 2, b[:, :2] + b[:, 3:5] / 2, b[:, 6:]], 1) for b in (boxes, others)]
    with pytest.warns(DeprecationWarning, match='deprecated'):
        found = boxes_iou_bev(*ends)
    torch.testing.assert_close(found, common / (sum(areas) - common), rtol=1e-5, atol=1e-5)
    height = torch.min((boxes[:, 2] + boxes[:, 5] / 2)[:, None], others[:, 2] + others[:, 5] / 2)
    height = height - torch.max((boxes[:, 2] - boxes[:, 5] / 2)[:, None], others[:, 2] - others[:, 5] / 2)
    volume = common * height.clamp_min(0)
    sizes = boxes[:, 3:6].prod(1)[:, None], others[:, 3:6].prod(1)
    torch.testing.assert_close(boxes_iou3d(boxes, others), volume / (sum(sizes) - volume), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('nms', 'turned'), [(nms3d, True), (nms3d_normal, False)])
def test_suppression(nms, turned):
    _, boxes = scene(num_boxes=60)
    scores = torch.rand(60, generator=torch.Generator().manual_seed(3))
    flat = [(*b[:2], *b[3:5], b[6] * turned) for b in boxes.double().tolist()]
    kept = []
    for i in scores.argsort(descending=True).tolist():
        a = flat[i]
        areas = [a[2] * a[3] + flat[j][2] * flat[j][3] for j in kept]
        common = [clip(a, flat[j]) for j in kept]
        if all(c / (s - c) <= 0.3 for c, s in zip(common, areas, strict=True)):
            kept.append(i)
    assert 5 < len(kept) < 50
    assert nms(boxes, scores, 0.3).tolist() == kept
    assert nms(boxes[:0], scores[:0], 0.3).tolist() == []


@pytest.mark.skipif(torch.cuda.is_available(), reason='CUDA is there')
def test_needed_because_mmcv_has_no_kernel():
    points, boxes = scene()
    compat.remove_all()
    for call in (
        lambda: points_in_boxes_part(points[None], boxes[None]),
        lambda: RoIPointPool3d(4)(points[None], points[None], boxes[None]),
        lambda: RoIAwarePool3d(2)(boxes, points, points),
        lambda: nms3d(boxes, boxes[:, 0], 0.5),
        lambda: boxes_iou3d(boxes, boxes),
    ):
        with pytest.raises((RuntimeError, AssertionError)):
            call()
