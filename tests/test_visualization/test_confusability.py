# SPDX-License-Identifier: Apache-2.0
"""The overlap of class subspaces as a picture, and the tool that draws it from a checkpoint."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('matplotlib')

import clusterplug
from clusterplug.heads import GrassmannHead
from clusterplug.visualization import save_class_overlap

TOOL = Path(clusterplug.__file__).parents[1] / 'tools' / 'analysis_tools' / 'view_confusability.py'


def test_a_picture_of_any_number_of_classes(tmp_path):
    for count in (1, 7):
        save_class_overlap(tmp_path / 'a.png', np.full((count, count), 0.2), title='$any_{')
        assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')
    with pytest.raises(ValueError, match='square'):
        save_class_overlap(tmp_path / 'a.png', np.zeros((2, 3)))
    with pytest.raises(ValueError, match='one per class'):
        save_class_overlap(tmp_path / 'a.png', np.zeros((2, 2)), ['car'])


def test_tool_names_the_pair_that_overlaps(tmp_path, capsys):
    pytest.importorskip('mmengine')
    spec = importlib.util.spec_from_file_location('view_confusability', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    head = GrassmannHead(32, 3, 2)
    with torch.no_grad():
        head.fc.weight[4:] = head.fc.weight[:2]  # the last class lies in the plane of the first
    torch.save(
        dict(state_dict={f'decode_head.conv_seg.{k}': v for k, v in head.state_dict().items()}), tmp_path / 'a.pth'
    )
    out = tmp_path / 'b.png'
    arguments = [str(tmp_path / 'a.pth'), '--out', str(out), '--subspace-dim']
    assert tool.main([*arguments, '2', '--names', 'car', 'road', 'truck']) == 0
    assert capsys.readouterr().out.startswith('1.000  truck - car')
    assert out.is_file()
    with pytest.raises(SystemExit, match='must divide'):
        tool.main([*arguments, '4'])
