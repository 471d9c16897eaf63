# SPDX-License-Identifier: Apache-2.0
"""ValueScheduleHook: a value as a function of the iteration, on any path of the model, and back afterwards."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip('mmengine', reason='needs mmengine: pip install clusterplug[mm]')

from clusterplug.hooks import ValueScheduleHook


def runner_of(max_iters=10):
    model = nn.Module()
    model.loss = nn.Module()
    model.loss.momentum = 0.9
    model.loss.register_buffer('mass', torch.tensor(0.5))
    model.layers = nn.ModuleList([nn.Module()])
    model.layers[0].count = 3
    return SimpleNamespace(model=model, iter=0, max_iters=max_iters)


def run(hook, runner, iterations, read=lambda model: model.loss.momentum):
    seen = []
    for runner.iter in iterations:
        hook.before_train_iter(runner, 0)
        seen.append(float(read(runner.model)))
    return seen


def test_shapes_by_hand():
    def values(shape):
        hook = ValueScheduleHook(start=1.0, end=3.0, begin=2, iters=4, shape=shape)
        return [hook.value(i) for i in (0, 2, 4, 5, 6, 99)]

    assert values('linear') == [1, 1, 2, 2.5, 3, 3]
    assert values('cosine') == pytest.approx([1, 1, 2, 1 + (1 + math.sqrt(0.5)), 3, 3])
    ramp = [1 + 2 * math.exp(-5 * (1 - t) ** 2) for t in (0, 0.5, 0.75)]
    assert values('sigmoid') == pytest.approx([1, *ramp, 3, 3])
    assert values('step') == [1, 1, 1, 1, 3, 3]
    assert ValueScheduleHook(start=0.1, end=1.0, iters=100, shape='sigmoid').value(0) == pytest.approx(0.106, abs=1e-3)
    assert ValueScheduleHook(start=0.0, end=1.0, iters=0).value(0) == 1


def test_to_the_end_of_the_training_and_from_what_it_was():
    runner = runner_of(max_iters=5)
    assert run(ValueScheduleHook(end=1.0, shape='linear'), runner, range(5)) == pytest.approx(
        [0.9, 0.925, 0.95, 0.975, 1.0]
    )
    runner = runner_of()
    assert run(ValueScheduleHook(start=0.5, iters=2, shape='linear'), runner, range(4)) == pytest.approx(
        [0.5, 0.7, 0.9, 0.9]
    )


def test_a_resumed_run_goes_on():
    whole = run(ValueScheduleHook(start=0.0, end=1.0, iters=8), runner_of(), range(9))
    assert run(ValueScheduleHook(start=0.0, end=1.0, iters=8), runner_of(), range(5, 9)) == whole[5:]


def test_buffers_and_lists_on_the_path():
    runner = runner_of()
    hook = ValueScheduleHook('loss.mass', start=0.1, end=1.0, iters=2, shape='linear')
    hook.before_train(runner)
    buffer = runner.model.loss.mass
    assert run(hook, runner, range(3), lambda m: m.loss.mass) == pytest.approx([0.1, 0.55, 1.0])
    assert runner.model.loss.mass is buffer
    hook.after_train(runner)
    assert buffer == 0.5
    deep = ValueScheduleHook('layers.0.count', start=0, end=4, iters=4, shape='linear')
    assert run(deep, runner, [2], lambda m: m.layers[0].count) == [2]


def test_the_value_comes_back():
    runner = runner_of()
    hook = ValueScheduleHook(start=0.1, end=0.2, iters=3)
    hook.before_train(runner)
    run(hook, runner, range(2))
    hook.after_train(runner)
    assert runner.model.loss.momentum == 0.9
    run(hook, runner, [1])  # a training that ends with an error
    ValueScheduleHook(start=0.3, end=0.4).before_train(runner)
    assert runner.model.loss.momentum == 0.9
    run(hook, runner, [1])
    runner.model.loss.momentum = 0.7  # by hand
    hook.after_train(runner)
    assert runner.model.loss.momentum == 0.7


@pytest.mark.parametrize(('options', 'error', 'match'), [
    (dict(target='', start=1.0), ValueError, 'target'),
    (dict(target='a..b', start=1.0), ValueError, 'target'),
    (dict(target=3, start=1.0), ValueError, 'target'),
    (dict(), ValueError, 'start and end must not both be None'),
    (dict(start='x'), TypeError, 'start'),
    (dict(start=float('nan')), ValueError, 'start'),
    (dict(start=0.0, begin=-1), ValueError, 'begin'),
    (dict(start=0.0, iters=1.5), TypeError, 'iters'),
    (dict(start=0.0, shape='exp'), ValueError, 'shape'),
])  # fmt: skip
def test_bad_arguments(options, error, match):
    with pytest.raises(error, match=match):
        ValueScheduleHook(**options)


def test_loss_of_a_model_whose_loss_is_a_method():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss_function = nn.Module()
            self.loss_function.temperature = 0.1

        def loss(self):
            return self.loss_function.temperature

    runner = SimpleNamespace(model=Model(), iter=0, max_iters=3)
    hook = ValueScheduleHook('loss.temperature', start=0.4, end=0.2, iters=2, shape='linear')
    assert run(hook, runner, range(3), Model.loss) == pytest.approx([0.4, 0.3, 0.2])
    assert not hasattr(Model.loss, 'temperature')


@pytest.mark.parametrize(('target', 'match'), [
    ('head.momentum', "has no 'head'; it has loss, layers"),
    ('loss.x', 'no such attribute'),
    ('layers.0', 'got Module'),
    ('loss.training', 'got bool'),
])  # fmt: skip
def test_a_target_that_is_not_there(target, match):
    with pytest.raises(ValueError, match=match):
        ValueScheduleHook(target, start=0.0).before_train(runner_of())
