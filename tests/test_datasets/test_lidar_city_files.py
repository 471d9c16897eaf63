# SPDX-License-Identifier: Apache-2.0
"""The files of a LiDAR city: layout, read-back by mmdet3d, restart, bad input, full disk."""

import builtins
import errno
import hashlib
import importlib.util
import json
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('open3d')

from clusterplug.core import files
from clusterplug.core.outputs import FolderInUse, locked_folder
from clusterplug.datasets import SUBTYPES, generate_lidar_city, load_subtypes
from clusterplug.datasets.lidar_city import generate as generate_module, workers
from clusterplug.datasets.lidar_city.cli import main
from clusterplug.datasets.lidar_city.world.catalogue import CLASSES

SETTINGS = {'num_train': 3, 'num_val': 2, 'columns': 128, 'scans_per_street': 2, 'workers': 1, 'progress': False}
SMALL = {'num_train': 2, 'num_val': 1, 'columns': 32, 'scans_per_street': 2, 'workers': 1, 'progress': False}


def fingerprint(folder):
    files = sorted(path for path in Path(folder).rglob('*') if path.is_file() and path.name[0] != '.')
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope='module')
def city(tmp_path_factory):
    return generate_lidar_city(tmp_path_factory.mktemp('city'), seed=3, **SETTINGS)


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    return generate_lidar_city(tmp_path_factory.mktemp('small'), seed=5, **SMALL)


def read(city, sequence, frame):
    points = np.fromfile(city / f'sequences/{sequence:02d}/velodyne/{frame:06d}.bin', np.float32).reshape(-1, 4)
    labels = np.fromfile(city / f'sequences/{sequence:02d}/labels/{frame:06d}.label', np.uint32)
    return points, labels


def test_layout(city):
    names = set(fingerprint(city))
    scans = {(0, 0), (0, 1), (1, 0), (8, 0), (8, 1)}
    expected = {f'semantickitti_infos_{split}.pkl' for split in ('train', 'val', 'test')} | {'lidar_city.json'}
    for sequence, frame in scans:
        folder = f'sequences/{sequence:02d}'
        expected |= {f'{folder}/velodyne/{frame:06d}.bin', f'{folder}/labels/{frame:06d}.label'}
        expected |= {f'{folder}/{name}' for name in ('calib.txt', 'poses.txt', 'times.txt', 'subtypes.json')}
    assert names == expected
    for sequence, frame in scans:
        points, labels = read(city, sequence, frame)
        assert len(points) == len(labels) > 0.8 * 64 * 128
        assert np.isfinite(points).all()
        distance = np.linalg.norm(points[:, :3], axis=1)
        assert distance.min() > 1.9
        assert distance.max() < 80.1
        assert 0 <= points[:, 3].min() <= points[:, 3].max() < 1


def test_labels_instances_and_sub_types_agree(city):
    for sequence, frame in ((0, 0), (0, 1), (8, 1)):
        _, labels = read(city, sequence, frame)
        path = city / f'sequences/{sequence:02d}/labels/{frame:06d}.label'
        table = json.loads((path.parent.parent / 'subtypes.json').read_text())
        subtypes = load_subtypes(path)
        assert subtypes.dtype == np.int64
        instance, label = labels >> 16, labels & 0xFFFF
        assert np.array_equal(subtypes == -1, instance == 0)
        assert np.array_equal(instance == 0, label == 1)
        assert instance.max() < 2**15
        for number in np.unique(instance[instance > 0]):
            entry, mine = table['instances'][str(number)], instance == number
            assert set(label[mine]) == {entry['label']}
            assert set(subtypes[mine]) == {entry['subtype_id']}
            kind = SUBTYPES[entry['subtype_id']]
            assert (kind.class_name, kind.name) == (entry['class'], entry['subtype'])
            assert entry['label'] in (*CLASSES[kind.class_name], 60)
        assert [entry['name'] for entry in table['subtypes']] == [entry.name for entry in SUBTYPES]
        assert len(np.unique(label)) >= 10


