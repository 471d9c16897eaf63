# SPDX-License-Identifier: Apache-2.0
"""configs/grassmann: the base with another last layer, groups by config, and training steps on tiny real files."""

from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')
pytest.importorskip('spconv')

from clusterplug import compat
from clusterplug.cli import load_config
from clusterplug.testing import tiny_host_config, write_tiny_layouts

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / 'configs' / 'grassmann').glob('*.py'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_is_its_base_and_a_head(path):
    base = load_config(str(ROOT / 'configs' / 'point_cluster' / path.name.removeprefix('grassmann_')), work_dir='x')
    ours = load_config(str(path), work_dir='x')
    assert ours.model.type == 'clusterplug.SwapClassifier'
    inner, plain = ours.model.model.to_dict(), base.model.to_dict()
    for each in (inner, plain):
        each.pop('_scope_', None)
    assert inner == plain
    assert ours.param_scheduler == base.param_scheduler
    assert ours.train_cfg == base.train_cfg
    optimizer, before = ours.optim_wrapper.optimizer, base.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (before.lr, before.weight_decay)
    # the bases turn by 0.1 radians for a unit gradient, as in the paper's composites
    assert optimizer.lr * ours.optim_wrapper.paramwise_cfg.grassmann_lr_mult == pytest.approx(0.1)


@pytest.mark.slow
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_trains(path, tmp_path, monkeypatch):
    from mmengine.runner import Runner

    compat.apply_all()
    root = write_tiny_layouts(tmp_path / 'data')
    monkeypatch.setenv('CLUSTERPLUG_DATA', str(root))
    config = tiny_host_config(load_config(str(path), work_dir=str(tmp_path / 'run')), root)
    for key in ('test_dataloader', 'test_cfg', 'test_evaluator'):
        config[key] = None
    config.experiment_name = path.stem
    runner = Runner.from_cfg(config)
    head = runner.model.decode_head.conv_seg
    before = head.bases.detach().clone()
    runner.train()
    after = head.bases.detach()
    assert not torch.equal(before, after)
    assert (after.mT @ after - torch.eye(head.subspace_dim)).abs().max() < 1e-5
    flags = [group['manifold'] for group in runner.optim_wrapper.optimizer.param_groups]
    assert flags.count('grassmann') == 1
