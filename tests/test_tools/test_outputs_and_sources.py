# SPDX-License-Identifier: Apache-2.0
"""Analysis tools never write over what they read, whatever --out is; prefixes of files name no folder."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


def tool(name):
    spec = importlib.util.spec_from_file_location(Path(name).stem, TOOLS / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_view_fec_keeps_the_picture(tmp_path):
    image = pytest.importorskip('PIL.Image', reason='needs Pillow')
    path = tmp_path / 'cat.png'
    image.fromarray(np.full((40, 40, 3), 7, np.uint8)).save(path)
    (tmp_path / 'link').symlink_to(tmp_path)
    (tmp_path / 'note').write_text('mine')
    before = path.read_bytes()
    for out in (tmp_path, tmp_path / 'link'):
        with pytest.raises(SystemExit, match=r'cat\.png.*which is only read'):
            tool('analysis_tools/view_fec.py').main([str(path), '--out', str(out), '--size', '32'])
    with pytest.raises(SystemExit, match=r'view_fec: --out must be a folder, got .*note'):
        tool('analysis_tools/view_fec.py').main([str(path), '--out', str(tmp_path / 'note'), '--size', '32'])
    assert path.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ['cat.png', 'link', 'note']


@pytest.mark.parametrize('option', ['--images', '--labels'])
def test_token_pareto_keeps_pictures_and_labels(tmp_path, capsys, option):
    (tmp_path / 'pareto.png').write_bytes(b'a picture of the user')
    main = tool('analysis_tools/token_pareto.py').main
    assert main(['vit_tiny_patch16_224', option, str(tmp_path), '--out', str(tmp_path)]) == 1
    assert 'which is only read' in capsys.readouterr().err
    assert (tmp_path / 'pareto.png').read_bytes() == b'a picture of the user'


def test_draw_boxes_knows_its_sources(tmp_path):
    draw_boxes, refuse = tool('analysis_tools/draw_boxes.py'), pytest.importorskip('clusterplug.core.outputs')
    points = tmp_path / 'training' / 'velodyne' / '000003.bin'
    dataset = SimpleNamespace(
        data_root=str(tmp_path), get_data_info=lambda _: dict(lidar_points=dict(lidar_path=str(points)))
    )
    for out in ('training/image_2', 'training/velodyne', 'training/image_2/new'):
        args = SimpleNamespace(out=tmp_path / out, config='c.py', checkpoint=None)
        with pytest.raises(ValueError, match='which is only read'):
            refuse.refuse_source_targets(
                draw_boxes._sources(dataset, [0], args), [draw_boxes._target(dataset, 0, args)]
            )


@pytest.mark.parametrize('prefix', ['../other', 'a/b', '/tmp/x', '', 'a\nb'])
def test_a_prefix_names_no_folder(tmp_path, prefix):
    command = [sys.executable, str(TOOLS / 'prepare_semantickitti.py'), str(tmp_path), f'--prefix={prefix}']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert 'without a folder' in done.stderr
    assert 'Traceback' not in done.stderr
    pytest.importorskip('mmdet3d', reason='needs mmdet3d')
    from clusterplug.datasets.kitti_convert import prepare_kitti

    with pytest.raises(ValueError, match='without a folder'):
        prepare_kitti(tmp_path, tmp_path / 'out', dict(train=['000000']), prefix=prefix)
    assert not any(tmp_path.iterdir())