def test_poses_and_calibration_put_still_things_in_one_place(city):
    folder = city / 'sequences/00'
    calibration = dict(line.split(':', 1) for line in (folder / 'calib.txt').read_text().splitlines())
    assert list(calibration) == ['P0', 'P1', 'P2', 'P3', 'Tr']
    tr = np.vstack([np.array(calibration['Tr'].split(), dtype=float).reshape(3, 4), [0, 0, 0, 1]])
    poses = np.loadtxt(folder / 'poses.txt').reshape(-1, 3, 4)
    assert len(poses) == 2
    np.testing.assert_allclose(poses[0], np.eye(4)[:3], atol=1e-9)
    assert poses[1][2, 3] == pytest.approx(5.0, abs=0.1), 'the camera looks along z, and the car drives that way'
    np.testing.assert_allclose(np.loadtxt(folder / 'times.txt'), [0.0, 0.625])
    clouds = []
    for frame in range(2):
        points, labels = read(city, 0, frame)
        pose = np.linalg.inv(tr) @ np.vstack([poses[frame], [0, 0, 0, 1]]) @ tr  # the loader of semantic-kitti-api
        clouds.append((points[:, :3] @ pose[:3, :3].T + pose[:3, 3], labels))
    compared = 0
    for number in np.intersect1d(*[labels[np.isin(labels & 0xFFFF, (71, 80))] for _, labels in clouds]):
        one, two = (xyz[labels == number][:, :2] for xyz, labels in clouds)
        if min(len(one), len(two)) >= 8:
            compared += 1
            np.testing.assert_allclose(one.mean(axis=0), two.mean(axis=0), atol=0.6)
            assert np.abs(one.mean(axis=0) - two.mean(axis=0)).max() < 0.6
    assert compared >= 2


def test_same_seed_same_bytes_other_seed_other_bytes(small, tmp_path):
    again = generate_lidar_city(tmp_path / 'again', seed=5, **SMALL)
    assert fingerprint(again) == fingerprint(small)
    other = generate_lidar_city(tmp_path / 'other', seed=6, **SMALL)
    mine, theirs = fingerprint(small), fingerprint(other)
    assert all(mine[name] != theirs[name] for name in mine if name.endswith(('.bin', '.label')))


@pytest.mark.slow
def test_workers_do_not_change_the_bytes(small, tmp_path):
    shared = generate_lidar_city(tmp_path, seed=5, **{**SMALL, 'workers': 3})
    assert fingerprint(shared) == fingerprint(small)


@pytest.mark.slow
def test_a_worker_passes_its_error_on(tmp_path):
    (tmp_path / 'city/sequences/00').mkdir(parents=True)
    (tmp_path / 'city/sequences/00/velodyne').write_text('in the way')
    files.write_bytes(tmp_path / 'city' / generate_module.MARKER, settings_bytes(seed=5))
    with pytest.raises(OSError, match='velodyne'):
        generate_lidar_city(tmp_path / 'city', seed=5, **{**SMALL, 'workers': 2})


def settings_bytes(seed):
    kept = {key: SMALL[key] for key in ('num_train', 'num_val', 'columns', 'scans_per_street')}
    return json.dumps({'generator': generate_module.GENERATOR, 'seed': seed, 'spacing': 5.0, **kept}).encode()


def test_a_partial_run_is_continued(small, tmp_path):
    city = shutil.copytree(small, tmp_path / 'city')
    kept = city / 'sequences/00/velodyne/000000.bin'
    before = kept.stat().st_mtime_ns
    for name in ('sequences/00/labels/000001.label', 'sequences/00/times.txt', 'semantickitti_infos_train.pkl'):
        (city / name).unlink()
    shutil.rmtree(city / 'sequences/08')
    (city / 'sequences/00/velodyne/.000001.bin.part').write_bytes(b'left by a killed run')
    generate_lidar_city(city, seed=5, **SMALL)
    assert fingerprint(city) == fingerprint(small)
    assert kept.stat().st_mtime_ns == before, 'what was finished is not written again'


class FullDisk:
    """A file that takes half of what it is given and then reports a full disk."""

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def write(self, content):
        self._file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.parametrize('stage', ['000001.bin', '000000.label', 'poses.txt', 'infos_val.pkl', 'lidar_city.json'])
