# SPDX-License-Identifier: Apache-2.0
"""One writer: files are whole or absent, keep their permissions, and links stay links."""

import errno
import json
import os
import stat
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from clusterplug.core.files import (
    append_line,
    load_arrays,
    mapped_array,
    remove_leftovers,
    save_arrays,
    whole_file,
    write_bytes,
    write_json,
)  # fmt: skip


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_content_appears_when_all_is_written(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with whole_file(path) as file:
        file.write('new')
        file.flush()
        assert path.read_text() == 'old'
    assert path.read_text() == 'new'
    assert [entry.name for entry in tmp_path.iterdir()] == ['a.txt']


def test_an_error_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(TypeError), whole_file(path) as file:
        file.write(b'bytes into a text file')
    assert path.read_text() == 'old'
    assert [entry.name for entry in tmp_path.iterdir()] == ['a.txt']


@pytest.mark.parametrize('mode', [0o600, 0o640, 0o664, 0o755])
def test_permissions_of_a_replaced_file_are_kept(tmp_path, mode):
    path = tmp_path / 'a'
    path.write_text('old')
    path.chmod(mode)
    write_bytes(path, b'new')
    assert mode_of(path) == mode


@pytest.mark.parametrize('mask', [0o022, 0o077, 0o002])
def test_a_new_file_has_the_permissions_of_open(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / 'new', b'')
        (tmp_path / 'usual').write_bytes(b'')
    finally:
        os.umask(before)
    assert mode_of(tmp_path / 'new') == mode_of(tmp_path / 'usual')


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'real/a').write_text('old')
    (tmp_path / 'a').symlink_to('real/a')
    write_bytes(tmp_path / 'a', b'new')
    assert (tmp_path / 'a').is_symlink()
    assert (tmp_path / 'real/a').read_text() == 'new'


def test_a_link_under_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    import clusterplug.core.files as module

    victim = tmp_path / 'victim'
    victim.write_text('mine')
    monkeypatch.setattr(module.secrets, 'token_hex', lambda _: 'known')
    monkeypatch.setattr(module, '_temporary_name', lambda target: str(tmp_path / '.guessed.part'))
    (tmp_path / '.guessed.part').symlink_to(victim)
    with pytest.raises(OSError, match='File exists'):
        write_bytes(tmp_path / 'a', b'new')
    assert victim.read_text() == 'mine'


def _killed_while_writing(path):
    code = (
        'import os, signal, sys\n'
        'from clusterplug.core.files import whole_file\n'
        'with whole_file(sys.argv[1]) as file:\n'
        "    file.write('half')\n"
        '    file.flush()\n'
        '    os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    subprocess.run([sys.executable, '-c', code, str(path)], check=False)


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    path = tmp_path / 'a.txt'
    _killed_while_writing(path)
    assert len(list(tmp_path.iterdir())) == 1
    assert not path.exists()
    other = tmp_path / '.b.txt.part'
    other.write_text("somebody else's")
    write_bytes(path, b'whole')
    assert {entry.name for entry in tmp_path.iterdir()} == {'a.txt', '.b.txt.part'}


def test_leftovers_are_removed_without_a_write(tmp_path):
    (tmp_path / 'deep').mkdir()
    mine = [tmp_path / 'a.txt', tmp_path / ('long.' * 40), tmp_path / 'deep' / 'new\nline.1.txt']
    for path in [*mine, tmp_path / 'other.txt']:
        _killed_while_writing(path)
    with whole_file(mine[0]) as file:  # a process that runs: this one
        remove_leftovers([*mine, tmp_path / 'no folder' / 'a.txt'])
        file.write('whole')
    assert mine[0].read_text() == 'whole'
    assert [path.name[:6] for path in tmp_path.rglob('*.part')] == ['.other']


def test_a_full_disk_and_a_missing_folder_name_the_file(tmp_path, monkeypatch):
    (tmp_path / 'a').write_text('old')

    def full(descriptor):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with pytest.raises(FileNotFoundError, match='missing'):
        write_bytes_without_folder(tmp_path / 'missing/a')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match=r'disk is full.*older files are untouched') as caught:
        write_bytes(tmp_path / 'a', b'new')
    assert str(tmp_path / 'a') in str(caught.value)
    assert (tmp_path / 'a').read_text() == 'old'
    assert len(list(tmp_path.iterdir())) == 1


def write_bytes_without_folder(path):
    with whole_file(path, 'wb') as file:
        file.write(b'')


def test_errors_of_reading_inside_the_block_keep_their_text(tmp_path):
    with pytest.raises(FileNotFoundError, match='source') as caught, whole_file(tmp_path / 'a') as file:
        file.write((tmp_path / 'source').read_text())
    assert 'was not written' not in str(caught.value)


