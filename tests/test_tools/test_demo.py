# SPDX-License-Identifier: Apache-2.0
"""The demo, from generating streets to pictures, on a few scans."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')
pytest.importorskip('open3d', reason='needs open3d: pip install clusterplug[mmdet3d]')

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments):
    command = [sys.executable, str(ROOT / 'tools' / 'demo.py'), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_table_and_pictures_and_a_second_start(tmp_path):
    out, data = tmp_path / 'out', tmp_path / 'city'
    arguments = ['--out', out, '--data', data, '--num-train', 4, '--num-val', 2, '--epochs', 2]
    first = run(*arguments)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    table = (out / 'table.md').read_text()
    assert table in first.stdout
    for row in ('**mIoU**', 'IoU car', 'NMI of subclasses', 'seconds per step'):
        assert row in table
    assert 'nan' not in table.split('\n')[2]
    assert (out / 'scan_0.png').stat().st_size > 20_000
    results = {name: json.loads((out / name / 'result.json').read_text()) for name in ('baseline', 'clustering')}
    # same seed, same first weights: what differs is the loss
    assert results['baseline']['metrics'].keys() == results['clustering']['metrics'].keys()

    files = {path: path.stat().st_mtime_ns for path in out.glob('*/epoch_*.pth')}
    second = run(*arguments)
    assert second.returncode == 0, second.stderr[-3000:]
    assert 'baseline: done before' in second.stdout
    assert 'clustering: done before' in second.stdout
    assert {path: path.stat().st_mtime_ns for path in out.glob('*/epoch_*.pth')} == files
