# SPDX-License-Identifier: Apache-2.0
"""Weights of samples on the heads of mmdet3d: exact in a batch, gradients too, 1 = the model as it was."""

import copy
import pickle

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import nn

pytest.importorskip('mmdet3d')

from mmdet3d.registry import MODELS as HOST_MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes, PointData
from mmengine.registry import DefaultScope

from clusterplug import compat
from clusterplug.attach import WithSampleWeights
from clusterplug.attach._weighted_heads import weighted_lovasz
from clusterplug.estimators import SampleLikelihood


@pytest.fixture(scope='module', autouse=True)
def scope():
    compat.apply_all()
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        yield


class Host(nn.Module):
    """A detector or segmentor with nothing but a head; the features are its parameter."""

    def __init__(self, head, features):
        super().__init__()
        self.head = head
        self.features = nn.Parameter(features)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode == 'loss':
            return self.head.loss(*self.arguments(data_samples))
        return self.features.sum()

    def arguments(self, samples):
        return ([self.features], samples)


class PointSegmentor(Host):
    def arguments(self, samples):
        return (dict(fa_points=self.features), samples, {})


class Segmentor(Host):
    def arguments(self, samples):
        return (self.features, samples, {})


def anchors():
    head = dict(
        type='Anchor3DHead', num_classes=2, in_channels=8, feat_channels=8, use_direction_classifier=True,
        anchor_generator=dict(
            type='Anchor3DRangeGenerator', ranges=[[0, -8, -1, 16, 8, -1]], sizes=[[1.6, 1.0, 1.5]],
            rotations=[0, 1.57], reshape_out=False,
        ),
        assigner_per_size=False, diff_rad_by_sin=True, bbox_coder=dict(type='DeltaXYZWLHRBBoxCoder'),
        loss_cls=dict(type='mmdet.FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='mmdet.SmoothL1Loss', beta=1 / 9, loss_weight=2.0),
        loss_dir=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=False, loss_weight=0.2),
        train_cfg=dict(
            assigner=[dict(
                type='Max3DIoUAssigner', iou_calculator=dict(type='mmdet3d.BboxOverlapsNearest3D'), pos_iou_thr=0.3,
                neg_iou_thr=0.2, min_pos_iou=0.2, ignore_iof_thr=-1)],
            allowed_border=0, pos_weight=-1, debug=False),
    )  # fmt: skip
    return Host(HOST_MODELS.build(ConfigDict(head)), torch.randn(3, 8, 16, 16))


def centers():
    head = dict(
        type='CenterHead', in_channels=8, share_conv_channel=8,
        tasks=[dict(num_class=1, class_names=['a']), dict(num_class=1, class_names=['b'])],
        common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
        bbox_coder=dict(type='CenterPointBBoxCoder', voxel_size=[1, 1], out_size_factor=1, pc_range=[0, -8],
                        post_center_range=[0, -8, -5, 16, 8, 5], max_num=5, code_size=9),
        separate_head=dict(type='SeparateHead', init_bias=-2.19, final_kernel=3),
        loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean'),
        loss_bbox=dict(type='mmdet.L1Loss', reduction='mean', loss_weight=0.25), norm_bbox=True,
        train_cfg=dict(
            grid_size=[16, 16, 1], point_cloud_range=[0, -8, -5, 16, 8, 5], voxel_size=[1, 1, 10], out_size_factor=1,
            dense_reg=1, gaussian_overlap=0.1, max_objs=10, min_radius=1, code_weights=[1.0] * 10),
    )  # fmt: skip
    return Host(HOST_MODELS.build(ConfigDict(head)), torch.randn(3, 8, 16, 16))


def minkunet():
    head = dict(type='MinkUNetHead', channels=8, num_classes=4, dropout_ratio=0, ignore_index=4)
    return Segmentor(HOST_MODELS.build(ConfigDict(head)), torch.randn(9 + 5 + 7, 8))


def dense_points():
    head = dict(type='DGCNNHead', fp_channels=(8, 8), channels=8, num_classes=4, dropout_ratio=0, ignore_index=4,
                norm_cfg=dict(type='GN', num_groups=2))  # fmt: skip
    return PointSegmentor(HOST_MODELS.build(ConfigDict(head)), torch.randn(3, 6, 8))


def lovasz():
    head = dict(type='MinkUNetHead', channels=8, num_classes=4, dropout_ratio=0, ignore_index=4,
                loss_decode=dict(type='LovaszLoss', loss_weight=1.5, reduction='none'))  # fmt: skip
    return Segmentor(HOST_MODELS.build(ConfigDict(head)), torch.randn(9 + 5 + 7, 8))


