# SPDX-License-Identifier: Apache-2.0
"""The schedule of weight and momentum: a function of the iteration, also after a resume."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')

from mmengine.hooks import Hook

from clusterplug.hooks import ClusterScheduleHook, ClusterStatsHook
from clusterplug.losses import PointClusterLoss
from clusterplug.testing import build_tiny_runner, write_tiny_semantickitti

LOSS = dict(type='clusterplug.PointClusterLoss', num_clusters=3, embed_dims=8, queue_len=4, momentum=0.9)


def wrap(model):
    return dict(type='clusterplug.WithClustering', model=model, loss=LOSS)


def test_weight_by_hand():
    hook = ClusterScheduleHook(begin=2, ramp_iters=3)
    assert [hook.weight_factor(i) for i in range(7)] == [0, 0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert ClusterScheduleHook().weight_factor(0) == 1


def test_momentum_by_hand():
    hook = ClusterScheduleHook(start_momentum=0.5, momentum_iters=4)
    assert hook.momentum(0, 0.9) == 0.5
    assert hook.momentum(2, 0.9) == pytest.approx(0.7)
    assert hook.momentum(4, 0.9) == hook.momentum(100, 0.9) == 0.9
    assert ClusterScheduleHook().momentum(0, 0.9) == 0.9


@pytest.mark.parametrize('bad', [dict(begin=-1), dict(ramp_iters=1.5), dict(momentum_iters=-1), dict(start_momentum=2)])
def test_bad_arguments_name_themselves(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ClusterScheduleHook(**bad)


def test_without_a_loss_it_says_so(tmp_path):
    data = write_tiny_semantickitti(tmp_path / 'data')
    runner = build_tiny_runner(tmp_path / 'w', data, hooks=[dict(type='clusterplug.ClusterScheduleHook')])
    with pytest.raises(ValueError, match='no PointClusterLoss'):
        runner.train()


class Watch(Hook):
    """Note weight and momentum in each step; stop with an error in one."""

    def __init__(self, seen, stop=None):
        self.seen, self.stop = seen, stop

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = runner.model.clustering.loss
        self.seen.append((runner.iter, loss.weight_factor, loss.momentum))
        if runner.iter == self.stop:
            raise KeyboardInterrupt


SETTINGS = dict(begin=1, ramp_iters=3, start_momentum=0.5, momentum_iters=4)


def scheduled(work_dir, data, stop=None, **options):
    seen = []
    hooks = [dict(type='clusterplug.ClusterScheduleHook', **SETTINGS)]
    runner = build_tiny_runner(work_dir, data, wrap=wrap, hooks=hooks, **options)
    runner.register_hook(Watch(seen, stop))
    return runner, seen


def expected(iterations):
    hook = ClusterScheduleHook(**SETTINGS)
    return [(i, hook.weight_factor(i), pytest.approx(hook.momentum(i, 0.9))) for i in iterations]


def test_in_a_runner_and_after_a_resume(tmp_path):
    data = write_tiny_semantickitti(tmp_path / 'data')
    first, seen = scheduled(tmp_path / 'w', data, max_epochs=1)
    first.train()
    loss = first.model.clustering.loss
    assert seen == expected([0, 1])
    assert (loss.weight_factor, loss.momentum) == (1.0, 0.9)
    # weight 0 in iteration 0, and yet the memory has learnt
    assert int(loss.memory.step) == 2
    second, seen = scheduled(tmp_path / 'w', data, max_epochs=2, resume=True)
    second.train()
    assert seen == expected([2, 3])
    assert (second.model.clustering.loss.weight_factor, second.model.clustering.loss.momentum) == (1.0, 0.9)


def test_after_an_error_the_next_training_has_the_values_of_the_config(tmp_path):
    data = write_tiny_semantickitti(tmp_path / 'data')
    first, _ = scheduled(tmp_path / 'w', data, stop=1, max_epochs=2)
    pytest.raises(KeyboardInterrupt, first.train)
    second, seen = scheduled(tmp_path / 'w2', data, max_epochs=1)
    second.model = first.model
    second.train()
    assert seen == expected([0, 1])
    assert second.model.clustering.loss.momentum == 0.9


def small(momentum=0.99):
    model = nn.Module()
    model.clustering = nn.Module()
    model.clustering.loss = PointClusterLoss(2, 4, num_clusters=2, embed_dims=4, momentum=momentum)
    return SimpleNamespace(model=model, iter=0, max_iters=50), model.clustering.loss


def test_values_set_between_trainings_stay():
    runner, loss = small()
    hook = ClusterScheduleHook(start_momentum=0.1, momentum_iters=9, begin=3)
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    assert loss.weight_factor == 0
    loss.momentum, loss.weight_factor = 0.7, 0.5  # after an error, by hand
    again = ClusterScheduleHook()
    again.before_train(runner)
    again.before_train_iter(runner, 0)
    assert loss.momentum == 0.7
    again.after_train(runner)
    assert (loss.momentum, loss.weight_factor) == (0.7, 0.5)


def test_numpy_integers_are_taken_and_bools_are_not():
    hook = ClusterScheduleHook(begin=np.int64(2), ramp_iters=np.uint8(3))
    assert hook.weight_factor(3) == 0.5
    for name in ('begin', 'ramp_iters', 'momentum_iters', 'start_momentum'):
        with pytest.raises(ValueError, match=name):
            ClusterScheduleHook(**{name: True})
    for bad in (True, 0, 2.0):
        with pytest.raises(ValueError, match='interval'):
            ClusterStatsHook(interval=bad)
    assert ClusterStatsHook(interval=np.int32(7)).interval == 7


def test_a_begin_after_the_end_is_named():
    runner, _ = small()
    with pytest.warns(UserWarning, match='begin is 50, and the training has 50 iterations'):
        ClusterScheduleHook(begin=50).before_train(runner)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ClusterScheduleHook(begin=49).before_train(runner)
