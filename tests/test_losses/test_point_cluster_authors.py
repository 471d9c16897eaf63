# SPDX-License-Identifier: Apache-2.0
"""Numbers that the authors' code (FengZicai/Cluster3DSeg) gives on seeded input, next to ours."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clusterplug.functional.contrast import bank_contrast_terms, subclass_contrast
from clusterplug.functional.transport import assign_subclasses

# temperature / base temperature, which their terms contain
SCALE = 0.1 / 2
LABELS = '025145342253153423134403020243121052350345144101201105123405'
POINT_TO_POINT, POINT_TO_QUEUE, POINT_TO_CENTER = 0.4995792806, 0.5585315228, 0.2867114544


def _input():
    rng = np.random.default_rng(0)

    def unit(*shape):
        return F.normalize(torch.tensor(rng.standard_normal(shape), dtype=torch.float32), dim=-1)

    points, centers = unit(60, 16), unit(6, 16)
    queue, anchors = unit(760, 50, 64), unit(40, 64)
    ids = torch.arange(40) % 4 * 40 + torch.tensor(rng.integers(0, 5, 40))
    return points, centers, queue, anchors, ids, torch.cat([unit(40, 64) for _ in range(4)])


def test_labels():
    points, centers, *_ = _input()
    x, rows = F.pad(points, (0, 0, 0, 1))[None], F.pad(centers, (0, 0, 0, 1))[None]
    valid = torch.arange(61)[None] < 60
    ids, *_ = assign_subclasses(x, rows, valid=valid, num_active=torch.tensor([6]))
    assert ''.join(str(label) for label in ids[0, :-1].tolist()) == LABELS


def test_point_to_point_counts_the_anchor_among_its_negatives():
    *_, anchors, ids, _ = _input()
    option = dict(temperature=0.1, exclude_self=True)
    theirs = subclass_contrast(anchors, ids, anchors, ids, count_self_as_negative=True, **option).mean() * SCALE
    assert theirs.item() == pytest.approx(POINT_TO_POINT, rel=1e-6)
    # without the anchor, whose cosine with itself is 1, random anchors cost about half
    assert subclass_contrast(anchors, ids, anchors, ids, **option).mean() * SCALE < 0.6 * theirs


def test_point_to_queue():
    _, _, queue, anchors, ids, _ = _input()
    # their classes 7 and 8 have 10 clusters
    empty = torch.zeros(760, 50, dtype=torch.bool)
    empty[7 * 40 + 10 : 8 * 40] = True
    empty[8 * 40 + 10 : 9 * 40] = True
    values, _ = bank_contrast_terms(anchors, ids, queue, empty, temperature=0.1)
    assert values.mean().item() * SCALE == pytest.approx(POINT_TO_QUEUE, rel=1e-6)


def test_point_to_center():
    *_, anchors, ids, centers = _input()
    values = subclass_contrast(anchors, ids, centers, torch.arange(160), temperature=0.1)
    assert values.mean().item() * SCALE == pytest.approx(POINT_TO_CENTER, rel=1e-6)
