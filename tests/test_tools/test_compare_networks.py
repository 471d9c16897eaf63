# SPDX-License-Identifier: Apache-2.0
"""compare_networks.py on two tiny MinkUNets, its pictures, and what it refuses."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from clusterplug.visualization import save_activation_pairs, save_match_curves, save_unit_correlations

ROOT = Path(__file__).resolve().parents[2]
TOOL = runpy.run_path(str(ROOT / 'tools/analysis_tools/compare_networks.py'))['main']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    pytest.importorskip('mmdet3d')
    pytest.importorskip('spconv')
    from clusterplug.testing import build_tiny_runner, tiny_config, write_tiny_semantickitti

    folder = tmp_path_factory.mktemp('compare')
    data = write_tiny_semantickitti(folder / 'data', num_points=1500)
    runner = build_tiny_runner(folder / 'run', data, max_epochs=1)
    runner.train()
    tiny_config(folder / 'run', data).dump(folder / 'config.py')
    return folder / 'config.py', folder / 'run/epoch_1.pth', folder


@pytest.mark.slow
def test_tables_and_pictures(run, capsys):
    config, checkpoint, folder = map(str, run)
    out = Path(folder, 'out')
    layers = ['backbone.conv_input', 'backbone.decoder.1.1']
    arguments = [config, checkpoint, config, 'none', '--layers', *layers, '--groups', '3', '--mutual-information']
    assert TOOL([*arguments, '--out', str(out), '--permutations', '20', '--max-batches', '2']) == 0
    text = capsys.readouterr().out
    assert '| backbone.conv_input | 8 / 8 |' in text
    rows = json.loads((out / 'units.json').read_text())
    assert [row['layer'] for row in rows] == layers
    for row in rows:
        assert 0 < row['bipartite'] <= row['semi'] < 1
        assert len(row['partners']['bipartite']) == 8
        assert sorted({*row['groups'][0], *row['groups'][1]} - {-1}) == [0, 1, 2]
        errors = [each['error'] for each in row['sparse']]
        assert errors == sorted(errors)
        assert [each['units'] for each in row['sparse']] == sorted((e['units'] for e in row['sparse']), reverse=True)
    for name in ('curves', 'correlation_0', 'correlation_1', 'maps_0', 'maps_1'):
        assert (out / f'{name}.png').stat().st_size > 3000


def test_what_is_refused(tmp_path):
    with pytest.raises(SystemExit) as stop:
        TOOL(['a.py', 'nowhere.pth', 'b.py', 'none'])
    assert 'got nowhere.pth, which does not exist' in str(stop.value)


@pytest.mark.slow
def test_layers_are_listed_when_none_is_named(run, capsys):
    config, checkpoint, folder = map(str, run)
    with pytest.raises(SystemExit) as stop:
        TOOL([config, checkpoint, config, checkpoint, '--out', folder])
    assert 'name the layers' in str(stop.value)
    assert 'backbone.conv_input' in capsys.readouterr().out


def test_pictures(tmp_path):
    g = np.random.default_rng(0)
    corr = np.clip(g.normal(0, 0.3, (6, 5)), -1, 1)
    save_unit_correlations(tmp_path / 'c.png', corr, np.array([4, 3, -1, 0, 1, 2]), 'a $x_')
    save_match_curves(
        tmp_path / 'm.png', {'one': (np.array([0.9, 0.2]), np.array([0.9, 0.3])), 'two': (corr[0], corr[1])}
    )
    points = g.normal(size=(50, 2)), g.normal(size=50)
    save_activation_pairs(tmp_path / 'p.png', [('1 - 2', corr, corr), ('points', points, points)])
    for name in 'cmp':
        assert (tmp_path / f'{name}.png').read_bytes()[:4] == b'\x89PNG'
    with pytest.raises(ValueError, match=r'partners \(C,\)'):
        save_unit_correlations(tmp_path / 'x.png', corr, np.zeros(5, int))
    with pytest.raises(ValueError, match='at least one'):
        save_activation_pairs(tmp_path / 'x.png', [])
    with pytest.raises(ValueError, match='at least one layer'):
        save_match_curves(tmp_path / 'x.png', {})


def test_maps_of_tokens_maps_and_points():
    from clusterplug.analysis.unit_outputs import LayerOutput

    activation = runpy.run_path(str(ROOT / 'tools/analysis_tools/compare_networks.py'))['activation']
    rows = torch.arange(34.0).unsqueeze(1)
    tokens = activation(LayerOutput(rows, (2, 17)), 0)  # a class token before 4 x 4
    assert tokens.shape == (4, 4)
    assert tokens[0, 0] == 1
    assert activation(LayerOutput(rows[:24], (2, 3, 4)), 0)[2, 3] == 11
    assert activation(LayerOutput(rows[:5], (5,)), 0) is None
    where, values = activation(
        LayerOutput(rows[:3], (2, 3), torch.tensor([[0, 1, 2, 3], [1, 0, 0, 0], [0, 4, 5, 6]])), 0
    )
    assert where.tolist() == [[1, 2], [4, 5]]
    assert values.tolist() == [0, 2]