def test_long_names(tmp_path):
    name = 'é' * 120 + '.bin'
    write_bytes(tmp_path / name, b'whole')
    assert (tmp_path / name).read_bytes() == b'whole'


def test_arrays_come_back_and_objects_are_refused(tmp_path):
    path = tmp_path / 'a.npz'
    save_arrays(path, {'x': np.arange(3)}, {'step': 2})
    arrays, header = load_arrays(path)
    assert header == {'step': 2}
    np.testing.assert_array_equal(arrays['x'], [0, 1, 2])
    with pytest.raises(ValueError, match='objects'):
        save_arrays(path, {'x': np.array([object()])}, {})
    with pytest.raises(ValueError, match='name of the header'):
        save_arrays(path, {'__header__': np.arange(3)}, {})


@pytest.mark.parametrize('name', ['file', 'allow_pickle', 'args'])
def test_arrays_may_be_named_as_the_arguments_of_numpy(tmp_path, name):
    save_arrays(tmp_path / 'a.npz', {name: np.arange(1)}, {})
    arrays, _ = load_arrays(tmp_path / 'a.npz')
    np.testing.assert_array_equal(arrays[name], [0])


@pytest.mark.parametrize('content', [b'', b'text', b'PK\x03\x04'])
def test_foreign_arrays_are_refused_by_name(tmp_path, content):
    path = tmp_path / 'a.npz'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'a\.npz'):
        load_arrays(path)


def test_json_takes_names_that_are_no_utf8(tmp_path):
    write_json(tmp_path / 'a.json', {'name': 'clip\udcff.mp4'})
    assert json.loads((tmp_path / 'a.json').read_text()) == {'name': 'clip\udcff.mp4'}


def test_a_line_is_added_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'journal'
    append_line(path, b'one\n')
    with room(6), pytest.raises(OSError, match=r'ulimit -f.*the line was not added.*journal'):
        append_line(path, b'a long line\n')
    assert path.read_bytes() == b'one\n'
    append_line(path, b'two\n')
    assert path.read_bytes() == b'one\ntwo\n'
    with pytest.raises(OSError, match='nowhere'):
        append_line(tmp_path / 'nowhere' / 'journal', b'')


@pytest.mark.parametrize('says', [RuntimeError, None])
def test_a_full_disk_is_told_whatever_the_writer_makes_of_it(tmp_path, says):
    def save(file):
        try:
            file.write(bytes(100_000))
        except OSError:
            if says:
                raise says('enforce fail, unexpected pos 768') from None

    path = tmp_path / 'weights.pth'
    path.write_bytes(b'before')
    message = r'File too large.*was not written.*weights'
    with room(5000), pytest.raises(OSError, match=message), whole_file(path, 'wb') as file:
        save(file)
    assert path.read_bytes() == b'before'
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(RuntimeError, match='of the caller'), whole_file(path, 'wb'):
        raise RuntimeError('of the caller')


def test_torch_says_that_the_disk_is_full(tmp_path):
    torch = pytest.importorskip('torch')

    def save():
        with whole_file(tmp_path / 'weights.pth', 'wb') as file:
            torch.save(dict(weight=torch.ones(300, 300)), file)

    with room(20_000), pytest.raises(OSError, match=r'File too large.*was not written.*weights'):
        save()
    save()
    assert torch.load(tmp_path / 'weights.pth', weights_only=True)['weight'].sum() == 90_000


def test_a_mapped_array_has_its_room_before_it_is_filled(tmp_path):
    path = tmp_path / '.a.partial'
    (tmp_path / 'mine').write_text('mine')
    path.symlink_to(tmp_path / 'mine')
    array = mapped_array(path, 'int32', (5, 2))
    array[:] = 7
    array.flush()
    assert (np.load(path) == 7).all()
    assert (tmp_path / 'mine').read_text() == 'mine'
    assert os.stat(path).st_blocks * 512 >= 40
    with room(100), pytest.raises(OSError, match=r'was not written.*partial'):
        mapped_array(path, 'float32', (10**6, 4))
    assert not path.exists()


def test_a_file_that_cannot_be_mapped_is_told_by_its_name(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError(errno.EINVAL, 'Invalid argument')

    monkeypatch.setattr(np.lib.format, 'open_memmap', refuse)
    with pytest.raises(OSError, match=r'Invalid argument.*partial'):
        mapped_array(tmp_path / '.a.partial', 'int32', (3,))


@contextmanager
def room(size):
    """Files of at most ``size`` bytes, what a full disk is to a writer."""
    resource = pytest.importorskip('resource')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
