# SPDX-License-Identifier: Apache-2.0
"""probe.py: numbers of a config and a checkpoint, and what is refused."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / 'configs/swav/swav_second-small_1xb256-40e_cifar10-selection.py')


def probe(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['probe.py', *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / 'tools/analysis_tools/probe.py'), run_name='__main__')
    return stop.value.code


@pytest.mark.slow
def test_numbers_of_a_random_network(tmp_path, monkeypatch):
    g = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    bright = np.arange(40) % 2
    images = (g.integers(0, 100, (40, 32, 32, 3)) + 150 * bright[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / 'images/cifar10_small.npz', X_train=images, y_train=bright, X_test=images[:20],
             y_test=bright[:20])  # fmt: skip
    monkeypatch.setenv('CLUSTERPLUG_DATA', str(tmp_path))
    out = tmp_path / 'numbers.json'
    pictures = tmp_path / 'pictures'
    options = ['--neighbors', 3, '--out', out, '--work-dir', tmp_path / 'log', '--pictures', pictures]
    assert probe(monkeypatch, CONFIG, 'none', *options, '--class-names', 'dark', 'bright') == 0
    assert sorted(each.name for each in pictures.glob('*.png')) == ['embeddings.png', 'prototypes.png']
    numbers = json.loads(out.read_text())
    assert numbers['knn_probe/accuracy'] == numbers['linear_probe/accuracy'] == 100
    assert numbers['linear_probe/effective_rank'] >= 1


@pytest.mark.slow
def test_pictures_of_a_checkpoint_with_a_log_beside_it(tmp_path, monkeypatch):
    from clusterplug import compat
    from clusterplug.cli import load_config
    from clusterplug.registry import MODELS

    compat.apply_all()
    g = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    images, labels = g.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), np.arange(12) % 2
    np.savez(tmp_path / 'images/cifar10_small.npz', X_train=images, y_train=labels, X_test=images, y_test=labels)
    monkeypatch.setenv('CLUSTERPLUG_DATA', str(tmp_path))
    log = tmp_path / 'run/1/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('\n'.join(json.dumps(dict(step=n, loss=4.0 - n, ln_k=4.1, time=0.1)) for n in (1, 2)))
    model = MODELS.build(load_config(CONFIG, {}, str(tmp_path / 'log')).model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'run/epoch_1.pth')
    options = ['--work-dir', tmp_path / 'log', '--pictures', tmp_path / 'pictures', '--field', 'embeddings']
    assert probe(monkeypatch, CONFIG, tmp_path / 'run/epoch_1.pth', *options) == 0
    found = sorted(each.name for each in (tmp_path / 'pictures').glob('*.png'))
    assert found == ['embeddings.png', 'prototypes.png', 'training.png']


def test_options_of_pictures_need_a_folder_for_them(monkeypatch):
    for option in (['--map', 'tsne'], ['--class-names', 'a']):
        assert 'give their folder with --pictures' in probe(monkeypatch, CONFIG, 'none', *option)


def test_a_missing_checkpoint_is_named(monkeypatch):
    assert 'CHECKPOINT must be a file, got nowhere.pth' in probe(monkeypatch, CONFIG, 'nowhere.pth')
