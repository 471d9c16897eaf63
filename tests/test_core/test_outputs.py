# SPDX-License-Identifier: Apache-2.0
"""Sources are never written, one folder has one writer, and a marker knows what made an output."""

import os
import subprocess
import sys

import pytest

from clusterplug.core import outputs
from clusterplug.core.outputs import (
    FolderInUse,
    SourceOverwritten,
    difference,
    fingerprint,
    locked_folder,
    read_marker,
    refuse_source_targets,
    write_marker,
)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / 'raw'
    (folder / 'training').mkdir(parents=True)
    (folder / 'training/000.bin').write_bytes(b'data')
    return folder


def test_targets_elsewhere_are_fine(source, tmp_path):
    refuse_source_targets(source, [tmp_path / 'out', tmp_path / 'raw2/x', tmp_path / 'new/deep/file'])


@pytest.mark.parametrize('target', ['', 'out', 'training/000.bin', '../raw', '../raw/../raw/x'])
def test_targets_in_the_source_are_refused(source, target):
    with pytest.raises(SourceOverwritten, match='only read'):
        refuse_source_targets(source, [source / target])


def test_a_linked_folder_of_the_output_is_refused(source, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'training').symlink_to(source / 'training')
    refuse_source_targets(source, [out / 'infos.pkl'])
    with pytest.raises(SourceOverwritten, match='really'):
        refuse_source_targets(source, [out / 'infos.pkl', out / 'training/new.bin'])


def test_a_linked_source_and_a_hard_link_are_refused(source, tmp_path):
    (tmp_path / 'link').symlink_to(source)
    with pytest.raises(SourceOverwritten):
        refuse_source_targets(tmp_path / 'link', [source / 'x'])
    os.link(source / 'training/000.bin', tmp_path / 'hard.bin')
    with pytest.raises(SourceOverwritten):
        refuse_source_targets(source / 'training/000.bin', [tmp_path / 'hard.bin'])


def hold(folder):
    code = (
        'import sys, time\n'
        'from clusterplug.core.outputs import locked_folder\n'
        'with locked_folder(sys.argv[1]):\n'
        "    print('held', flush=True)\n"
        '    time.sleep(600)\n'
    )
    process = subprocess.Popen([sys.executable, '-c', code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == 'held'
    return process


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    process = hold(tmp_path / 'out')
    try:
        with pytest.raises(FolderInUse, match=str(process.pid)), locked_folder(tmp_path / 'out'):
            pass
    finally:
        process.kill()
        process.wait()
    with locked_folder(tmp_path / 'out'):
        assert (tmp_path / 'out' / outputs.LOCK).is_file()


def test_the_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(KeyError), locked_folder(tmp_path):
        raise KeyError
    with locked_folder(tmp_path):
        pass


def test_markers(tmp_path):
    path = tmp_path / 'marker.json'
    assert read_marker(path) is None
    write_marker(path, {'size': 224, 'names': ('a', 'b')})
    assert difference(read_marker(path), {'size': 224, 'names': ('a', 'b')}) == ''
    assert difference(read_marker(path), {'size': 128, 'fps': 3}) == (
        "size: 224 there, 128 now; fps: None there, 3 now; names: ['a', 'b'] there, None now"
    )
    for content in (b'', b'[1]', b'{"a"', b'\xff\xfe'):
        path.write_bytes(content)
        assert read_marker(path) is None


def test_a_fingerprint_changes_with_content_and_time(tmp_path):
    path = tmp_path / 'a'
    path.write_bytes(b'one')
    first = fingerprint(path)
    os.utime(path, ns=(0, first['modified'] + 1000))
    assert fingerprint(path) != first
    path.write_bytes(b'longer')
    assert fingerprint(path)['size'] == 6


def test_a_link_in_the_place_of_the_lock_is_not_written_through(tmp_path):
    (tmp_path / 'source').write_text('mine')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / outputs.LOCK).symlink_to(tmp_path / 'source')
    with pytest.raises(OSError), locked_folder(tmp_path / 'out'):
        pass
    assert (tmp_path / 'source').read_text() == 'mine'
