# SPDX-License-Identifier: Apache-2.0
"""MultiViewModel over scans: MinkUNet in a real Runner, regions and points, resume, the segmentor that it is for."""

import copy

import pytest
import torch

pytest.importorskip('mmdet3d')
pytest.importorskip('spconv')

from clusterplug.testing import build_tiny_runner, tiny_config, tiny_model, write_tiny_semantickitti

VIEWS = dict(type='clusterplug.PointViews', num_matches=64, regions='cells', region_size=3.0, num_regions=16)
STILL = dict(crop=(1, 1), drop=(0, 0), rot_range=(0, 0), scale_range=(1, 1), flip=0, jitter=0)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_tiny_semantickitti(tmp_path_factory.mktemp('data'), num_points=1500)


def model_config(embed='regions', **options):
    segmentor = tiny_model()
    head = dict(type='clusterplug.PrototypeHead', in_channels=8, num_prototypes=8,
                projector=dict(type='clusterplug.ProjectionHead', in_channels=8, out_channels=6, hidden_channels=[8],
                               norm='batch'))  # fmt: skip
    return dict(
        type='clusterplug.MultiViewModel', backbone=segmentor['backbone'], head=head, embed=embed,
        loss=dict(type='clusterplug.SwAVLoss'),
        data_preprocessor=dict(type='clusterplug.MultiViewPreprocessor', points=segmentor['data_preprocessor']),
        **options,
    )  # fmt: skip


def runner_of(work_dir, data, embed='regions', views=None, model=None, **options):
    from mmengine.runner import Runner

    from clusterplug import compat

    compat.apply_all()
    config = tiny_config(work_dir, data, **options)
    config.model = model or model_config(embed)
    pipeline = config.train_dataloader.dataset.pipeline
    config.train_dataloader.dataset.pipeline = [
        *pipeline[:3], {**VIEWS, **(views or {})}, dict(type='clusterplug.PackViews'),
    ]  # fmt: skip
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'test_dataloader', 'test_cfg', 'test_evaluator'):
        config[key] = None
    return Runner.from_cfg(config)


def processed(runner):
    batch = next(iter(runner.build_dataloader(runner.cfg.train_dataloader)))
    return runner.model.data_preprocessor(batch, True)


@pytest.mark.parametrize('embed', ['global', 'regions', 'points'])
def test_rows_of_the_views_belong_together(data, tmp_path, embed):
    """Without augmentation both views are the same scan, so that every row has the same feature in both."""
    runner = runner_of(tmp_path, data, embed, STILL)
    model, inputs = runner.model.eval(), processed(runner)['inputs']
    with torch.no_grad():
        first, second = model(inputs)
    assert len(first) == {'global': 2, 'points': 128}.get(embed, sum(inputs['num_regions']))
    assert first.std(0).max() > 0
    torch.testing.assert_close(first, second)


def test_points_and_regions_are_read_from_the_right_voxels(data, tmp_path):
    runner = runner_of(tmp_path, data, 'points')
    model, inputs = runner.model.eval(), processed(runner)['inputs']
    voxels = inputs['voxels']
    start, number = 0, len(inputs['scans']) // 2
    for n, cloud in enumerate(inputs['scans']):
        rows = voxels['rows'][start : start + len(cloud)]
        start += len(cloud)
        assert (voxels['scan_of'][rows] == n).all()
        cells = torch.round(cloud[:, :3] / 0.5).int()
        assert torch.equal(voxels['coors'][rows, 1:].int(), cells - cells.amin(0))
    with torch.no_grad():
        features = model.backbone(voxels['voxels'], voxels['coors'])
        points = model(inputs)
        model.embed = 'regions'
        regions = model(inputs)
    first_of = [0]
    for cloud in inputs['scans']:
        first_of.append(first_of[-1] + len(cloud))
    at = 0
    for scan in range(number):
        for view in range(2):
            start, end = first_of[view * number + scan], first_of[view * number + scan + 1]
            match = inputs['matches'][scan][:, view]
            expected = features[voxels['rows'][start:end][match]]
            torch.testing.assert_close(points[view][64 * scan : 64 * scan + 64], expected)
            for region in range(inputs['num_regions'][scan]):
                members = voxels['rows'][start:end][inputs['regions'][view][scan] == region]
                torch.testing.assert_close(regions[view][at + region], features[members].mean(0))
        at += inputs['num_regions'][scan]


