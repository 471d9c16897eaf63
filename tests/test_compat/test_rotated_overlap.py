# SPDX-License-Identifier: Apache-2.0
"""Overlap of turned rectangles against a plain polygon clip, also where sides lie on each other."""

import math

import pytest
import torch

from clusterplug.compat import rotated_overlap as _rotated_overlap
from clusterplug.compat.rotated_overlap import rotated_iou, rotated_overlap
from clusterplug.testing.plain_geometry import clip


def random_boxes(count, generator):
    low, high = torch.tensor([-40.0, 0, 0.3, 0.3, -7]), torch.tensor([40.0, 70, 5, 2.5, 7])
    return low + (high - low) * torch.rand(count, 5, generator=generator, dtype=torch.float64)


CHANGES = {
    'itself': lambda boxes, noise: boxes,
    'half a turn': lambda boxes, noise: boxes + boxes.new_tensor([0, 0, 0, 0, math.pi]),
    'a quarter turn': lambda boxes, noise: boxes + boxes.new_tensor([0, 0, 0, 0, math.pi / 2]),
    'nearly itself': lambda boxes, noise: boxes + 1e-7 * noise,
    'near': lambda boxes, noise: boxes + noise * boxes.new_tensor([1, 1, 0.1, 0.1, 1]),
    'inside': lambda boxes, noise: boxes * boxes.new_tensor([1, 1, 0.4, 0.4, 1]),
    'side by side': lambda boxes, noise: boxes + boxes[:, 2:3] * torch.stack(
        [boxes[:, 4].cos(), boxes[:, 4].sin(), *boxes.new_zeros(3, len(boxes))], 1),
}  # fmt: skip


@pytest.mark.parametrize('change', CHANGES)
def test_equals_a_polygon_clip(change):
    generator = torch.Generator().manual_seed(1)
    boxes = random_boxes(60, generator)
    others = CHANGES[change](boxes, torch.randn(60, 5, generator=generator, dtype=torch.float64))
    others[:, 2:4] = others[:, 2:4].abs()
    wanted = [clip(a, b) for a, b in zip(boxes.tolist(), others.tolist(), strict=True)]
    found = rotated_overlap(boxes, others).diagonal()
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-9)
    assert change == 'side by side' or found.max() > 1e-3


def test_all_pairs_in_pieces(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    boxes, others = random_boxes(13, generator), random_boxes(29, generator)
    boxes[:, :2] /= 8  # so that many of them meet
    others[:, :2] /= 8
    wanted = torch.tensor([[clip(a, b) for b in others.tolist()] for a in boxes.tolist()], dtype=torch.float64)
    assert (wanted > 0).sum() > 30
    monkeypatch.setattr(_rotated_overlap, '_PAIRS', 7)
    torch.testing.assert_close(rotated_overlap(boxes, others), wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(rotated_overlap(others, boxes), wanted.T, rtol=0, atol=1e-9)


def test_iou_of_simple_boxes():
    boxes = torch.tensor([[0.0, 0, 4, 2, 0], [0, 0, 0, 0, 0]])
    others = torch.tensor([[1.0, 0, 4, 2, 0], [0, 0, 2, 4, math.pi / 2], [9, 9, 1, 1, 1]])
    expected = torch.tensor([[6 / 10, 1, 0], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(rotated_iou(boxes, others), expected, rtol=0, atol=1e-7)
    assert rotated_overlap(boxes[:0], others).shape == (0, 3)
    assert rotated_overlap(boxes, others[:0]).shape == (2, 0)


def test_needed_because_mmcv_loses_coinciding_boxes():
    ops = pytest.importorskip('mmcv.ops', reason='needs mmcv')
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(3000, generator).float()
    turned = boxes + torch.tensor([0, 0, 0, 0, math.pi])
    assert ops.box_iou_rotated(boxes, turned, aligned=True).min() < 0.5
    assert rotated_iou(boxes[:300], turned[:300]).diagonal().min() > 1 - 1e-5
