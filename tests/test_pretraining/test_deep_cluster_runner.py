# SPDX-License-Identifier: Apache-2.0
"""SwAV and DeepCluster-v2 on images in a real Runner: clusters of every epoch, stop, resume, the same numbers."""

import itertools

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

from clusterplug import compat

_RUNS = itertools.count()


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Two kinds of images: horizontal and vertical stripes."""
    g = np.random.default_rng(0)
    x = g.integers(0, 60, (24, 16, 16, 3), dtype=np.uint8)
    x[:12, ::4] += 150
    x[12:, :, ::4] += 150
    path = tmp_path_factory.mktemp('images') / 'stripes.npz'
    np.savez(path, X=x, y=np.repeat([0, 1], 12))
    return str(path)


def build(work_dir, images, max_epochs, loss, hooks=(), num_prototypes=4, resume=False, **model):
    from mmengine.config import Config
    from mmengine.runner import Runner

    compat.apply_all()
    crops = dict(type='clusterplug.MultiCrop', num_crops=(2, 2), sizes=(16, 8), scales=((0.5, 1), (0.2, 0.5)),
                 channel_order='rgb')  # fmt: skip
    config = dict(
        default_scope='mmengine', work_dir=str(work_dir), experiment_name=f'images_{next(_RUNS)}', resume=resume,
        model=dict(
            type='clusterplug.MultiViewModel', loss=loss,
            backbone=dict(type='mmdet3d.SECOND', in_channels=3, out_channels=[8, 16], layer_nums=[0, 0],
                          layer_strides=[2, 2]),
            head=dict(type='clusterplug.PrototypeHead', in_channels=16, num_prototypes=num_prototypes),
            data_preprocessor=dict(type='clusterplug.MultiViewPreprocessor', mean=[128] * 3, std=[64] * 3), **model,
        ),
        train_dataloader=dict(
            batch_size=8, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
            dataset=dict(type='clusterplug.ImageArrays', ann_file=images, images='X', labels='y', pipeline=[
                crops, dict(type='clusterplug.PackViews'),
            ]),
        ),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=max_epochs),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        custom_hooks=[dict(type='clusterplug.EpochSeedHook'), *hooks], randomness=dict(seed=0), launcher='none',
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1),
                           checkpoint=dict(type='CheckpointHook', interval=1)), log_level='WARNING',
    )  # fmt: skip
    return Runner.from_cfg(Config(config))


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def train(*args, **options):
    runner = build(*args, **options)
    runner.train()
    return runner


def test_deep_cluster_refreshes_and_resumes(images, tmp_path):
    still = dict(dataset=dict(type='clusterplug.ImageArrays', ann_file=images, images='X', pipeline=[
        dict(type='clusterplug.PackViews', channel_order='rgb'),
    ]))  # fmt: skip
    refresh = dict(
        type='clusterplug.ClusterRefreshHook', estimator=[dict(type='KMeans', n_clusters=4)] * 2,
        table='loss_function.table', column=['label_0', 'label_1'], features='embed_samples', dataloader=still,
        prototypes=['head.prototypes.0', 'head.prototypes.1'],
    )  # fmt: skip
    options = dict(loss=dict(type='clusterplug.DeepClusterLoss', num_samples=24, num_heads=2), num_prototypes=[4, 4],
                   hooks=[refresh, dict(type='clusterplug.FreezeParamsHook', iters=10**9)])  # fmt: skip
    straight = train(tmp_path / 'straight', images, 3, **options)
    train(tmp_path / 'stopped', images, 2, **options)
    resumed = train(tmp_path / 'stopped', images, 3, resume=True, **options)
    same(straight.model.state_dict(), resumed.model.state_dict())
    table = straight.model.loss_function.table
    assert table.written.all()
    assert 0 <= int(table['label_1'].min()) <= int(table['label_1'].max()) < 4
    saved = [torch.load(tmp_path / 'straight' / f'epoch_{n}.pth', weights_only=False)['state_dict'] for n in (1, 2)]
    # the centers of each epoch's clustering, which no step of the optimizer moves
    assert not torch.equal(saved[0]['head.prototypes.0'], saved[1]['head.prototypes.0'])
    torch.testing.assert_close(saved[0]['head.prototypes.0'].norm(dim=1), torch.ones(4))
    log = straight.message_hub.log_scalars
    assert np.isfinite(log['train/loss_deepcluster'].data[0]).all()
    assert log['train/ln_k'].data[0][-1] == pytest.approx(np.log(4))


def test_swav_with_amp_and_accumulated_gradients(images, tmp_path):
    """bf16 on the CPU; two batches a step, as the documents say for large batches."""
    runner = build(tmp_path, images, 2, loss=dict(type='clusterplug.SwAVLoss'))
    wrapper = dict(type='AmpOptimWrapper', dtype='bfloat16', accumulative_counts=2,
                   optimizer=dict(type='SGD', lr=0.1))  # fmt: skip
    runner.optim_wrapper = wrapper
    start = runner.model.backbone.blocks[0][0].weight.detach().clone()
    runner.train()
    assert not torch.equal(runner.model.backbone.blocks[0][0].weight, start)
    assert np.isfinite(runner.message_hub.log_scalars['train/loss_swav'].data[0]).all()