def test_a_run_stops_and_resumes_bit_for_bit_and_its_backbone_loads(data, tmp_path):
    hooks = [dict(type='clusterplug.EpochSeedHook'), dict(type='clusterplug.FreezeParamsHook', iters=3),
             dict(type='clusterplug.QueueStartHook', begin=1)]  # fmt: skip
    options = dict(hooks=hooks, train_dataloader__num_workers=0)
    model = model_config(queue=dict(type='clusterplug.FeatureQueue', length=24, embed_dims=6),
                         teacher=dict(type='ExponentialMovingAverage', momentum=0.1))  # fmt: skip

    def train(name, epochs, **more):
        runner = runner_of(tmp_path / name, data, model=copy.deepcopy(model), max_epochs=epochs, **options, **more)
        start = runner.model.head.prototypes.detach().clone()
        runner.train()
        return runner, start

    straight, start = train('straight', 3)
    train('stopped', 2)
    resumed, _ = train('stopped', 3, resume=True)
    one, other = straight.model.state_dict(), resumed.model.state_dict()
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
    assert straight.model.queues[0].full
    # frozen for three steps, trained in the other three
    saved = [torch.load(tmp_path / 'straight' / f'epoch_{n}.pth', weights_only=False)['state_dict'] for n in (1, 2, 3)]
    torch.testing.assert_close(saved[0]['head.prototypes'], start)
    assert (saved[1]['head.prototypes'] - start).abs().max() > 1e-6
    assert len(saved[0]['queues.0.rows']) == 24
    assert int(saved[0]['queues.0.count']) == 0
    checkpoint = str(tmp_path / 'straight' / 'epoch_3.pth')
    for name, more in (
        ('load_from', dict(load_from=checkpoint)),
        (
            'init_cfg',
            dict(model__backbone__init_cfg=dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')),
        ),
    ):
        segmentor = build_tiny_runner(tmp_path / name, data, **more)
        segmentor._init_model_weights()
        segmentor.load_or_resume()
        for key, value in segmentor.model.backbone.state_dict().items():
            assert torch.equal(value, one[f'backbone.{key}']), (name, key)
        assert type(segmentor.model).__name__ == 'MinkUNet'


def test_prediction_on_one_view_carries_labels(data, tmp_path):
    runner = runner_of(tmp_path, data, 'regions', {**STILL, 'num_views': 1, 'regions': None})
    ready = processed(runner)
    samples = runner.model.eval()(**ready, mode='predict')
    assert [tuple(each.features.shape) for each in samples] == [(64, 8)] * 2
    assert samples[0].embeddings.shape == (64, 6)
    assert samples[0].labels.shape == (64,)


def test_backbones_of_points():
    from mmdet3d.registry import MODELS

    from clusterplug import compat
    from clusterplug.heads import PrototypeHead
    from clusterplug.losses import SwAVLoss
    from clusterplug.pretraining import MultiViewModel

    compat.apply_all()
    backbone = MODELS.build(dict(
        type='PointNet2SASSG', in_channels=4, num_points=(32, 16), radius=(0.5, 1.0), num_samples=(8, 8),
        sa_channels=((8, 8), (8, 12)), fp_channels=(),
    ))  # fmt: skip
    g = torch.Generator().manual_seed(0)
    scans = [torch.rand(64, 4, generator=g) for _ in range(4)]
    inputs = dict(scans=scans, num_views=2, matches=[torch.arange(10)[:, None].expand(-1, 2)] * 2)
    for embed, number in (('global', 2), ('points', 20)):
        model = MultiViewModel(backbone, PrototypeHead(12, 2), SwAVLoss(), embed=embed)
        assert model(inputs)[0].shape == (number, 12)
        assert torch.isfinite(model(inputs, mode='loss')['loss_swav'])
    with pytest.raises(ValueError, match='same number of points'):
        model({**inputs, 'scans': [*scans[:3], scans[3][:5]]})


def test_bad_input(data, tmp_path):
    from clusterplug.pretraining import MultiViewPreprocessor

    points = tiny_model()['data_preprocessor']
    with pytest.raises(ValueError, match='max_voxels'):
        MultiViewPreprocessor(points={**points, 'max_voxels': 100})
    preprocessor = MultiViewPreprocessor(points=points)
    with pytest.raises(ValueError, match='without any'):
        preprocessor(dict(inputs=dict(views=[[torch.zeros(0, 4)], [torch.zeros(3, 4)]])))
    hard = MultiViewPreprocessor(points={**points, 'voxel_type': 'dynamic'})
    with pytest.raises(ValueError, match="voxel_type 'minkunet'"):
        hard(dict(inputs=dict(views=[[torch.rand(5, 4)]])))
    runner = runner_of(tmp_path, data, 'regions', dict(regions=None))
    ready = processed(runner)
    with pytest.raises(ValueError, match="needs regions; set regions='cells'"):
        runner.model(**ready)
    with pytest.raises(ValueError, match='one view a scan, got 2'):
        runner.model(**ready, mode='predict')
    runner.register_hook(dict(type='clusterplug.QueueStartHook', begin=1))
    with pytest.raises(ValueError, match='found no queue'):
        runner.train()
