# SPDX-License-Identifier: Apache-2.0
"""merge_models: every method on checkpoints of MinkUNet, differences listed, sources untouched."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet3d')
pytest.importorskip('spconv')

import clusterplug
from clusterplug.testing import tiny_config, write_tiny_semantickitti

ROOT = Path(clusterplug.__file__).parents[1]


def tool():
    spec = importlib.util.spec_from_file_location('merge_models', ROOT / 'tools' / 'merge_models.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A start, two models moved away from it, and a config."""
    from clusterplug import compat
    from clusterplug.registry import MODELS

    folder = tmp_path_factory.mktemp('merge')
    compat.apply_all()
    config = tiny_config(folder / 'run', write_tiny_semantickitti(folder / 'data', num_points=800))
    config.dump(folder / 'tiny.py')
    base = MODELS.build({**config.model, '_scope_': 'mmdet3d'}).state_dict()
    torch.save(dict(state_dict=base, meta=dict(epoch=1)), folder / 'base.pth')
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        tuned = base.copy()  # an OrderedDict with the versions of its modules
        for k, v in base.items():
            tuned[k] = v + 0.1 * torch.rand(v.shape, generator=generator) if v.is_floating_point() else v + 3
        torch.save(dict(state_dict=tuned), folder / f'tuned{seed}.pth')
    return folder


def run(files, *options):
    out = files / 'merged.pth'
    arguments = [str(files / name) for name in ('base.pth', 'tuned1.pth', 'tuned2.pth')]
    assert tool().main([*arguments, '--out', str(out), *options]) == 0
    merged = torch.load(out)
    check_it_loads(files, out, merged['state_dict'])
    return merged


def check_it_loads(files, path, state):
    """Every weight arrives in a new model: spconv permutes kernels of a state dict without versions."""
    from mmengine.config import Config
    from mmengine.runner.checkpoint import load_checkpoint

    from clusterplug.registry import MODELS

    for load in (lambda model: model.load_state_dict(state), lambda model: load_checkpoint(model, str(path))):
        model = MODELS.build({**Config.fromfile(files / 'tiny.py').model, '_scope_': 'mmdet3d'})
        load(model)
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name]), name


@pytest.mark.parametrize('method', ['average', 'task-arithmetic', 'ties'])
def test_methods_of_checkpoints_alone(files, method, capsys):
    merged = run(files, '--method', method, '--scale', '0.5')
    base, *tuned = (torch.load(files / name)['state_dict'] for name in ('base.pth', 'tuned1.pth', 'tuned2.pth'))
    assert merged['meta'] == {'epoch': 1}
    assert list(merged['state_dict']) == list(base)
    name = 'decode_head.conv_seg.weight'
    if method != 'ties':
        torch.testing.assert_close(merged['state_dict'][name], (tuned[0][name] + tuned[1][name]) / 2)
    assert not torch.equal(merged['state_dict'][name], base[name])
    assert 'moved by' in capsys.readouterr().out


@pytest.mark.parametrize(('method', 'level'), [('adamerging', 'layer'), ('concrete', 'none')])
def test_methods_that_train_on_the_test_data(files, method, level, capsys):
    config = str(files / 'tiny.py')
    merged = run(
        files, '--method', method, '--level', level, '--configs', config, config, '--steps', '2', '--lr', '0.05'
    )
    assert all(value.isfinite().all() for value in merged['state_dict'].values())
    rows = (files / 'merged.csv').read_text().splitlines()
    assert rows[0] == 'phase,step,loss,held_out'
    assert len(rows) == 3
    printed = capsys.readouterr().out
    assert ('conv_seg' in printed) == (method == 'concrete')
    assert f'{"meta" if method == "concrete" else "adapt"} 2: loss' in printed


def test_differences_are_listed_and_sources_kept(files, tmp_path):
    other = torch.load(files / 'tuned1.pth')['state_dict']
    other['decode_head.conv_seg.weight'] = torch.zeros(5, 8)
    torch.save(other, tmp_path / 'other.pth')
    arguments = [str(files / 'base.pth'), str(tmp_path / 'other.pth'), '--out']
    with pytest.raises(SystemExit, match=r'decode_head\.conv_seg\.weight: \(19, 8\) in the base, \(5, 8\)'):
        tool().main([*arguments, str(tmp_path / 'merged.pth')])
    assert tool().main([*arguments, str(tmp_path / 'merged.pth'), '--ignore', 'decode_head.conv_seg']) == 0
    with pytest.raises(SystemExit, match='merge_models'):
        tool().main([*arguments, str(files / 'base.pth')])
    with pytest.raises(SystemExit, match='--configs'):
        tool().main([*arguments, str(tmp_path / 'x.pth'), '--ignore', 'decode_head', '--method', 'adamerging'])
    with pytest.raises(SystemExit, match=r'merge_models: .*missing\.pth'):
        tool().main([str(tmp_path / 'missing.pth'), str(files / 'tuned1.pth'), '--out', str(tmp_path / 'x.pth')])