HOSTS = dict(anchors=anchors, centers=centers, minkunet=minkunet, dense_points=dense_points, lovasz=lovasz)
SIZES = dict(minkunet=(9, 5, 7), lovasz=(9, 5, 7), dense_points=(6, 6, 6))


def samples(name, weights):
    """Three samples; with eta 0 and gamma 1 a sample of likelihood 1 - w has the weight w."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for index, weight in enumerate(weights):
        sample = Det3DDataSample(metainfo=dict(sample_likelihood=1 - weight, sample_idx=index))
        if name in SIZES:
            labels = torch.randint(0, 5, (SIZES[name][index],), generator=generator)
            kind = 'pts_semantic_mask' if name == 'dense_points' else 'voxel_semantic_mask'
            sample.gt_pts_seg = PointData(**{kind: labels})
        else:
            count = index + 1
            xy = torch.rand(count, 2, generator=generator) * 10 + torch.tensor([3.0, -6.0])
            rest = torch.tensor([-1.0, 1.8, 1.1, 1.5, 0.1])
            boxes = torch.cat([xy, rest.expand(count, 5), torch.zeros(count, 2)], 1)
            boxes = boxes[:, : 9 if name == 'centers' else 7]
            sample.gt_instances_3d = InstanceData(
                bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[1]),
                labels_3d=torch.randint(0, 2, (count,), generator=generator),
            )
        found.append(sample)
    return found


def run(model, name, weights):
    """All losses, and the gradient of their sum at the features and the parameters."""
    model.zero_grad()
    losses = model({}, samples(name, weights), mode='loss')
    losses = {key: sum(value) if isinstance(value, list) else value for key, value in losses.items() if 'loss' in key}
    sum(losses.values()).backward()
    return (
        {key: value.detach() for key, value in losses.items()},
        [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None],
    )


def built(name, **options):
    torch.manual_seed(0)
    model = HOSTS[name]()
    plain = copy.deepcopy(model)
    return plain, WithSampleWeights(model, **{**dict(eta=0.0, gamma=1.0), **options})


@pytest.mark.parametrize('name', HOSTS)
def test_weights_of_one_are_the_model_bit_for_bit(name):
    plain, model = built(name, eta=0.5, gamma=0.0)
    expected, gradients = run(plain, name, [0.3, 0.9, 0.1])
    found, others = run(model, name, [0.3, 0.9, 0.1])
    assert found.keys() == expected.keys()
    for key in expected:
        assert torch.equal(found[key], expected[key]), key
    for one, other in zip(gradients, others, strict=True):
        assert torch.equal(one, other)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert any(value > 0 for value in expected.values())


@pytest.mark.parametrize('name', HOSTS)
def test_each_sample_has_its_own_weight(name):
    _, model = built(name)
    alone = [run(model, name, [float(i == j) for j in range(3)]) for i in range(3)]
    weights = [0.9, 0.2, 0.5]
    found, gradients = run(model, name, weights)
    for key, value in found.items():
        expected = sum(w * losses[key] for w, (losses, _) in zip(weights, alone))
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    for number, gradient in enumerate(gradients):
        expected = sum(w * grads[number] for w, (_, grads) in zip(weights, alone))
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
    # the feature map of a sample of weight 0 gets no gradient, the others do
    if name == 'anchors':  # no batch normalization
        for i, (_, grads) in enumerate(alone):
            rows = grads[0].flatten(1).abs().sum(1)
            assert (rows.nonzero().flatten() == torch.tensor([i])).all()


@pytest.mark.parametrize('name', ['anchors', 'minkunet'])
def test_the_shortcut_is_something_else(name):
    _, model = built(name)
    _, shortcut = built(name, mode='batch_mean')
    plain, _ = built(name)
    weights = [0.9, 0.1, 0.1]
    exact, mean, unweighted = (run(each, name, weights)[0] for each in (model, shortcut, plain))
    for key, value in unweighted.items():
        torch.testing.assert_close(mean[key], value * (1.1 / 3))
    assert any((exact[key] - mean[key]).abs() > 1e-3 * value for key, value in unweighted.items() if value > 0)


def test_lovasz_equals_the_host():
    torch.manual_seed(0)
    from mmdet3d.models.losses.lovasz_loss import lovasz_softmax

    probs, labels = torch.randn(50, 4).softmax(1), torch.randint(0, 5, (50,))
    for classes in ('present', 'all', [0, 2]):
        for class_weight in (None, torch.tensor([1.0, 2.0, 0.5, 3.0])):
            expected = lovasz_softmax(probs, labels, classes, class_weight=class_weight, ignore_index=4)
            found = weighted_lovasz(probs, labels, torch.ones(50), classes, class_weight, 4)
            assert torch.equal(found, expected)


def test_copies_have_their_own_weights():
    _, model = built('minkunet')
    other = copy.deepcopy(model)
    assert other.head._sample_weighting[0] is other.sample_weighting is not model.sample_weighting
    expected = run(model, 'minkunet', [0.9, 0.2, 0.5])[0]
    found = run(other, 'minkunet', [0.9, 0.2, 0.5])[0]
    assert torch.equal(expected['loss_sem_seg'], found['loss_sem_seg'])
    torch.testing.assert_close(other.sample_weighting.last_weights, torch.tensor([0.9, 0.2, 0.5]))
    assert type(model.head).__name__ == 'MinkUNetHead'


class Detector(Host):
    """As those of mmdet3d: ``forward`` calls ``loss``, and so may others."""

    def loss(self, batch_inputs, batch_data_samples):
        return self.head.loss(*self.arguments(batch_data_samples))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.loss(inputs, data_samples) if mode == 'loss' else self.features.sum()


@pytest.mark.parametrize('mode', ['exact', 'batch_mean'])
def test_a_loss_past_forward_is_weighted_once_as_well(mode):
    plain, model = built('anchors', mode=mode)
    detector = Detector(plain.head, plain.features.detach().clone())
    detector.load_state_dict(plain.state_dict())
    weighted = WithSampleWeights(copy.deepcopy(detector), eta=0.0, gamma=1.0, mode=mode)
    found = samples('anchors', [0.9, 0.2, 0.5])
    expected = model({}, found, mode='loss')
    for each in (weighted, copy.deepcopy(weighted), pickle.loads(pickle.dumps(weighted))):
        assert isinstance(each, Detector)
        for losses in (each.loss({}, found), each.loss({}, batch_data_samples=found), each({}, found, mode='loss')):
            assert losses.keys() == expected.keys()
            for key, value in losses.items():
                torch.testing.assert_close(value, expected[key])
        assert each.sample_weighting.current is None
    with pytest.raises(ValueError, match='data_samples'):
        weighted.loss({}, [])


def test_likelihoods_of_a_table():
    known = SampleLikelihood.from_labels([0, 0, 1])
    _, model = built('minkunet', likelihood=known, eta=0.5, gamma=5.0, normalize='mean')
    run(model, 'minkunet', [0.0, 0.0, 0.0])
    torch.testing.assert_close(
        model.sample_weighting.last_weights.double(), torch.from_numpy(known.weights(0.5, 5, 'mean')), atol=1e-6, rtol=0
    )
    _, model = built('minkunet', likelihood={0: 1.0, 1: 0.5})
    with pytest.raises(ValueError, match='not among the 2'):
        run(model, 'minkunet', [0.0, 0.0, 0.0])


def test_outside_of_training_nothing_is_asked_for():
    _, model = built('minkunet', likelihood={7: 1.0})
    assert model({}, None, mode='tensor').shape == ()


def test_heads_that_are_not_known():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss_cls = nn.MSELoss()

        def loss(self, features, samples):
            return dict(loss=self.loss_cls(features[0], features[0] + 2), acc=torch.ones(()))

    model = WithSampleWeights(Host(Head(), torch.zeros(1, 2)), eta=0.0, gamma=1.0)
    found = model({}, samples('anchors', [0.25]), mode='loss')
    assert found['loss'].item() == 1.0  # 4 x 0.25
    assert found['acc'].item() == 1.0
    with pytest.raises(ValueError, match='Head cannot be weighted'):
        model({}, samples('anchors', [0.25, 0.5]), mode='loss')


def test_bad_input():
    _, model = built('minkunet')
    with pytest.raises(ValueError, match='wrap it once'):
        WithSampleWeights(model)
    with pytest.raises(ValueError, match='whole data set'):
        built('minkunet', normalize='mean')
    with pytest.raises(ValueError, match='mode'):
        built('minkunet', mode='mean')
    with pytest.raises(ValueError, match='eta'):
        built('minkunet', eta=-1.0)
    found = samples('minkunet', [0.5, 0.5, 0.5])
    del found[1].sample_likelihood
    with pytest.raises(ValueError, match='SampleValues'):
        model({}, found, mode='loss')
    with pytest.raises(ValueError, match='from 0 to 1'):
        run(model, 'minkunet', [-0.5, 0.5, 0.5])
    with pytest.raises(ValueError, match='data_samples'):
        model({}, None, mode='loss')
