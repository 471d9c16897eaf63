# SPDX-License-Identifier: Apache-2.0
"""Info files: what exists, checked byte by byte, complete or not at all."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clusterplug.datasets.semantickitti_infos import check_scan, find_scans, write_infos
from clusterplug.testing import write_tiny_semantickitti

TOOL = Path(__file__).resolve().parents[2] / 'tools/prepare_semantickitti.py'


@pytest.fixture
def data_root(tmp_path):
    return write_tiny_semantickitti(tmp_path, num_scans=3, num_points=100)


def run(*arguments):
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ('selection', 'expected'),
    [
        ([], ['00/000000', '00/000001', '00/000002', '08/000000', '08/000001']),
        (['08'], ['08/000000', '08/000001']),
        (['00/000001'], ['00/000001']),
        (['08/000001', '00/000000-000001'], ['08/000001', '00/000000', '00/000001']),
    ],
)
def test_selection(data_root, selection, expected):
    assert find_scans(data_root, selection) == expected


@pytest.mark.parametrize(
    ('selection', 'words'),
    [(['07'], "no sequence '07'.*there are 00, 08"), (['00/000007'], 'it holds 000000 to 000002')],
)
def test_a_selection_that_finds_nothing(data_root, selection, words):
    with pytest.raises(FileNotFoundError, match=words):
        find_scans(data_root, selection)


def test_a_folder_of_another_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match='must hold a folder sequences'):
        find_scans(tmp_path / 'nowhere')


@pytest.mark.parametrize(
    ('name', 'num_bytes', 'words'),
    [
        ('velodyne', 1599, r'000001\.bin has 1599 bytes.*not a multiple of 16.*99 whole points and 15 bytes'),
        ('velodyne', 0, r'000001\.bin has 0 bytes'),
        ('labels', 396, r'000001\.label has 396 bytes \(99 labels\).*100 points, which need 400 bytes'),
        ('labels', 399, r'000001\.label has 399 bytes \(99\.75 labels\)'),
        ('velodyne', None, r'000001\.bin is missing'),
        ('labels', None, r'000001\.label is missing, the label file of'),
    ],
)
def test_a_broken_file_is_named_and_nothing_is_written(data_root, name, num_bytes, words):
    path = data_root / f'sequences/00/{name}/000001.{dict(velodyne="bin", labels="label")[name]}'
    content = path.read_bytes()
    path.unlink()
    if num_bytes is not None:
        path.write_bytes(content[:num_bytes])
    infos = data_root / 'semantickitti_infos_train.pkl'
    before = infos.read_bytes()
    with pytest.raises(ValueError, match=f'1 faults in 3 scans\n.*{words}'):
        write_infos(infos, data_root, [f'00/{scan:06d}' for scan in range(3)])
    assert infos.read_bytes() == before
    assert len(check_scan(data_root, '00/000001')) == 1


def test_the_tool_writes_what_the_dataset_class_reads(data_root, tmp_path):
    out = tmp_path / 'infos'
    done = run(data_root, '--train', '00/000001', '08', '--test', '00/000000', '--out', out, '--prefix', 'mine')
    assert done.returncode == 0, done.stderr
    assert 'mine_infos_train.pkl: 3 scans' in done.stdout
    train = pickle.loads((out / 'mine_infos_train.pkl').read_bytes())
    assert [entry['lidar_points']['lidar_path'] for entry in train['data_list']] == [
        'sequences/00/velodyne/000001.bin', 'sequences/08/velodyne/000000.bin', 'sequences/08/velodyne/000001.bin',
    ]  # fmt: skip
    assert train['data_list'][0]['pts_semantic_mask_path'] == 'sequences/00/labels/000001.label'
    test = pickle.loads((out / 'mine_infos_test.pkl').read_bytes())
    assert 'pts_semantic_mask_path' not in test['data_list'][0]
    assert not (out / 'mine_infos_val.pkl').exists()


def test_the_official_split_takes_the_sequences_that_exist(data_root):
    assert run(data_root).returncode == 0
    val = pickle.loads((data_root / 'semantickitti_infos_val.pkl').read_bytes())
    assert [entry['sample_id'] for entry in val['data_list']] == ['08000000', '08000001']


def test_the_tool_reports_faults_and_fails(data_root):
    (data_root / 'sequences/08/labels/000001.label').write_bytes(b'')
    done = run(data_root)
    assert done.returncode == 1
    assert '000001.label has 0 bytes' in done.stderr
    assert 'Traceback' not in done.stderr


def test_labels_that_no_map_names_are_counted_and_refused(data_root):
    labels = data_root / 'sequences/00/labels'
    raw = np.fromfile(labels / '000001.label', '<u4')
    raw[:3], raw[3] = 7 | 5 << 16, 300
    raw.tofile(labels / '000001.label')
    before = (data_root / 'semantickitti_infos_train.pkl').read_bytes()
    done = run(data_root, '--train', '00', '--val', '08')
    assert done.returncode == 1
    assert '7 (3 points), 300 (1 points); first in' in done.stderr
    assert '000001.label; name the keys' in done.stderr
    assert (data_root / 'semantickitti_infos_train.pkl').read_bytes() == before
    done = run(data_root, '--train', '00', '--val', '08', '--labels', '0-99', '300')
    assert done.returncode == 0, done.stderr
    for file in labels.glob('*.label'):
        (np.fromfile(file, '<u4') % 20).tofile(file)
    with pytest.raises(ValueError, match=r'look already mapped to classes \(0 \.\. 19\).*--labels 0-19'):
        write_infos(data_root / 'x.pkl', data_root, ['00/000000'])
    assert run(data_root, '--train', '00', '--labels', 'all').returncode == 1


def test_points_that_are_no_numbers_are_reported_by_file(data_root):
    file = data_root / 'sequences/00/velodyne/000001.bin'
    points = np.fromfile(file, '<f4').reshape(-1, 4)
    points[4, 3], points[9, 0] = np.nan, -np.inf
    points.tofile(file)
    said = []
    assert write_infos(data_root / 'x.pkl', data_root, ['00/000000', '00/000001'], say=said.append) == 2
    assert said == [f'{file}: 2 of 100 points have NaN or inf; they are left out when it is loaded']
    np.zeros(100, '<u4').tofile(data_root / 'sequences/00/labels/000000.label')
    write_infos(data_root / 'x.pkl', data_root, ['00/000000'], say=said.append)
    assert 'no point has a label' in said[1]


@pytest.mark.parametrize(
    ('points', 'words'),
    [
        (np.zeros((1, 4)), r'000001\.bin has 1 point; a scan needs at least 2'),
        (np.full((100, 4), np.nan), r'has 100 points, 100 of them with NaN or inf'),
        (np.full((100, 4), 5e6), r'no point within 200 m of the sensor, the nearest is 5000000 m away'),
    ],
)
def test_scans_without_points_to_use_are_named(data_root, points, words):
    points.astype('<f4').tofile(data_root / 'sequences/00/velodyne/000001.bin')
    with pytest.raises(ValueError, match=words):
        write_infos(data_root / 'x.pkl', data_root, ['00/000001'], with_labels=False)
    assert not (data_root / 'x.pkl').exists()


def test_a_missing_split_is_said(data_root, tmp_path):
    done = run(data_root, '--train', '00', '--out', tmp_path / 'a')
    assert done.returncode == 0
    assert 'no validation split was written (--val)' in done.stderr
    done = run(data_root, '--train', '00', '--val', '00/000000', '--out', tmp_path / 'b')
    assert '1 scans are for training and for validation' in done.stderr
    assert 'no validation split' not in done.stderr
    for name in ('00', '08'):
        (data_root / 'sequences' / name).rename(data_root / f'sequences/5{name}')
    done = run(data_root)
    assert done.returncode == 1
    assert 'no sequence of the official split, only 500, 508' in done.stderr


def test_nothing_that_is_read_is_written(data_root, tmp_path):
    scan = data_root / 'sequences/00/velodyne/000000.bin'
    before = scan.read_bytes()
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'semantickitti_infos_train.pkl').symlink_to(scan)
    done = run(data_root, '--train', '00', '--out', out)
    assert done.returncode == 1
    assert 'is only read; nothing was written' in done.stderr
    (out / 'semantickitti_infos_train.pkl').unlink()
    (out / 'semantickitti_infos_train.pkl').symlink_to(data_root / 'semantickitti_infos_train.pkl')
    mine = (data_root / 'semantickitti_infos_train.pkl').read_bytes()
    assert run(data_root, '--train', '00/000000', '--out', out).returncode == 1
    assert run(data_root, '--train', '00', '--out', data_root / 'sequences/00/velodyne').returncode == 1
    assert not list(data_root.rglob('sequences/**/.*'))
    assert scan.read_bytes() == before
    assert (data_root / 'semantickitti_infos_train.pkl').read_bytes() == mine


def test_an_output_that_is_a_file_is_one_line(data_root, tmp_path):
    (tmp_path / 'file').write_text('')
    for out in (tmp_path / 'file', tmp_path / 'file/below'):
        done = run(data_root, '--train', '00', '--val', '08', '--out', out)
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) == 1
        assert str(tmp_path / 'file') in done.stderr
