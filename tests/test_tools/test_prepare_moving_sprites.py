# SPDX-License-Identifier: Apache-2.0
"""tools/prepare_moving_sprites.py as a user calls it."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('av', reason='needs PyAV: pip install clusterplug[video]')

ROOT = Path(__file__).resolve().parents[2]


def run(tool, *arguments):
    command = [sys.executable, str(ROOT / 'tools' / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_sprites(tmp_path):
    result = run('prepare_moving_sprites.py', tmp_path, '--num-train', 0, '--num-test', 1, '--frames', 2, '--size', 16)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / 'videos').iterdir())) == 144
    assert run('prepare_moving_sprites.py', tmp_path, '--size', 17).returncode == 1
