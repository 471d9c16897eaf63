# SPDX-License-Identifier: Apache-2.0
"""Runs of the LiDAR city that are interrupted: restart, full disk, other cities, killed workers."""

import errno
import json
import shutil
import subprocess
import sys
import time

import pytest

pytest.importorskip('open3d')

from _city_files import SMALL, fingerprint

from clusterplug.core import files
from clusterplug.core.outputs import FolderInUse, locked_folder
from clusterplug.datasets import generate_lidar_city
from clusterplug.datasets.lidar_city import generate as generate_module, workers


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
    opened = files._opened

    def opened_on_full_disk(path, *arguments, **options):
        file = opened(path, *arguments, **options)
        return FullDisk(file) if stage in path else file

    monkeypatch.setattr(files, '_opened', opened_on_full_disk)
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

    monkeypatch.setattr(files, '_opened', forbidden)
    with pytest.raises(PermissionError, match=r'no permission to write.*another folder'):
        generate_lidar_city(tmp_path / 'city', **SMALL)


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