def test_full_disk_leaves_nothing_half_written(small, tmp_path, monkeypatch, stage):
    def open_on_full_disk(path, *arguments, **options):
        file = builtins.open(path, *arguments, **options)  # noqa: SIM115 (handed on)
        return FullDisk(file) if stage in str(path) else file

    monkeypatch.setattr(files, 'open', open_on_full_disk, raising=False)
    city = tmp_path / 'city'
    with pytest.raises(OSError, match=r'disk is full.*older files are untouched') as caught:
        generate_lidar_city(city, seed=5, **SMALL)
    assert caught.value.errno == errno.ENOSPC
    assert stage in caught.value.filename
    there, whole = fingerprint(city), fingerprint(small)
    assert there == {name: whole[name] for name in there}, 'every file that is there is complete'
    assert not any('semantickitti_infos_val' in name for name in there)
    monkeypatch.undo()
    generate_lidar_city(city, seed=5, **SMALL)
    assert fingerprint(city) == whole


def test_no_permission_is_said_clearly(tmp_path, monkeypatch):
    def forbidden(path, *arguments, **options):
        raise PermissionError(errno.EACCES, 'Permission denied', str(path))

    monkeypatch.setattr(files, 'open', forbidden, raising=False)
    with pytest.raises(PermissionError, match=r'no permission to write.*another folder'):
        generate_lidar_city(tmp_path / 'city', **SMALL)


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        ({'num_train': 0}, ValueError, 'num_train must be from 1'),
        ({'num_val': -1}, ValueError, 'num_val must be from 1 .* got -1'),
        ({'num_train': 1.5}, TypeError, 'num_train must be an integer, got 1.5'),
        ({'seed': -1}, ValueError, 'seed must be from 0'),
        ({'seed': True}, TypeError, 'seed must be an integer, got True'),
        ({'columns': 8}, ValueError, 'columns must be from 16 to 4096, got 8'),
        ({'scans_per_street': 0}, ValueError, 'scans_per_street must be from 1'),
        ({'spacing': 0.0}, ValueError, 'spacing must be a number of metres from 0.1 to 20'),
        ({'spacing': float('nan')}, ValueError, 'spacing'),
        ({'workers': 0}, ValueError, 'workers must be from 1'),
    ],
)
def test_bad_arguments(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        generate_lidar_city(tmp_path / 'city', **{**SMALL, **change})
    assert not (tmp_path / 'city').exists()


def test_another_city_is_not_touched_unless_asked(small, tmp_path):
    city = shutil.copytree(small, tmp_path / 'city')
    with pytest.raises(FileExistsError, match=r'other settings: seed: 5 there, 6 now.*--overwrite'):
        generate_lidar_city(city, seed=6, **SMALL)
    with pytest.raises(FileExistsError, match='columns: 32 there, 64 now'):
        generate_lidar_city(city, seed=5, **{**SMALL, 'columns': 64})
    assert fingerprint(city) == fingerprint(small)
    (city / 'notes.txt').write_text('mine')
    generate_lidar_city(city, seed=6, overwrite=True, **{**SMALL, 'num_train': 1})
    names = set(fingerprint(city))
    assert 'notes.txt' in names
    assert 'sequences/00/velodyne/000000.bin' in names
    assert 'sequences/00/velodyne/000001.bin' not in names


def test_foreign_data_is_never_touched(tmp_path):
    scan = tmp_path / 'sequences/00/velodyne/000000.bin'
    scan.parent.mkdir(parents=True)
    scan.write_bytes(b'real')
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match='a LiDAR city of an earlier version, or files of somebody else'):
            generate_lidar_city(tmp_path, overwrite=overwrite, **SMALL)
    assert scan.read_bytes() == b'real'
    file = tmp_path / 'file'
    file.write_text('')
    with pytest.raises(FileExistsError, match='must be a folder'):
        generate_lidar_city(file, **SMALL)


