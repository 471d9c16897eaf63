# SPDX-License-Identifier: Apache-2.0
"""Every config of the repository builds, and takes one training step on tiny real files."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')

from clusterplug import compat
from clusterplug.cli import load_config
from clusterplug.testing import tiny_host_config, write_tiny_layouts

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / 'configs' / 'point_cluster').glob('*.py'))
# trained elsewhere: detectors in tests/test_detectors, several scans in tests/test_datasets/test_multiscan.py
SEGMENTORS = [path for path in CONFIGS if '_kitti-' not in path.name and '-multiscan' not in path.name]
BASES = [path for path in CONFIGS if not path.name.startswith('point-cluster_')]


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return write_tiny_layouts(tmp_path_factory.mktemp('data'))


def on_tiny_data(path, root, work_dir, monkeypatch):
    """The config as it is, but for its files, its workers, its length, and widths that take minutes."""
    monkeypatch.setenv('CLUSTERPLUG_DATA', str(root))
    config = tiny_host_config(load_config(str(path), work_dir=str(work_dir)), root)
    for key in ('test_dataloader', 'test_cfg', 'test_evaluator'):
        config[key] = None
    config.experiment_name = path.stem
    return config


@pytest.mark.slow
@pytest.mark.parametrize('path', SEGMENTORS, ids=lambda path: path.stem)
def test_config_trains(path, tiny, tmp_path, monkeypatch):
    from mmengine.runner import Runner

    compat.apply_all()
    runner = Runner.from_cfg(on_tiny_data(path, tiny, tmp_path, monkeypatch))
    before = {name: value.detach().clone() for name, value in runner.model.named_parameters()}
    runner.train()
    moved = {name for name, value in runner.model.named_parameters() if not value.equal(before[name])}
    assert 'decode_head.conv_seg.weight' in moved
    clustered = path.name.startswith('point-cluster_')
    assert hasattr(runner.model, 'clustering') == clustered
    if clustered:
        assert int(runner.model.clustering.loss.memory.step) == 2
        assert runner.model.clustering.loss.memory.num_seeded.any()
        # the second step compares with the centers that the first one seeded
        assert any(name.startswith('clustering.loss.projector') for name in moved)
        terms = ('queue', 'point', 'center')
        assert all(f'train/loss_cluster_{term}' in runner.message_hub.log_scalars for term in terms)
    for name, scalar in runner.message_hub.log_scalars.items():
        if 'loss' in name:
            assert np.isfinite(scalar.data[0]).all(), name


def test_every_base_has_its_clustering_variant():
    assert BASES
    for path in BASES:
        assert (path.parent / f'point-cluster_{path.name}').is_file()


@pytest.mark.parametrize('path', [p for p in CONFIGS if p not in BASES], ids=lambda path: path.stem)
def test_variant_is_its_base_and_a_loss(path, monkeypatch, tmp_path):
    monkeypatch.setenv('CLUSTERPLUG_DATA', str(tmp_path))
    base = load_config(str(path.with_name(path.name.removeprefix('point-cluster_'))), work_dir='x')
    ours = load_config(str(path), work_dir='x')
    assert ours.model.type == 'clusterplug.WithClustering'
    inner = ours.model.model.to_dict()
    inner.pop('_scope_', None)
    plain = base.model.to_dict()
    plain.pop('_scope_', None)
    assert inner == plain
    for key in base:
        if key not in ('model', 'custom_hooks', 'work_dir'):
            assert ours[key] == base[key], key
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith('#')]
    # the base, and the clusterplug lines as one would write them without line breaks in the dict
    assert len(lines) <= 8
