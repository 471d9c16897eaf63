# SPDX-License-Identifier: Apache-2.0
"""phase_transition: both curves, and words that do not fit."""

import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip('matplotlib')

import clusterplug

ROOT = Path(clusterplug.__file__).parents[1]


def tool():
    path = ROOT / 'tools' / 'analysis_tools' / 'phase_transition.py'
    spec = importlib.util.spec_from_file_location('phase_transition', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_curves(tmp_path, capsys):
    out = tmp_path / 'folder' / 'transition.png'
    words = ['--width', '24', '--dims', '4', '4', '--ratios', '0.5', '10', '--noises', '0.05', '3', '--draws', '2']
    assert tool().main([*words, '--out', str(out)]) == 0
    assert out.read_bytes()[:4] == b'\x89PNG'
    text = capsys.readouterr().out
    few, many = (float(each) for each in re.findall(r'error ([\d.]+)', text))
    assert few > 1.5
    assert many < 0.1
    assert [float(each) for each in re.findall(r'rank ([\d.]+)', text)] == [4, 8]
    for bad in (['--dims', '2', '3'], ['--width', '6', '--dims', '4', '4'], ['--noises', '-1', '--width', '9']):
        with pytest.raises(SystemExit, match='phase_transition: '):
            tool().main([*bad, '--out', str(out)])
