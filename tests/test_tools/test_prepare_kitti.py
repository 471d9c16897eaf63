# SPDX-License-Identifier: Apache-2.0
"""tools/prepare_kitti.py: infos, reduced points and database as mmdet3d writes them, and broken files by name."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')

from clusterplug import compat
from clusterplug.core.outputs import SourceOverwritten, locked_folder
from clusterplug.core.restricted_pickle import load_restricted
from clusterplug.datasets import kitti_convert
from clusterplug.datasets.kitti_convert import prepare_kitti
from clusterplug.datasets.kitti_frames import check_frame, clean_labels, find_frames
from clusterplug.datasets.kitti_parts import load_part
from clusterplug.testing.toy_kitti import write_tiny_kitti

ROOT = Path(__file__).resolve().parents[2]
TRAIN, VAL = ['000000', '000001'], ['000002', '000003']


@pytest.fixture(autouse=True)
def patched():
    compat.apply_all()


@pytest.fixture
def raw(tmp_path):
    return write_tiny_kitti(tmp_path / 'raw', num_points=1600)


def load(path):
    return pickle.loads(Path(path).read_bytes())


def state(folder):
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(folder.rglob('*'))
    }


def test_infos_and_database_describe_the_frames(raw, tmp_path):
    before = state(raw)
    done = prepare_kitti(raw, tmp_path / 'out', dict(train=TRAIN, val=VAL))
    assert state(raw) == before
    assert done['train'].frames == 2
    assert done['trainval'].frames == 4
    assert done['train'].objects == {'Car': 6, 'Pedestrian': 2, 'Cyclist': 2}
    assert done['train'].without_points == {'Car': 2}  # the far car of each frame
    out = tmp_path / 'out'
    infos = load(out / 'kitti_infos_train.pkl')
    assert infos['metainfo']['categories']['DontCare'] == -1
    first = infos['data_list'][0]
    assert first['lidar_points']['lidar_path'] == '000000.bin'
    assert [i['num_lidar_pts'] for i in first['instances']] == [100, 100, 100, 100, 0, -1]
    assert (first['images']['CAM2']['height'], first['images']['CAM2']['width']) == (120, 400)
    database = load(out / 'kitti_dbinfos_train.pkl')
    assert {name: len(entries) for name, entries in database.items()} == {'Car': 6, 'Pedestrian': 2, 'Cyclist': 2}
    for entry in database['Cyclist']:
        points = np.fromfile(out / entry['path'], np.float32).reshape(-1, 4)
        assert len(points) == entry['num_points_in_gt'] == 100
        assert np.abs(points[:, :2]).max() < 1.0  # in the coordinates of the box
    reduced = np.fromfile(out / 'training/velodyne_reduced/000000.bin', np.float32).reshape(-1, 4)
    whole = np.fromfile(raw / 'training/velodyne/000000.bin', np.float32).reshape(-1, 4)
    u = 200 * -whole[:, 1] / whole[:, 0] + 200
    v = 200 * -whole[:, 2] / whole[:, 0] + 40
    assert len(reduced) == ((u > 0) & (u < 400) & (v > 0) & (v < 120)).sum()
    assert not list(out.rglob('*.part'))


def test_a_second_run_repeats_nothing_and_an_interrupted_one_continues(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(kitti_convert, '_CHUNK', 1)
    converted, load_converters = [], kitti_convert.load_converters

    def counting(*args):
        converters = load_converters(*args)
        host = converters.kitti.get_kitti_image_info

        def get(path, **options):
            converted.extend(options['image_ids'])
            if converted == [0, 1, 2]:
                raise KeyboardInterrupt
            return host(path, **options)

        converters.kitti = type('module', (), dict(vars(converters.kitti), get_kitti_image_info=staticmethod(get)))
        return converters

    monkeypatch.setattr(kitti_convert, 'load_converters', counting)
    out, splits = tmp_path / 'out', dict(train=TRAIN, val=VAL)
    with pytest.raises(KeyboardInterrupt):
        prepare_kitti(raw, out, splits)
    assert not list(out.glob('*.pkl'))
    assert not (out / 'kitti_gt_database').exists()
    prepare_kitti(raw, out, splits)
    assert converted == [0, 1, 2, 2, 3]
    database = state(out / 'kitti_gt_database')
    said = []
    prepare_kitti(raw, out, splits, say=said.append)
    assert converted == [0, 1, 2, 2, 3]
    assert state(out / 'kitti_gt_database') == database
    assert said[-1] == 'ground-truth database: up to date'
    with open(raw / 'training/label_2/000001.txt', 'w'):
        pass  # an empty label file is a frame without objects, and a changed one
    done = prepare_kitti(raw, out, splits)
    assert converted == [0, 1, 2, 2, 3, 1]
    assert done['train'].without_objects == 1
    assert done['train'].objects == {'Car': 3, 'Pedestrian': 1, 'Cyclist': 1}
    assert load(out / 'kitti_infos_train.pkl')['data_list'][1]['instances'] == []
    assert len(load(out / 'kitti_dbinfos_train.pkl')['Car']) == 3


def test_in_place_and_a_frame_without_any_object(raw):
    (raw / 'training/label_2/000000.txt').write_text('')
    done = prepare_kitti(raw, raw, dict(train=TRAIN[:1]))
    assert done['train'].objects == {}
    assert done['train'].without_objects == 1
    assert load(raw / 'kitti_dbinfos_train.pkl') == {}


def edit(path, line, text):
    lines = path.read_text().splitlines()
    lines[line - 1 : line] = [text] if text is not None else []
    path.write_text('\n'.join(lines))


@pytest.mark.parametrize(
    ('kind', 'line', 'text', 'words'),
    [
        ('calib', 6, None, r'calib/000001\.txt:6 must be .Tr_velo_to_cam: . and 12 numbers, got .Tr_imu_to_velo'),
        ('calib', 5, 'R0_rect: 1 2 3', r'calib/000001\.txt:5 must be .R0_rect: . and 9 numbers, got .1 2 3'),
        ('calib', 1, 'P0: ' + '1 ' * 11 + 'x', r'calib/000001\.txt:1 must be .P0: . and 12 numbers'),
        ('label_2', 2, 'Bus 0 0 0 1 2 3 4 1 1 1 0 0 9 0', r'label_2/000001\.txt:2 has the unknown class .Bus.'),
        ('label_2', 3, 'Car 0 0 0 1 2 3 4', r'label_2/000001\.txt:3 must be a class and 14 numbers.*got 8 fields'),
        ('label_2', 3, 'Car 0 0 0 1 2 3 4 1 1 0 0 0 9 0', r'label_2/000001\.txt:3 needs a positive height'),
    ],
)
def test_broken_lines_are_named(raw, tmp_path, kind, line, text, words):
    edit(raw / 'training' / kind / '000001.txt', line, text)
    with pytest.raises(ValueError, match=words):
        prepare_kitti(raw, tmp_path / 'out', dict(train=TRAIN))
    assert not (tmp_path / 'out').exists()


def test_missing_and_truncated_files_are_named_all_at_once(raw, tmp_path):
    (raw / 'training/image_2/000000.png').unlink()
    points = raw / 'training/velodyne/000001.bin'
    points.write_bytes(points.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r'2 faults in') as caught:
        prepare_kitti(raw, tmp_path / 'out', dict(train=TRAIN))
    assert 'image_2/000000.png is missing' in str(caught.value)
    assert '000001.bin has 25597 bytes, which is not a positive multiple of 16' in str(caught.value)


def test_planes_of_the_ground_come_along(raw, tmp_path):
    folder = raw / 'training/planes'
    folder.mkdir()
    for frame in TRAIN:
        (folder / f'{frame}.txt').write_text('# Plane\nWidth 4\nHeight 1\n0.0 -1.0 0.0 1.65\n')
    prepare_kitti(raw, tmp_path / 'out', dict(train=TRAIN))
    entry = load(tmp_path / 'out/kitti_infos_train.pkl')['data_list'][0]
    assert np.asarray(entry['plane']).tolist() == [0.0, -1.0, 0.0, 1.65]


def test_unknown_classes_become_regions_on_request(raw, tmp_path):
    label = raw / 'training/label_2/000000.txt'
    label.write_text('\nBus  0 0 0 1 2 30 40 1 1 1 0 0 9 0\n' + label.read_text())
    done = prepare_kitti(raw, tmp_path / 'out', dict(train=TRAIN), dont_care=['Bus'])
    assert done['train'].objects == {'Car': 6, 'Pedestrian': 2, 'Cyclist': 2}
    instances = load(tmp_path / 'out/kitti_infos_train.pkl')['data_list'][0]['instances']
    assert [i['bbox_label'] for i in instances][-2:] == [-1, -1]
    assert [1.0, 2.0, 30.0, 40.0] in [i['bbox'] for i in instances]
    assert any('blank space' in fault for fault in check_frame(raw, '000000', strict=True, dont_care=['Bus']))
    assert clean_labels('') == ''


def test_selections(raw):
    assert find_frames(raw) == TRAIN + VAL
    assert find_frames(raw, [str(raw / 'ImageSets/val.txt'), '000000-000001']) == VAL + TRAIN
    with pytest.raises(FileNotFoundError, match=r"no frame matches '000009' in .*it holds 000000 to 000003"):
        find_frames(raw, ['000009'])
    with pytest.raises(ValueError, match=r"six digits .*got '9'"):
        find_frames(raw, ['9'])
    with pytest.raises(FileNotFoundError, match='KITTI layout'):
        find_frames(raw / 'training')
    with pytest.raises(ValueError, match='in both: 000000'):
        prepare_kitti(raw, raw, dict(train=TRAIN, val=TRAIN[:1]))


def run(*args):
    command = [sys.executable, str(ROOT / 'tools/prepare_kitti.py'), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})


def test_frames_of_a_laser_alone(raw, tmp_path):
    with_camera = prepare_kitti(raw, tmp_path / 'camera', dict(train=TRAIN, val=VAL))
    shutil.rmtree(raw / 'training/image_2')
    said = []
    done = prepare_kitti(raw, tmp_path / 'out', dict(train=TRAIN, val=VAL), image_size=(400, 120), say=said.append)
    assert sum('no frame has a picture' in text for text in said) == 1
    assert done == with_camera
    for name in ('kitti_infos_train.pkl', 'kitti_dbinfos_train.pkl'):
        assert load_restricted(tmp_path / 'out' / name).keys() == load_restricted(tmp_path / 'camera' / name).keys()
    for file in (tmp_path / 'camera/training/velodyne_reduced').iterdir():
        assert (tmp_path / 'out/training/velodyne_reduced' / file.name).read_bytes() == file.read_bytes()
    wide = prepare_kitti(raw, tmp_path / 'wide', dict(train=TRAIN))
    assert wide['train'].frames == 2
    image = load_restricted(tmp_path / 'wide/kitti_infos_train.pkl')['data_list'][0]['images']['CAM2']
    assert (image['height'], image['width']) == (375, 1242)


def test_points_that_are_no_numbers_are_said_and_left_out(raw, tmp_path):
    file = raw / 'training/velodyne/000000.bin'
    points = np.fromfile(file, '<f4').reshape(-1, 4)
    clean = prepare_kitti(raw, tmp_path / 'clean', dict(train=TRAIN[:1]))
    extra = np.array([[np.nan, 0, 0, 0], [5, np.inf, 0, 0], [5, 0, 0, np.nan]], '<f4')
    np.concatenate([points, extra]).tofile(file)
    said = []
    done = prepare_kitti(raw, tmp_path / 'out', dict(train=TRAIN[:1]), say=said.append)
    assert f'{file}: 3 of 1603 points have NaN or inf; they are left out' in said
    assert done == clean
    name = 'training/velodyne_reduced/000000.bin'
    assert (tmp_path / 'out' / name).read_bytes() == (tmp_path / 'clean' / name).read_bytes()
    counts = [load(tmp_path / each / 'kitti_infos_train.pkl')['data_list'][0]['instances'] for each in ('out', 'clean')]
    assert [i['num_lidar_pts'] for i in counts[0]] == [i['num_lidar_pts'] for i in counts[1]]
    np.full((5, 4), np.nan, '<f4').tofile(file)
    with pytest.raises(ValueError, match=r'has 5 points, 5 of them with NaN or inf'):
        prepare_kitti(raw, tmp_path / 'bad', dict(train=TRAIN[:1]))
    (points * [-1, 1, 1, 1]).astype('<f4').tofile(file)  # all behind the camera
    with pytest.raises(ValueError, match=r'1 frames have no point in the view of the camera.*: 000000; check P2'):
        prepare_kitti(raw, tmp_path / 'behind', dict(train=TRAIN))
    assert not list((tmp_path / 'behind').glob('*.pkl'))


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.mark.parametrize(
    'link', ['', 'training', 'training/velodyne', 'training/label_2', 'training/calib', 'training/velodyne_reduced']
)
def test_folders_that_lead_into_the_raw_data_are_refused(raw, tmp_path, link):
    source = raw / (link if link != 'training/velodyne_reduced' else 'training/velodyne')
    out, before = tmp_path / 'out', contents(raw)
    (out / link).parent.mkdir(parents=True, exist_ok=True)
    (out / link).symlink_to(source)
    with pytest.raises(SourceOverwritten, match='is only read'):
        prepare_kitti(raw, out, dict(train=TRAIN, val=VAL))
    assert contents(raw) == before
    assert not (out / '.prepare_kitti').exists()


def test_files_that_lead_into_the_raw_data_are_left_alone(raw, tmp_path):
    out, before = tmp_path / 'out', contents(raw)
    for kind, name in (('velodyne', '000000.bin'), ('label_2', '000000.txt'), ('calib', '000000.txt')):
        (out / 'training' / kind).mkdir(parents=True)
        (out / 'training' / kind / name).symlink_to(raw / 'training' / kind / name)
        other = name.replace('0.', '1.')
        os.link(raw / 'training' / kind / other, out / 'training' / kind / other)
    (out / 'kitti_infos_train.pkl').symlink_to(raw / 'ImageSets/train.txt')
    done = prepare_kitti(raw, out, dict(train=TRAIN, val=VAL))
    assert done['train'].frames == 2
    assert contents(raw) == before
    (raw / 'training/velodyne_reduced').symlink_to(raw / 'training/velodyne')
    with pytest.raises(SourceOverwritten):
        prepare_kitti(raw, raw, dict(train=TRAIN, val=VAL))
    (raw / 'training/velodyne_reduced').unlink()
    with pytest.raises(SourceOverwritten):
        prepare_kitti(raw, raw / 'training/new', dict(train=TRAIN, val=VAL))
    assert contents(raw) == before
    prepare_kitti(raw, raw / 'inside', dict(train=TRAIN, val=VAL))  # next to the raw folders, which it does not touch
    assert {path: raw_bytes for path, raw_bytes in contents(raw).items() if 'inside' not in path.parts} == before


def test_files_of_others_are_not_replaced(raw, tmp_path):
    out = tmp_path / 'out'
    (out / 'training/velodyne').mkdir(parents=True)
    (out / 'training/velodyne/000001.bin').write_bytes(b'mine')
    with pytest.raises(FileExistsError, match=r'000001\.bin is there already'):
        prepare_kitti(raw, out, dict(train=TRAIN))
    (out / 'training/velodyne/000001.bin').unlink()
    (out / 'kitti_gt_database').mkdir()
    (out / 'kitti_gt_database/x.bin').write_bytes(b'mine')
    with pytest.raises(FileExistsError, match='kitti_gt_database was not made by this tool'):
        prepare_kitti(raw, out, dict(train=TRAIN))
    assert (out / 'kitti_gt_database/x.bin').read_bytes() == b'mine'


def test_what_was_made_of_other_data_is_not_taken_for_done(raw, tmp_path):
    other = write_tiny_kitti(tmp_path / 'other', num_points=1600, seed=7)
    out, splits = tmp_path / 'out', dict(train=TRAIN)
    names = ['training/velodyne_reduced/000000.bin', 'kitti_infos_train.pkl', 'kitti_dbinfos_train.pkl']
    prepare_kitti(raw, out, splits)
    first = [(out / name).read_bytes() for name in names]
    prepare_kitti(other, out, splits)
    assert (out / names[0]).read_bytes() != first[0]
    prepare_kitti(raw, out, splits)
    assert [(out / name).read_bytes() for name in names] == first
    next((out / 'kitti_gt_database').glob('*.bin')).unlink()
    said = []
    prepare_kitti(raw, out, splits, say=said.append)
    assert said[-1] == 'ground-truth database: 10 objects'


def test_parts_are_data(raw, tmp_path):
    out = tmp_path / 'out'
    prepare_kitti(raw, out, dict(train=TRAIN))
    (part,) = (out / '.prepare_kitti').iterdir()
    infos = load_part(part)
    assert infos[0]['annos']['name'].dtype.kind == 'U'
    whole = part.read_bytes()
    for damage in (b'', b'[]', whole[:-9], whole.replace(b'<f8', b'|O'), pickle.dumps(infos)):
        part.write_bytes(damage)
        assert load_part(part) is None
    prepare_kitti(raw, out, dict(train=TRAIN))
    assert [str(info) for info in load_part(part)] == [str(info) for info in infos]


def test_one_preparation_of_a_folder_at_a_time(raw, tmp_path):
    with locked_folder(tmp_path / 'out'):
        result = run(raw, '--train', '000000', '--out', tmp_path / 'out')
    assert result.returncode == 1
    assert 'is being written by another process' in result.stderr
    (tmp_path / 'file').write_text('')
    result = run(raw, '--train', '000000', '--out', tmp_path / 'file')
    assert result.returncode == 1
    assert result.stderr.strip() == f'error: --out must be a folder, got the file {tmp_path / "file"}'


@pytest.mark.slow
def test_the_tool_takes_the_lists_of_the_data_set(raw, tmp_path):
    result = run(raw, '--out', tmp_path / 'out')
    assert result.returncode == 0, result.stderr
    assert 'kitti_infos_train.pkl: 2 frames, 6 Car, 2 Cyclist, 2 Pedestrian' in result.stdout
    assert 'boxes without a point: 2 Car' in result.stdout
    assert len(result.stdout) < 1500
    assert 'task/s' not in result.stdout + result.stderr
    assert (tmp_path / 'out/kitti_infos_trainval.pkl').is_file()


def test_the_tool_explains_what_is_missing(raw):
    (raw / 'ImageSets/train.txt').unlink()
    (raw / 'ImageSets/val.txt').unlink()
    result = run(raw)
    assert result.returncode == 1
    assert 'name the frames with --train and --val' in result.stderr


def count_points(raw, frame):
    """Points in the first box of a label file, from KITTI's description of the files alone."""
    rows = [line.split(':') for line in (raw / f'training/calib/{frame}.txt').read_text().splitlines() if ':' in line]
    calib = {name: np.array(values.split(), float) for name, values in rows}
    points = np.fromfile(raw / f'training/velodyne/{frame}.bin', np.float32).reshape(-1, 4)[:, :3]
    homogeneous = np.append(points, np.ones((len(points), 1)), 1)
    camera = homogeneous @ calib['Tr_velo_to_cam'].reshape(3, 4).T @ calib['R0_rect'].reshape(3, 3).T
    fields = (raw / f'training/label_2/{frame}.txt').read_text().split()[8:15]
    height, width, length, x, y, z, rotation = map(float, fields)
    moved = camera - [x, y, z]
    along = np.cos(rotation) * moved[:, 0] - np.sin(rotation) * moved[:, 2]
    across = np.sin(rotation) * moved[:, 0] + np.cos(rotation) * moved[:, 2]
    level = (moved[:, 1] <= 0) & (moved[:, 1] >= -height)
    return (level & (abs(along) <= length / 2) & (abs(across) <= width / 2)).sum()


def test_the_real_frames(tmp_path):
    if not os.environ.get('CLUSTERPLUG_DATA'):
        pytest.skip('CLUSTERPLUG_DATA is not set: no real frames')
    raw = Path(os.environ['CLUSTERPLUG_DATA']) / 'kitti'
    done = prepare_kitti(raw, tmp_path, dict(train=find_frames(raw, ['000000-000007']), val=['000008', '000009']))
    assert done['trainval'].objects == {'Pedestrian': 2, 'Truck': 1, 'Car': 21, 'Cyclist': 2, 'Misc': 1}
    infos = load(tmp_path / 'kitti_infos_train.pkl')['data_list']
    assert infos[0]['instances'][0]['num_lidar_pts'] == pytest.approx(count_points(raw, '000000'), abs=1)
    assert {len(v) for v in load(tmp_path / 'kitti_dbinfos_train.pkl').values()} == {2, 1, 12}