def is_running(process):
    try:
        with open(f'/proc/{process}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.parametrize('moved', ['sequences/00', 'sequences', 'sequences/00/velodyne', 'semantickitti_infos_val.pkl'])
def test_an_overwritten_city_is_of_the_new_seed_although_parts_were_links(small, tmp_path, moved):
    city = shutil.copytree(small, tmp_path / 'city')
    (tmp_path / 'disk').mkdir()
    shutil.move(city / moved, tmp_path / 'disk/moved')
    (city / moved).symlink_to(tmp_path / 'disk/moved')
    before = fingerprint(tmp_path / 'disk')
    generate_lidar_city(city, seed=6, overwrite=True, **SMALL)
    assert not (city / moved).is_symlink()
    assert fingerprint(tmp_path / 'disk') == before
    assert fingerprint(city) == fingerprint(generate_lidar_city(tmp_path / 'clean', seed=6, **SMALL))


def test_a_street_that_cannot_be_removed_leaves_the_old_marker(small, tmp_path, monkeypatch):
    city = shutil.copytree(small, tmp_path / 'city')

    def refuse(path, *arguments, **options):
        raise PermissionError(errno.EACCES, 'Permission denied', str(path))

    monkeypatch.setattr(generate_module.shutil, 'rmtree', refuse)
    with pytest.raises(PermissionError):
        generate_lidar_city(city, seed=6, overwrite=True, **SMALL)
    assert json.loads((city / generate_module.MARKER).read_text())['seed'] == 5
    monkeypatch.undo()
    generate_lidar_city(city, seed=5, **SMALL)
    assert fingerprint(city) == fingerprint(small)


def test_the_marker_comes_last(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generate_module, 'info_bytes', interrupt)
        with pytest.raises(KeyboardInterrupt):
            generate_lidar_city(tmp_path, seed=5, **SMALL)
    assert not (tmp_path / generate_module.MARKER).exists()
    with pytest.raises(FileExistsError, match='seed: 5 there, 6 now'):
        generate_lidar_city(tmp_path, seed=6, **SMALL)
    generate_lidar_city(tmp_path, seed=5, **SMALL)
    assert json.loads((tmp_path / generate_module.MARKER).read_text())['seed'] == 5
    assert not list(tmp_path.glob('*.begun'))


def test_half_a_scan_and_a_foreign_info_file_are_written_again(small, tmp_path):
    city = shutil.copytree(small, tmp_path / 'city')
    label = city / 'sequences/00/labels/000001.label'
    label.write_bytes(label.read_bytes()[:-4])
    (city / 'semantickitti_infos_val.pkl').write_bytes(b'of another city')
    generate_lidar_city(city, seed=5, **SMALL)
    assert fingerprint(city) == fingerprint(small)


def test_one_city_at_a_time(small, tmp_path):
    with locked_folder(tmp_path), pytest.raises(FolderInUse):
        generate_lidar_city(tmp_path, seed=5, **SMALL)


def test_a_killed_worker_is_named_with_its_scan(tmp_path, monkeypatch):
    start = workers._start

    def start_and_kill():
        child = start()
        child.kill()
        return child

    monkeypatch.setattr(workers, '_start', start_and_kill)
    with pytest.raises(RuntimeError, match=r'killed by signal 9.*sequences/\d\d/velodyne/\d{6}\.bin') as caught:
        generate_lidar_city(tmp_path, seed=5, **{**SMALL, 'workers': 2})
    assert 'same command again' in str(caught.value)


@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
@pytest.mark.parametrize('signal', ['kill', pytest.param('terminate', marks=pytest.mark.slow)])
def test_workers_end_with_their_parent(tmp_path, signal):
    code = (
        'from clusterplug.datasets.lidar_city import generate, workers; start = workers._start\n'
        'def tell():\n    child = start(); print(child.pid, flush=True); return child\n'
        'workers._start = tell\n'
        f'generate.generate_lidar_city({str(tmp_path / "city")!r}, num_train=500, num_val=1, workers=2, progress=False)'
    )
    parent = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    children = [int(parent.stdout.readline()) for _ in range(2)]
    getattr(parent, signal)()
    parent.wait()
    for _ in range(400):
        if not any(map(is_running, children)):
            return
        time.sleep(0.05)
    pytest.fail('workers outlived their parent')


def test_load_subtypes_refuses_what_it_cannot_read(small, tmp_path):
    with pytest.raises(FileNotFoundError, match='no such label file'):
        load_subtypes(tmp_path / 'labels/000000.label')
    city = shutil.copytree(small, tmp_path / 'city')
    label = city / 'sequences/00/labels/000000.label'
    whole = label.read_bytes()
    label.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f'truncated: {len(whole) - 1} bytes'):
        load_subtypes(label)
    label.write_bytes(np.array([40 | 30_000 << 16], dtype=np.uint32).tobytes())
    with pytest.raises(ValueError, match='names instance 30000'):
        load_subtypes(label)
    (city / 'sequences/00/subtypes.json').write_text('{')
    with pytest.raises(ValueError, match='not a sub-type table'):
        load_subtypes(label)
    (city / 'sequences/00/subtypes.json').unlink()
    with pytest.raises(FileNotFoundError, match=r'subtypes\.json is missing'):
        load_subtypes(label)


