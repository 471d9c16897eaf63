# SPDX-License-Identifier: Apache-2.0
"""A real MinkUNet on real files: it trains, tests, resumes to the same numbers, and keeps its checkpoint."""

import errno
import os

import numpy as np
import pytest
import torch

from clusterplug.testing import build_tiny_runner, write_tiny_semantickitti


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    return write_tiny_semantickitti(tmp_path_factory.mktemp('data'), num_scans=4, num_points=1500)


def test_files_depend_on_the_seed_alone(tmp_path, data_root):
    again = write_tiny_semantickitti(tmp_path / 'a', num_scans=4, num_points=1500)
    other = write_tiny_semantickitti(tmp_path / 'b', num_scans=4, num_points=1500, seed=1)
    name = 'sequences/00/velodyne/000003.bin'
    assert (again / name).read_bytes() == (data_root / name).read_bytes() != (other / name).read_bytes()
    labels = np.fromfile(again / 'sequences/00/labels/000003.label', np.uint32)
    assert len(labels) == 1500
    assert set(labels & 0xFFFF) == {0, 10, 40, 48, 50, 70, 80}
    assert set((labels >> 16)[labels & 0xFFFF == 10]) == {1, 2, 3}


mmdet3d = pytest.importorskip('mmdet3d')


def weights(runner):
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


def test_training_lowers_the_loss_and_testing_evaluates(tmp_path, data_root):
    runner = build_tiny_runner(tmp_path, data_root, max_epochs=4)
    runner.train()
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 8
    assert losses[-2:].mean() < 0.8 * losses[:2].mean()
    metrics = runner.test()
    assert 0 < metrics['miou'] <= 1
    assert np.isnan(metrics['bicycle'])  # an absent class


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, data_root):
    whole = build_tiny_runner(tmp_path / 'whole', data_root, max_epochs=2)
    whole.train()
    build_tiny_runner(tmp_path / 'parts', data_root, max_epochs=1).train()
    rest = build_tiny_runner(tmp_path / 'parts', data_root, max_epochs=2, resume=True)
    rest.train()
    assert rest.iter == whole.iter == 4
    wanted = weights(whole)
    for name, value in weights(rest).items():
        assert torch.equal(value, wanted[name]), name
    state = whole.optim_wrapper.state_dict()['state'], rest.optim_wrapper.state_dict()['state']
    assert all(torch.equal(state[0][i]['momentum_buffer'], state[1][i]['momentum_buffer']) for i in state[0])


def test_amp_without_a_gpu(tmp_path, data_root):
    runner = build_tiny_runner(tmp_path, data_root, max_epochs=1, optim_wrapper__type='AmpOptimWrapper')
    runner.train()
    assert all(torch.isfinite(value).all() for value in weights(runner).values())


def test_iteration_loop_hooks_and_wrap(tmp_path, data_root):
    seen = []

    def wrap(model):
        seen.append(model['type'])
        return dict(model, backbone=dict(model['backbone'], base_channels=4))

    runner = build_tiny_runner(tmp_path, data_root, max_iters=3, wrap=wrap, hooks=[dict(type='EMAHook')])
    runner.train()
    assert seen == ['MinkUNet']
    assert runner.iter == 3
    assert runner.model.backbone.conv_input[0][0].out_channels == 4
    assert (tmp_path / 'iter_3.pth').is_file()
    resumed = build_tiny_runner(tmp_path, data_root, max_iters=4, wrap=wrap, hooks=[dict(type='EMAHook')], resume=True)
    resumed.train()
    assert resumed.iter == 4


def test_a_full_disk_keeps_the_previous_checkpoint_and_its_name(tmp_path, data_root, monkeypatch):
    options = dict(max_epochs=2, default_hooks__checkpoint__max_keep_ckpts=1)
    build_tiny_runner(tmp_path, data_root, **dict(options, max_epochs=1)).train()
    first = (tmp_path / 'epoch_1.pth').read_bytes()

    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    runner = build_tiny_runner(tmp_path, data_root, resume=True, **options)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full_disk)
        with pytest.raises(OSError, match='the disk is full'):
            runner.train()
    assert (tmp_path / 'epoch_1.pth').read_bytes() == first
    assert not list(tmp_path.glob('epoch_2*'))
    resumed = build_tiny_runner(tmp_path, data_root, resume=True, **options)
    resumed.train()
    assert resumed.epoch == 2
    assert not (tmp_path / 'epoch_1.pth').exists()  # one is kept, the new one
    assert (tmp_path / 'epoch_2.pth').is_file()
