# SPDX-License-Identifier: Apache-2.0
"""Agreement of a memory with hidden sub-types next to k-means, on constructed scans."""

import math

import pytest
import torch
from torch import nn

from clusterplug.attach import ScanSubclasses, subclasses_of
from clusterplug.evaluation import SubtypeTable, subtype_agreement
from clusterplug.losses import PointClusterLoss


def _loss():
    """Two classes of two subclasses at e0 and e1; the second class has a single sub-type."""
    loss = PointClusterLoss(2, num_clusters=2, embed_dims=4, projector=nn.Identity())
    loss.memory.centers.copy_(torch.eye(4)[:2].expand(2, 2, 4))
    loss.memory.num_seeded.fill_(2)
    return loss


def _scan(loss, features, classes):
    points = torch.zeros(len(classes), 3)
    return ScanSubclasses(points, classes, classes, subclasses_of(features, classes, loss), features)


def test_six_groupings_by_hand():
    loss, table = _loss(), SubtypeTable()
    for _ in range(2):
        classes = torch.tensor([0] * 8 + [1] * 4)
        objects = torch.tensor([1, 1, 2, 2, 3, 3, 4, 4, 1, 1, 2, 2])
        kinds = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
        first, second = torch.eye(4)[0], torch.eye(4)[1]
        # of every object a point that looks like the other kind: only the mean tells
        pair = [torch.stack([3 * own, 2 * other]) for own, other in ((first, second), (second, first))]
        features = torch.cat([pair[0], pair[0], pair[1], pair[1], pair[0], pair[0]])
        table.add(_scan(loss, features, classes), _scan(loss, features.flip(1), classes), kinds, objects)
    found = subtype_agreement(table, loss)
    assert found['memory'].per_class[0] == pytest.approx(0, abs=1e-9)
    assert found['memory by object'].per_class[0] == pytest.approx(1)
    for name in ('k-means with the loss', 'k-means without'):
        assert found[name].per_class[0] == pytest.approx(0, abs=1e-9)
        assert found[f'{name} by object'].per_class[0] == pytest.approx(1)
    for each in found.values():
        assert math.isnan(each.per_class[1])
        assert each.mean == pytest.approx(float(each.per_class[0]))


def test_points_without_a_feature_take_no_part():
    loss, table = _loss(), SubtypeTable()
    features = torch.eye(4)[[0, 1, 0, 1, 0]]
    broken = features.clone()
    broken[4] = torch.nan
    classes, kinds = torch.zeros(5, dtype=torch.int64), torch.tensor([0, 1, 0, 1, 1])
    table.add(_scan(loss, features, classes), _scan(loss, broken, classes), kinds, torch.arange(1, 6))
    for name, each in subtype_agreement(table, loss).items():
        assert each.mean == pytest.approx(1), name


def test_positions_are_removed_from_the_mean_of_an_object_too():
    loss = PointClusterLoss(1, num_clusters=2, embed_dims=4, projector=nn.Identity(), assigner=dict(position_period=2))
    loss.memory.centers.copy_(torch.eye(4)[:2])
    loss.memory.num_seeded.fill_(2)
    # what the regression has learned: an odd x adds 0.8 along the second axis, an even one takes it away
    loss.positions.moments.copy_(torch.eye(7))
    loss.positions.products[0, 0] = -0.8 * torch.eye(4)[1] * (1 + loss.positions.ridge)
    features = torch.nn.functional.normalize(torch.tensor([[0.7, 0.5, 0, 0], [0.7, 0.5, 0, 0]]), dim=1)
    cells, classes = torch.tensor([[0, 0, 0], [1, 0, 0]]), torch.zeros(2, dtype=torch.int64)
    design = loss.positions.design(cells)
    assert subclasses_of(features, classes, loss).tolist() == [0, 0]
    assert subclasses_of(features, classes, loss, design).tolist() == [1, 0]
    table = SubtypeTable()
    scan = ScanSubclasses(features, classes, classes, torch.tensor([1, 0]), features, cells)
    table.add(scan, scan, torch.tensor([0, 1]), torch.tensor([7, 7]))
    assert subtype_agreement(table, loss)['memory by object'].per_class[0] == pytest.approx(0, abs=1e-9)