def test_command_line(small, tmp_path, capsys):
    arguments = [str(tmp_path / 'city'), '--num-train', '2', '--num-val', '1', '--seed', '5', '--columns', '32']
    arguments += ['--scans-per-street', '2', '--workers', '1']
    assert main(arguments) == 0
    assert fingerprint(tmp_path / 'city') == fingerprint(small)
    error = capsys.readouterr().err
    assert '3/3 scans' in error
    assert '\r' not in error, 'plain lines when nobody watches a terminal'
    assert main([*arguments, '--seed', '9']) == 1
    assert '--overwrite' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, '--columns', 'many'])


def test_info_files_equal_those_of_the_converter_of_mmdet3d(city, monkeypatch):
    mmdet3d = pytest.importorskip('mmdet3d')
    path = Path(mmdet3d.__file__).parent / '.mim/tools/dataset_converters/semantickitti_converter.py'
    if not path.is_file():
        pytest.skip('this mmdet3d was installed without its tools')
    spec = importlib.util.spec_from_file_location('semantickitti_converter', path)
    converter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(converter)
    monkeypatch.setattr(converter, 'total_num', {0: 2, 1: 1, 8: 2})
    monkeypatch.setattr(converter, 'fold_split', {'train': [0, 1], 'val': [8]})
    for split in ('train', 'val'):
        mine = pickle.loads((city / f'semantickitti_infos_{split}.pkl').read_bytes())
        assert mine == converter.get_semantickitti_info(split)


def test_mmdet3d_reads_the_city(city):
    pytest.importorskip('mmdet3d')
    from mmdet3d.datasets import SemanticKittiDataset
    from mmdet3d.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules(init_default_scope=True)
    import mmdet3d

    base = Path(mmdet3d.__file__).parent / '.mim/configs/_base_/datasets/semantickitti.py'
    if not base.is_file():
        pytest.skip('this mmdet3d was installed without its configs')
    config = Config.fromfile(str(base))
    for split, scans in (('train', [(0, 0), (0, 1), (1, 0)]), ('val', [(8, 0), (8, 1)])):
        dataset = SemanticKittiDataset(
            data_root=str(city),
            ann_file=f'semantickitti_infos_{split}.pkl',
            pipeline=config.test_pipeline,
            metainfo=config.metainfo,
            modality=config.input_modality,
            ignore_index=19,
        )
        assert len(dataset) == len(scans)
        for index, (sequence, frame) in enumerate(scans):
            item = dataset[index]
            points, labels = read(city, sequence, frame)
            np.testing.assert_array_equal(item['inputs']['points'].numpy(), points)
            mapped = item['data_samples'].gt_pts_seg.pts_semantic_mask
            expected = np.array([config.labels_map[int(label)] for label in labels & 0xFFFF])
            np.testing.assert_array_equal(np.asarray(mapped), expected)
            assert (expected < 19).mean() > 0.95
    train = SemanticKittiDataset(
        data_root=str(city),
        ann_file='semantickitti_infos_train.pkl',
        pipeline=config.train_pipeline,
        metainfo=config.metainfo,
        modality=config.input_modality,
        ignore_index=19,
    )
    assert train[0]['inputs']['points'].shape[1] == 4
