# SPDX-License-Identifier: Apache-2.0
"""UnitMomentsHook in a real Runner, and UnitMatching on two tiny MinkUNets."""

import copy

import pytest
import torch

pytest.importorskip('mmdet3d')
pytest.importorskip('spconv')

from clusterplug.analysis import UnitMatching
from clusterplug.testing import build_tiny_runner, write_tiny_semantickitti

LAYERS = ['backbone.conv_input', 'backbone.decoder.1.1']


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_tiny_semantickitti(tmp_path_factory.mktemp('data'), num_points=1500)


@pytest.fixture(scope='module')
def runner(data, tmp_path_factory):
    hook = dict(type='clusterplug.UnitMomentsHook', layers=LAYERS[:1], max_batches=1)
    runner = build_tiny_runner(tmp_path_factory.mktemp('run'), data, max_epochs=1, hooks=[hook])
    runner.train()
    return runner


def hook_of(runner):
    return next(each for each in runner.hooks if type(each).__name__ == 'UnitMomentsHook')


def test_hook_measures_how_far_units_moved(runner):
    found = hook_of(runner).summary
    assert set(found) == {f'units/{LAYERS[0]}_{name}' for name in ('semi', 'bipartite', 'cka')}
    assert 0.5 < found[f'units/{LAYERS[0]}_bipartite'] <= found[f'units/{LAYERS[0]}_semi'] < 1
    assert f'units/{LAYERS[0]}_cka' in runner.message_hub.log_scalars


def test_hook_with_its_own_checkpoint_finds_no_difference(runner, data, tmp_path):
    path = f'{runner.work_dir}/epoch_1.pth'
    hook = dict(type='clusterplug.UnitMomentsHook', layers=LAYERS[:1], reference=path)
    again = build_tiny_runner(tmp_path, data, max_epochs=1, hooks=[hook], load_from=path)
    again.val()
    assert hook_of(again).summary[f'units/{LAYERS[0]}_bipartite'] == pytest.approx(1, abs=1e-5)
    assert hook_of(again).summary[f'units/{LAYERS[0]}_cka'] == pytest.approx(1, abs=1e-5)


def test_two_minkunets(runner):
    model = runner.model.eval()
    other = copy.deepcopy(model)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    conv, norm = other.backbone.conv_input[0][0], other.backbone.conv_input[0][1]
    assert conv.weight.shape[0] == 8  # of spconv: out, kernel, in
    with torch.no_grad():
        conv.weight.copy_(conv.weight[order])
        for each in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            each.copy_(each[order])
    layer = 'backbone.conv_input.0'
    matching = UnitMatching(model, other, [layer, *LAYERS])
    matching.fit(runner.val_dataloader)
    assert torch.equal(order[matching.match(layer)], torch.arange(8))
    rows = {row.layer: row for row in matching.summary(5)}
    assert rows[layer].bipartite == pytest.approx(1, abs=1e-5)
    assert rows[layer].positions == rows[LAYERS[1]].positions > 500
    assert rows[LAYERS[1]].bipartite < 0.99
    assert rows[LAYERS[1]].semi > 0
    one, _ = matching.examples[layer]
    assert one.positions.shape == (len(one.rows), 4)
    pooled = UnitMatching(model, other, [(layer, LAYERS[1])], pool='mean').fit(runner.val_dataloader)
    assert pooled.moments[f'{layer} = {LAYERS[1]}'].count == 2


def test_layers_of_other_strides_are_refused(runner):
    with pytest.raises(ValueError, match="pass pool='mean'"):
        UnitMatching(runner.model, runner.model, [(LAYERS[0], 'backbone.encoder.1')]).fit(runner.val_dataloader)
