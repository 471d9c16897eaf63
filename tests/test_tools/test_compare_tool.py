# SPDX-License-Identifier: Apache-2.0
"""Baseline and method over seeds by the command line, with mmdet3d's own Runner."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')

from clusterplug.testing import write_tiny_semantickitti

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / 'point_cluster'


def run(*arguments):
    command = [sys.executable, str(ROOT / 'tools' / 'analysis_tools' / 'compare.py'), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_two_seeds_of_two_configs(tmp_path):
    data = write_tiny_semantickitti(tmp_path / 'data', num_scans=2, num_points=3000)
    stem = 'minkunet18_w8_spconv_1xb1-5e_lidar-city.py'
    options = [f'{split}_dataloader.dataset.data_root={data}' for split in ('train', 'val', 'test')]
    options += [f'{split}_dataloader.persistent_workers=False' for split in ('train', 'val', 'test')]
    options += [f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')]
    arguments = [CONFIGS / stem, CONFIGS / f'point-cluster_{stem}', '--seeds', 0, 1, '--jobs', 2]
    arguments += ['--work-dir', tmp_path / 'out', '--metrics', 'miou', 'acc', '--cfg-options', *options]
    arguments += ['train_cfg.max_epochs=1', 'train_cfg.val_interval=2']
    first = run(*arguments)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    table = (tmp_path / 'out' / 'table.md').read_text()
    assert table.strip() in first.stdout
    assert '| miou |' in table
    results = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert len(results) == 4
    assert all(0 <= result['metrics']['miou'] <= 1 for result in results.values())
    again = run(*arguments)
    assert again.stdout.count('done before') == 4
    assert json.loads((tmp_path / 'out' / 'results.json').read_text()) == results
