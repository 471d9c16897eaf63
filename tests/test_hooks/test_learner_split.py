# SPDX-License-Identifier: Apache-2.0
"""Splits in a real Runner: when, what of the optimizer, resume to the last bit, bad input."""

import itertools

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from clusterplug import compat
from clusterplug.hooks import LearnerSplitHook
from clusterplug.hooks.learner_split import simplified_silhouette
from clusterplug.registry import DATASETS

NUMBER = itertools.count()


@DATASETS.register_module(name='LearnerSplitBlobs', force=True)
class Blobs:
    """Eight classes in 16 dimensions."""

    metainfo = {}

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(128) % 8
        self.x = 2 * torch.randn(8, 16, generator=generator)[self.labels]
        self.x += torch.randn(128, 16, generator=generator)

    def __len__(self):
        return 128

    def __getitem__(self, index):
        return dict(inputs=self.x[index], data_samples=dict(gt_label=int(self.labels[index]), sample_idx=index))


def build(folder, epochs, resume=False, split=None, refresh=True):
    compat.apply_all()  # torch.load of checkpoints
    hooks = [dict(type='clusterplug.LearnerSplitHook', num_clusters=8, **{**dict(
        patience=1, min_size=6, min_keep=2, threshold=0.3, num_rows=64), **(split or {})})]  # fmt: skip
    if refresh:
        hooks.append(
            dict(
                type='clusterplug.ClusterRefreshHook',
                estimator=dict(type='KMeans', n_clusters=1),
                table='table',
                column='learner',
            )
        )
    config = Config(
        dict(
            work_dir=str(folder),
            experiment_name=f'split_{next(NUMBER)}',
            log_level='WARNING',
            model=dict(
                type='clusterplug.SubspaceMetricModel',
                backbone=None,
                num_samples=128,
                head=dict(type='clusterplug.SubspaceLearnerHead', in_channels=16, embed_dims=24),
                loss=dict(type='clusterplug.MarginLoss'),
            ),
            train_dataloader=dict(
                batch_size=32,
                num_workers=0,
                dataset=dict(type='clusterplug.LearnerSplitBlobs'),
                sampler=dict(type='DefaultSampler', shuffle=True),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type='Adam', lr=1e-2)),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1), logger=None),
            custom_hooks=hooks,
            randomness=dict(seed=0),
            resume=resume,
        )
    )
    return Runner.from_cfg(config)


def hook_of(runner):
    return next(each for each in runner.hooks if isinstance(each, LearnerSplitHook))


@pytest.mark.slow
def test_splits_and_resumes(tmp_path):
    whole = build(tmp_path / 'whole', 10)
    whole.train()
    head = whole.model.head
    assert head.num_learners >= 2
    sizes = torch.bincount(head.partition)
    assert sizes.sum() == 24
    assert sizes.min() >= 1
    labels = whole.model.table['learner']
    assert int(labels.max()) == head.num_learners - 1  # the clusters follow
    assert not head._forward_hooks

    build(tmp_path / 'parts', 5).train()
    resumed = build(tmp_path / 'parts', 10, resume=True)
    resumed.train()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert hook_of(resumed).state['best'] == hook_of(whole).state['best']


def test_new_rows_have_no_moments(tmp_path):
    runner = build(tmp_path, 3, split=dict(patience=99))
    runner.train()
    hook, head = hook_of(runner), runner.model.head
    labels = torch.arange(32) % 8
    loss = runner.model.loss(head(torch.randn(32, 16, generator=torch.Generator().manual_seed(0))), labels)
    loss.backward()
    state = runner.optim_wrapper.optimizer.state[head.fc.weight]
    before = state['exp_avg'].clone()
    hook._split(runner, head)
    new = head.partition == 1
    assert new.any()
    assert (state['exp_avg'][new] == 0).all()
    assert torch.equal(state['exp_avg'][~new], before[~new])


def test_nothing_is_split_where_it_must_not(tmp_path):
    for name, split in dict(small=dict(min_size=24), few=dict(min_keep=24), fine=dict(finetune_begin=0)).items():
        runner = build(tmp_path / name, 4, split=split)
        runner.train()
        assert runner.model.head.num_learners == 1
        assert runner.model.finetune == (name == 'fine')


@pytest.mark.parametrize(('min_delta', 'expected'), [(0.0, []), (0.02, [2, 5])])
def test_a_score_that_creeps_stands_still(tmp_path, monkeypatch, min_delta, expected):
    """0.01 more in each epoch: with 0.02 to be gained, epochs 0 and 3 are new bests, and two epochs later it splits."""
    runner = build(tmp_path, 6, split=dict(patience=2, min_delta=min_delta), refresh=False)
    found = []
    monkeypatch.setattr(LearnerSplitHook, '_value', lambda hook, runner: 0.01 * runner.epoch)

    def split(hook, runner, head):
        found.append(runner.epoch)
        hook.state['explore'] = False

    monkeypatch.setattr(LearnerSplitHook, '_split', split)
    runner.train()
    assert found == expected


def test_score():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    blobs = x * 0.01 + 5 * torch.eye(4, 3)[torch.arange(40) % 4]
    assert simplified_silhouette(blobs, 4) > 0.95 > 0.7 > simplified_silhouette(x, 4)


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match='num_clusters'):
        LearnerSplitHook(1)
    with pytest.raises(ValueError, match='score'):
        LearnerSplitHook(8, score='mean')
    with pytest.raises(ValueError, match='head must be'):
        build(tmp_path, 1, split=dict(head='neck')).train()
    hook = LearnerSplitHook(8, monitor='nmi')
    hook.after_val_epoch(None, {'acc': 1.0})
    with pytest.raises(ValueError, match='monitor'):
        hook._value(None)
