"""The schedule of weight and momentum: a function of the iteration, also after a resume."""

import pytest

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')

from clusterplug.hooks import ClusterScheduleHook
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


def test_in_a_runner_and_after_a_resume(tmp_path):
    data = write_tiny_semantickitti(tmp_path / 'data')
    hooks = [dict(type='clusterplug.ClusterScheduleHook', begin=1, ramp_iters=3, start_momentum=0.5, momentum_iters=4)]
    first = build_tiny_runner(tmp_path / 'w', data, wrap=wrap, hooks=hooks, max_epochs=1)
    first.train()
    loss = first.model.clustering.loss
    assert loss.weight_factor == 0.25  # iteration 1
    # weight 0 in iteration 0, and yet the memory has learnt
    assert int(loss.memory.step) == 2
    second = build_tiny_runner(tmp_path / 'w', data, wrap=wrap, hooks=hooks, max_epochs=2, resume=True)
    second.train()
    loss = second.model.clustering.loss
    assert loss.weight_factor == 0.75  # iteration 3
    assert loss.momentum == pytest.approx(ClusterScheduleHook(start_momentum=0.5, momentum_iters=4).momentum(3, 0.9))
