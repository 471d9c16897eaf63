# SPDX-License-Identifier: Apache-2.0
"""Regions that WithClustering finds for the loss, image maps, and training steps that it refuses."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_with_clustering import TERMS, Segmentor, _data, _samples, _wrapped
from torch import nn

from clusterplug.attach import WithClustering
from clusterplug.attach.regions import cell_regions, image_regions, image_rows, instance_regions
from clusterplug.attach.taps import Rows
from clusterplug.testing import count_host_syncs


def test_cells_by_hand():
    positions = torch.tensor([[0.1, 0.1, 0.1], [0.9, 0.9, 0.9], [-0.1, 0.1, 0.1], [0.5, 0.5, 0.5], [torch.nan, 0, 0]])
    labels, batch = torch.tensor([1, 1, 1, 2, 1]), torch.tensor([0, 0, 0, 0, 0])
    found = cell_regions(labels, positions, batch, 1.0)
    # the third is in the next cell, which touches that of the first two; the fourth is of another class
    assert found.tolist() == [0, 0, 0, 3, -1]


def test_connected_cells_of_one_class_are_a_region():
    """Two cars 1.9 m long that stand on the borders of cells, 1.2 m apart; a third of them is seen from afar."""
    first, second = torch.tensor([[0.5, 0, 0], [1.4, 0, 0], [2.4, 0, 0]]), torch.tensor([[4.1, 0, 0], [5.9, 0, 0]])
    diagonal = torch.tensor([[6.5, 1.5, 0.0]])  # its cell touches that at (5, 0) in no point, and (6, 0) is empty
    positions = torch.cat([first, second, diagonal])
    labels, batch = torch.zeros(6, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)
    assert cell_regions(labels, positions, batch, 1.0).tolist() == [0, 0, 0, 3, 3, 5]
    # coarser cells bridge the gaps: cells 0 to 3 along x, 0 along y
    assert cell_regions(labels, positions, batch, 2.0).tolist() == [0] * 6
    # finer ones leave every point alone
    assert cell_regions(labels, positions, batch, 0.4).tolist() == [0, 1, 2, 3, 4, 5]
    # another class, and another scan, in the middle of the first car part it
    assert cell_regions(torch.tensor([0, 1, 0, 0, 0, 0]), positions, batch, 1.0).tolist() == [0, 1, 2, 3, 3, 5]
    assert cell_regions(labels, positions, torch.tensor([0, 1, 0, 0, 0, 0]), 1.0).tolist() == [0, 1, 2, 3, 3, 5]


def test_what_is_no_class_has_no_region_and_connects_nothing():
    positions = torch.tensor([[0.5, 0.0], [1.5, 0.0], [2.5, 0.0]])
    batch = torch.zeros(3, dtype=torch.int64)
    for ignored in (-100, -1, 2048, 2**31 - 1):
        labels = torch.tensor([0, ignored, 0])
        assert cell_regions(labels, positions, batch, 1.0).tolist() == [0, -1, 2]
    positions[1] = torch.inf
    assert cell_regions(torch.zeros(3, dtype=torch.int64), positions, batch, 1.0).tolist() == [0, -1, 2]


def test_objects_win_over_cells_and_never_meet_them():
    cells = torch.tensor([5, 5, 7, -1])
    labels, batch = torch.tensor([1, 1, 2, 1]), torch.zeros(4, dtype=torch.int64)
    found = instance_regions(cells, labels, torch.tensor([0, 3, 3, 3]), batch)
    assert found[0] == 5
    assert found[1] == found[3]  # the same object of the same class
    assert found[1] != found[2]
    assert (found[1:] >= 1 << 62).all()
    assert torch.equal(instance_regions(cells, labels, None, batch), cells)


def test_connected_parts_of_an_image():
    image = torch.tensor(
        [
            [1, 1, 0, 1],
            [0, 1, 0, 1],
            [1, 0, 0, 0],
        ]
    )
    found = image_regions(torch.stack([image, image])).view(2, 3, 4)
    assert found[0].tolist() == [[0, 0, 2, 3], [4, 0, 2, 3], [8, 2, 2, 2]]
    assert torch.equal(found[1], found[0] + 12)


def test_regions_wait_for_nothing():
    positions, batch = torch.rand(500, 3) * 20, torch.arange(500) // 250
    labels = torch.randint(0, 4, (500,))

    def step():
        cells = cell_regions(labels, positions, batch, 1.0)
        instance_regions(cells, labels, labels, batch)
        image_regions(labels.view(2, 10, 25))

    assert count_host_syncs(step).total() == 0


@pytest.mark.parametrize('regions', ['cell', 'instance'])
def test_points_of_a_model_get_regions(regions):
    model = _wrapped(loss=dict(regions=regions, assigner=dict(cell_size=2.0))).train()
    points, samples = _data()
    inputs = SimpleInputs(points[:20], points[20:])
    for number, sample in enumerate(samples):
        count = len(sample.gt_pts_seg.pts_semantic_mask)
        sample.gt_pts_seg.pts_instance_mask = torch.arange(count) // 5 + 100 * number
    seen = []
    model.clustering.loss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    assert set(model(inputs, samples, mode='loss')) > TERMS
    found, labels = seen[0][4], seen[0][1]
    assert found.shape == labels.shape
    scan = torch.tensor([0] * 20 + [1] * 40)
    for region in found.unique():
        assert len(labels[found == region].unique()) == 1
        assert len(scan[found == region].unique()) == 1


class SimpleInputs(dict):
    """``points`` as a list, as mmdet3d's preprocessor gives them; the toy model reads them as one tensor."""

    def __init__(self, *scans):
        super().__init__(points=Stacked(scans))


