# SPDX-License-Identifier: Apache-2.0
"""WithClustering around models of any kind: mmsegmentation, loops of one's own, other dtypes, labels from 1."""

import contextlib
import warnings

import pytest
import torch
from test_regions import ImageSegmentor, image_samples
from test_with_clustering import TERMS, Segmentor, _data, _samples, _wrapped
from torch import nn

from clusterplug.attach import WithClustering

LOSS = dict(type='clusterplug.PointClusterLoss', num_clusters=2, embed_dims=4)


@contextlib.contextmanager
def spied(model):
    seen = []
    handle = model.clustering.loss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    yield seen
    handle.remove()


@pytest.fixture(scope='module')
def segmenter():
    """A segmenter of mmsegmentation with the three lines around it, and what it gets for two images of 64 x 96."""
    pytest.importorskip('mmseg', reason='needs mmsegmentation: pip install mmsegmentation')
    import mmseg.models  # noqa: F401
    from mmengine.registry import init_default_scope
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    init_default_scope('mmseg')
    norm = dict(type='BN')
    base = dict(
        type='mmseg.EncoderDecoder', data_preprocessor=dict(type='mmseg.SegDataPreProcessor', size=(64, 96)),
        backbone=dict(type='mmseg.ResNet', depth=18, base_channels=8, stem_channels=8, norm_cfg=norm),
        decode_head=dict(
            type='mmseg.FCNHead', in_channels=64, in_index=3, channels=16, num_convs=1, num_classes=4, norm_cfg=norm,
            loss_decode=dict(type='mmseg.CrossEntropyLoss'),
        ),
        train_cfg=dict(), test_cfg=dict(mode='whole'),
    )  # fmt: skip
    torch.manual_seed(0)
    model = WithClustering(base, dict(LOSS)).train()
    labels = torch.arange(12).remainder(4).view(2, 2, 3).repeat_interleave(32, 1).repeat_interleave(32, 2)
    labels[1, :, :8] = 255
    samples = []
    for each in labels:
        sample = SegDataSample(metainfo=dict(img_shape=(64, 96), ori_shape=(64, 96)))
        sample.gt_sem_seg = PixelData(data=each[None])
        samples.append(sample)
    yield model, torch.randn(2, 3, 64, 96), samples, labels
    init_default_scope('mmdet3d')


def test_a_segmenter_of_mmsegmentation(segmenter):
    model, images, samples, labels = segmenter
    assert model.clustering.embedding.path == 'decode_head.conv_seg:input'
    assert (model.clustering.loss.num_classes, model.clustering.loss.ignore_index) == (4, 255)
    with spied(model) as seen:
        for _ in range(2):
            losses = model(images, samples, mode='loss')
    assert set(losses) > TERMS
    features, found, predictions, rows = seen[0]
    assert features.shape == (2 * 2 * 3, 16)  # an output stride of 32
    assert torch.equal(found, labels[:, 16::32, 16::32].flatten())
    assert predictions.shape == found.shape
    assert rows is None
    total, _ = model.parse_losses(losses)
    total.backward()
    assert model.backbone.conv1.weight.grad.any()
    assert float(losses['loss_cluster_center'].detach()) > 0


@pytest.mark.parametrize('options', [dict(regions='cell'), dict(assigner=dict(position_period=4))])
def test_regions_and_positions_in_images(options):
    model = WithClustering(ImageSegmentor(), {**LOSS, **options}).train()
    labels = torch.zeros(2, 32, 48, dtype=torch.int64)
    labels[:, 8:16, 8:16] = 1
    with spied(model) as seen:
        losses = model(torch.randn(2, 3, 32, 48), image_samples(labels), mode='loss')
    assert set(losses) > TERMS
    more = seen[0][4:]
    if 'regions' in options:
        regions = more[0].view(2, 8, 12)
        # the background around the square is one part, the square another, in each image
        assert [len(each.unique()) for each in regions] == [2, 2]
        assert len(regions.unique()) == 4
        assert (regions[0, 2:4, 2:4] == regions[0, 2, 2]).all()
    else:
        assert torch.equal(more[1].view(2, 8, 12, 2)[1, 5, 7], torch.tensor([5, 7]))
        assert model.clustering.loss.positions.moments.any()


def test_one_output_for_two_classes():
    model = ImageSegmentor()
    model.decode_head.num_classes, model.decode_head.conv_seg = 2, nn.Conv2d(6, 1, 1)
    model = WithClustering(model, dict(LOSS)).train()
    with spied(model) as seen:
        model(torch.randn(2, 3, 32, 48), image_samples(torch.randint(0, 2, (2, 32, 48))), mode='loss')
    assert len(seen[0][2].unique()) == 2


def test_a_tap_without_a_grid_has_no_positions():
    model = _wrapped(loss=dict(assigner=dict(position_period=2))).train()
    with pytest.raises(ValueError, match=r"'decode_head.conv_seg:input' has no grid.*without position_period"):
        model(*_data(), mode='loss')


@pytest.mark.parametrize('kind', [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_dtype(kind):
    model = _wrapped().train().to(kind)
    points, samples = _data()
    for _ in range(2):
        losses = model(points.to(kind), samples, mode='loss')
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert {losses[name].dtype for name in TERMS} == {torch.float32}
    assert model.clustering.loss.memory.center_store.dtype == torch.float32
    assert model.backbone['stem'].weight.grad.dtype == kind
    assert model.backbone['stem'].weight.grad.any()


def test_autocast():
    model = _wrapped().train()
    points, samples = _data()
    with torch.autocast('cpu', torch.bfloat16):
        losses = model(points, samples, mode='loss')
    assert {losses[name].dtype for name in TERMS} == {torch.float32}


@pytest.mark.parametrize('ignored', [0, -100, 2**31 - 1])
def test_labels_from_one_and_ignored_labels_of_any_size(ignored):
    torch.manual_seed(0)
    model = WithClustering(Segmentor(num_classes=4, ignore_index=ignored), dict(LOSS)).train()
    points, _ = _data()
    labels = torch.arange(60) % 3 + 1
    labels[::5] = ignored
    for _ in range(2):
        losses = model(points, _samples(labels[:20], labels[20:]), mode='loss')
    assert all(value.isfinite() for value in losses.values())
    memory = model.clustering.loss.memory
    assert memory.num_seeded.tolist() == [0, 2, 2, 2]
    assert sum(value.numel() for value in model.clustering.loss.buffers()) < 10_000


class Logits(nn.Module):
    """A model whose losses are computed by the loop around it."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.backbone(x).relu())


def test_a_loop_that_computes_losses_itself_is_told_once_how_to_add_this_one():
    model = WithClustering(Logits(), {**LOSS, 'num_classes': 3}, embedding='backbone').train()
    points = torch.randn(60, 4)
    with pytest.warns(UserWarning, match=r"without mode='loss'.*model\.clustering\.watch\(\)"):
        model(points)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model(points)
        model.eval()(points)
        with torch.no_grad():
            model.train()(points)
        # and as it says
        labels = torch.arange(60) % 3
        for _ in range(2):
            with model.clustering.watch():
                output = model(points)
                features = model.clustering.embedding.take().features
            loss = sum(model.clustering.loss(features, labels, output).values())
    loss.backward()
    assert model.backbone.weight.grad.any()
    assert int(model.clustering.loss.memory.step) == 2
