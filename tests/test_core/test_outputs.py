# SPDX-License-Identifier: Apache-2.0
"""Sources are never written, one folder has one writer, and a marker knows what made an output."""

import os
import subprocess
import sys
import threading

import pytest

from clusterplug.core import outputs
from clusterplug.core.files import write_bytes
from clusterplug.core.outputs import (
    FolderInUse,
    ForeignOutput,
    SourceOverwritten,
    check_output_file,
    difference,
    fingerprint,
    locked_file,
    locked_folder,
    output_folder,
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


def names(folder):
    return sorted(path.name for path in folder.rglob('*') if path.is_file() and not path.name.startswith('.'))


def test_results_of_two_runs_never_stand_side_by_side(tmp_path):
    out = tmp_path / 'out'
    files = ['sum.json', 'cluster_*.png', 'points/*.npz']
    for written in (['sum.json', 'cluster_0.png', 'cluster_1.png', 'points/a.npz'], ['sum.json', 'cluster_0.png']):
        with output_folder(out, 'tool', files=files, settings=dict(seed=3)):
            assert read_marker(out / '.tool.json')['finished'] is False
            for name in written:
                write_bytes(out / name, b'x')
            (out / 'note.txt').write_text('of the user')
        marker = read_marker(out / '.tool.json')
        assert marker == dict(tool='tool', settings=dict(seed=3), finished=True, files=sorted(written))
        assert names(out) == sorted([*(name.rpartition('/')[2] for name in written), 'note.txt'])
    with output_folder(out, 'tool', files=files, keep=True):
        write_bytes(out / 'cluster_7.png', b'x')
    assert names(out) == ['cluster_0.png', 'cluster_7.png', 'note.txt', 'sum.json']


def test_files_of_others_are_refused_and_named(tmp_path):
    (tmp_path / 'sum.json').write_text('mine')
    for tool in ('tool', 'tool'):  # a refusal does not make the file the tool's own
        with (
            pytest.raises(ForeignOutput, match=r'holds sum\.json, not written by tool'),
            output_folder(tmp_path, tool, files=['sum.json']),
        ):
            pytest.fail('entered')
    assert (tmp_path / 'sum.json').read_text() == 'mine'
    assert not (tmp_path / '.tool.json').exists()
    with output_folder(tmp_path, 'other', files=['else.json']):
        pass


@pytest.mark.parametrize('writes', [False, True])
def test_a_run_that_fails_leaves_what_was_there_as_its_own(tmp_path, writes):
    with output_folder(tmp_path, 'tool', files=['a', 'b']):
        write_bytes(tmp_path / 'a', b'first')

    def run():
        with output_folder(tmp_path, 'tool', files=['a', 'b']):
            if writes:
                write_bytes(tmp_path / 'b', b'second')
            raise RuntimeError

    pytest.raises(RuntimeError, run)
    assert (tmp_path / 'a').read_bytes() == b'first'
    assert read_marker(tmp_path / '.tool.json')['finished'] is not writes
    with output_folder(tmp_path, 'tool', files=['a', 'b']):  # no file of an earlier run is foreign
        write_bytes(tmp_path / 'a', b'third')
    assert names(tmp_path) == ['a']


def test_output_folders_know_the_source(source, tmp_path):
    (tmp_path / 'link').symlink_to(source)
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'sum.json').symlink_to(source / 'training/000.bin')
    for folder in (source, source / 'new', tmp_path / 'link', out):
        with (
            pytest.raises(SourceOverwritten, match='only read'),
            output_folder(folder, 'tool', files=['sum.json'], sources=[source]),
        ):
            pytest.fail('entered')
    assert names(source) == ['000.bin']
    assert not any(path.name.startswith('.') for path in source.rglob('*'))
    with locked_folder(tmp_path / 'held'), pytest.raises(FolderInUse), output_folder(tmp_path / 'held', 'tool'):
        pytest.fail('entered')


def test_output_files_are_checked_before_the_work(source, tmp_path):
    check_output_file(tmp_path / 'new' / 'deep' / 'x.png', [source])
    assert (tmp_path / 'new' / 'deep').is_dir()
    (tmp_path / 'link.bin').symlink_to(source / 'training/000.bin')
    for path in (source / 'x', tmp_path / 'link.bin'):
        with pytest.raises(SourceOverwritten):
            check_output_file(path, [source])
    with pytest.raises(IsADirectoryError, match='--sheet must be a file'):
        check_output_file(tmp_path, option='--sheet')
    (tmp_path / 'file').write_text('')
    with pytest.raises(NotADirectoryError, match='folder of --out'):
        check_output_file(tmp_path / 'file' / 'x')


def test_a_second_writer_of_a_file_waits_and_reads_what_the_first_wrote(tmp_path):
    path, said, seen = tmp_path / 'index.json', [], []

    def second():
        with locked_file(path, said.append):
            seen.append(path.read_text())

    with locked_file(path, said.append):
        assert said == []
        thread = threading.Thread(target=second)
        thread.start()
        while thread.is_alive() and not said:  # it tells of the wait before it waits
            thread.join(0.01)
        path.write_text('of the first')
    thread.join(60)
    assert seen == ['of the first']
    assert len(said) == 1
    assert str(path) in said[0]


def test_nothing_is_held_where_nothing_can_be_written(tmp_path):
    with locked_file(tmp_path / 'not there' / 'index.json', pytest.fail):
        assert not (tmp_path / 'not there').exists()