class Stacked(list):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(torch.cat(list(self)), *args[1:], **(kwargs or {}))


def test_instance_without_ids_warns_once_and_takes_cells():
    model = _wrapped(loss=dict(regions='instance')).train()
    points, samples = _data()
    inputs = SimpleInputs(points[:20], points[20:])
    with pytest.warns(UserWarning, match='no instance ids'):
        model(inputs, samples, mode='loss')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model(inputs, samples, mode='loss')


def test_labels_without_positions_are_refused():
    model = _wrapped(loss=dict(regions='cell')).train()
    points, samples = _data()
    with pytest.raises(ValueError, match=r"do not tell where the 60 point labels lie.*regions='point'"):
        model(points, samples, mode='loss')


def test_labels_at_the_middle_of_the_pixels_of_a_map():
    """As interpolation takes them ('nearest-exact'), for integers that a float does not hold as well."""
    for size in ((4, 6), (8, 12), (5, 7), (32, 48), (33, 50)):
        labels = torch.randint(0, 1000, (2, 32, 48))
        expected = nn.functional.interpolate(labels[:, None].float(), size=size, mode='nearest-exact')[:, 0].long()
        assert torch.equal(image_rows(Rows(torch.zeros(0), grid=size), labels), expected)
    ignored = torch.full((1, 8, 8), 2**31 - 1)
    assert (image_rows(Rows(torch.zeros(0), grid=(4, 4)), ignored) == 2**31 - 1).all()


class ImageSegmentor(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 6, 3, stride=4, padding=1)
        self.decode_head = Segmentor.Head(3, 255)
        self.decode_head.conv_seg = nn.Conv2d(6, 3, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        logits = self.decode_head.conv_seg(self.backbone(inputs).relu())
        return dict(loss_ce=logits.square().mean()) if mode == 'loss' else logits


def image_samples(labels):
    return [SimpleNamespace(gt_sem_seg=SimpleNamespace(data=each[None])) for each in labels]


@pytest.mark.parametrize('regions', ['point', 'cell'])
def test_maps_of_images_get_the_labels_at_their_pixels(regions):
    loss = dict(type='clusterplug.PointClusterLoss', num_clusters=2, embed_dims=4, regions=regions)
    model = WithClustering(ImageSegmentor(), loss).train()
    labels = torch.randint(0, 3, (2, 8, 12)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[1, :4] = 255
    seen = []
    model.clustering.loss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    losses = model(torch.randn(2, 3, 32, 48), image_samples(labels), mode='loss')
    assert set(losses) > TERMS
    assert torch.equal(seen[0][1], labels[:, ::4, ::4].flatten())
    sum(losses.values()).backward()
    assert model.backbone.weight.grad.any()
    with pytest.raises(ValueError, match='needs the labels of images'):
        model(torch.randn(2, 3, 32, 48), _samples(torch.zeros(5)), mode='loss')


def test_a_loss_as_a_tensor_is_added_to():
    class Plain(Segmentor):
        def forward(self, inputs, data_samples=None, mode='tensor'):
            out = super().forward(inputs, data_samples, mode)
            return out['loss_ce'] if mode == 'loss' else out

    torch.manual_seed(0)
    model = WithClustering(Plain(), dict(type='clusterplug.PointClusterLoss', num_clusters=2, embed_dims=4)).train()
    points, samples = _data()
    for _ in range(2):
        value = model(points, samples, mode='loss')
    model.clustering.enabled = False
    assert value > model(points, samples, mode='loss')


def test_frozen_features_and_other_calls_are_refused():
    points, samples = _data()
    model = _wrapped().train()
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match=r'need no gradient \(frozen layers\?\)'):
        model(points, samples, mode='loss')
    with torch.no_grad():  # nothing is trained: no error
        model(points, samples, mode='loss')

    class Pointcept(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Linear(4, 6)

        def forward(self, batch):
            return dict(loss=self.backbone(batch['feat']).mean())

    loss = dict(type='clusterplug.PointClusterLoss', num_classes=3, num_clusters=2, embed_dims=4)
    model = WithClustering(Pointcept(), loss, embedding='backbone').train()
    with pytest.raises(ValueError, match=r"without being called as model.*mode='loss'"):
        model(dict(feat=points))
    model.eval()(dict(feat=points))


def test_numpy_integers():
    loss = dict(num_clusters=np.int64(2), embed_dims=np.int64(4), num_anchors_per_class=np.int64(9))
    model = _wrapped(loss=loss).train()
    assert set(model(*_data(), mode='loss')) > TERMS
