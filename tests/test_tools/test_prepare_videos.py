# SPDX-License-Identifier: Apache-2.0
"""tools/prepare_videos.py as a user calls it."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('av', reason='needs PyAV: pip install clusterplug[video]')

from clusterplug.core.outputs import FolderInUse, SourceOverwritten, locked_folder
from clusterplug.core.processes import WorkerDied
from clusterplug.datasets.video import open_store, open_video, prepare
from clusterplug.datasets.video.encoding import write_video
from clusterplug.datasets.video.prepare import REPORT, find_videos, one_line, prepare_videos

ROOT = Path(__file__).resolve().parents[2]


def run(tool, *arguments):
    command = [sys.executable, str(ROOT / 'tools' / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / 'raw'
    (folder / 'sub').mkdir(parents=True)
    frames = np.random.default_rng(0).integers(0, 255, (24, 64, 96, 3)).astype(np.uint8)
    write_video(folder / 'a.mp4', frames, 12)
    shutil.copy(folder / 'a.mp4', folder / 'sub' / 'b.mov')
    (folder / 'bad.avi').write_bytes(b'no video')
    (folder / 'notes.txt').write_text('no suffix of a video')
    return folder


@pytest.mark.parametrize('encoder', ['pyav', 'ffmpeg'])
def test_prepare(raw, tmp_path, encoder):
    if encoder == 'ffmpeg' and shutil.which('ffmpeg') is None:
        pytest.skip('needs ffmpeg')
    arguments = (raw, tmp_path / 'out', '--fps', 6, '--size', 32, '--workers', 1, '--encoder', encoder)
    result = run('prepare_videos.py', *arguments)
    assert result.returncode == 0, result.stderr
    assert '2 of 3 videos' in result.stdout
    assert 'bad.avi:' in result.stdout
    for name in ('a.mp4', 'sub/b.mp4'):
        video = open_video(tmp_path / 'out' / name, 'pyav')
        assert (video.length, video.rate) == (12, 6)
        assert video.frames([0]).shape == (1, 32, 48, 3)
    report = (tmp_path / 'out' / 'unreadable_videos.txt').read_text()
    assert report.startswith('bad.avi\t')
    assert not list((tmp_path / 'out').rglob('*.part'))
    made = (tmp_path / 'out' / 'a.mp4').stat().st_mtime_ns
    assert run('prepare_videos.py', *arguments).returncode == 0
    assert (tmp_path / 'out' / 'a.mp4').stat().st_mtime_ns == made


def test_into_an_lmdb(raw, tmp_path):
    pytest.importorskip('lmdb', reason='needs lmdb')
    from clusterplug.datasets.video import open_store

    result = run('prepare_videos.py', raw, tmp_path / 'out', '--size', 32, '--workers', 1, '--lmdb', tmp_path / 'lmdb')
    assert result.returncode == 0, result.stderr
    assert open_store(tmp_path / 'lmdb').ids() == ['a', 'b']


def test_bad_folders(raw, tmp_path):
    result = run('prepare_videos.py', tmp_path / 'none', tmp_path / 'out')
    assert result.returncode == 1
    assert 'no folder' in result.stderr
    for inside in (raw, raw / 'out', raw / 'sub'):
        with pytest.raises(ValueError, match='only read; nothing was written'):
            list(prepare_videos(raw, inside))
    with pytest.raises(ValueError, match='encoder must be'):
        list(prepare_videos(raw, tmp_path / 'out', encoder='x264'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='holds no video'):
        list(prepare_videos(tmp_path / 'empty', tmp_path / 'out'))


@pytest.fixture(scope='module')
def tool():
    """Return the tool's ``main`` with arguments, in this process."""
    spec = importlib.util.spec_from_file_location('prepare_videos_tool', ROOT / 'tools' / 'prepare_videos.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments):
        argv, sys.argv = sys.argv, ['prepare_videos.py', *map(str, arguments)]
        try:
            return module.main()
        finally:
            sys.argv = argv

    return call


@pytest.fixture
def small(tmp_path):
    """A folder with two small videos."""
    folder = tmp_path / 'raw'
    folder.mkdir()
    for number, name in enumerate(('a.mp4', 'b.mp4')):
        write_video(folder / name, np.full((6, 32, 64, 3), 60 * number, np.uint8), 3)
    return folder


def prepared(source, target, **settings):
    return {done.name: done for done in prepare_videos(source, target, **{'workers': 1, 'short_side': 16, **settings})}


@pytest.mark.parametrize(
    'arguments',
    [
        ['--size', '-5'], ['--size', '0'], ['--size', '1'], ['--size', '22.5'], ['--size', 'big'], ['--fps', '0'],
        ['--fps', '-3'], ['--fps', 'nan'], ['--fps', 'inf'], ['--fps', '3fps'], ['--workers', '0'], ['--workers', '-1'],
        ['--quality', '-1'], ['--quality', '52'], ['--encoder', 'x265'], ['--speed', '1'],
    ],
)  # fmt: skip
def test_bad_options_are_errors_of_the_parser(tool, small, tmp_path, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        tool(small, tmp_path / 'out', *arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'settings', [{'rate': 0}, {'short_side': -5}, {'quality': 99}, {'workers': 0}, {'workers': 1.5}, {'encoder': 'x'}]
)
def test_bad_settings_are_named(small, tmp_path, settings):
    with pytest.raises(ValueError, match=f'{next(iter(settings))} must be'):
        prepare_videos(small, tmp_path / 'out', **settings)
    assert not (tmp_path / 'out').exists()


def test_what_is_passed_over_is_named(tool, small, tmp_path, capsys):
    for name in ('clip.gif', 'clip.ts', 'CLIP.M2TS', 'no_suffix'):
        (small / name).write_bytes(b'GIF89a')
    (small / '.hidden').write_bytes(b'')
    (tmp_path / 'elsewhere').mkdir()
    (small / 'linked').symlink_to(tmp_path / 'elsewhere')
    assert tool(small, tmp_path / 'out', '--workers', 1) == 0
    printed = capsys.readouterr().out
    assert '2 of 2 videos' in printed
    names = ['CLIP.M2TS', 'clip.gif', 'clip.ts', 'linked', 'no_suffix']
    assert [line.split('\t')[0] for line in (tmp_path / 'out' / REPORT).read_text().splitlines()] == names
    assert all(f'  {name}: passed over' in printed for name in names)


def test_names_that_clash(small, tmp_path):
    for name in ('b.avi', 'b.MOV', 'b_avi.mp4', 'c.mkv', 'c.webm'):
        shutil.copy(small / 'b.mp4', small / name)
    (small / 'd.mp4').mkdir()
    shutil.copy(small / 'a.mp4', small / 'd.mp4' / 'x.mp4')
    shutil.copy(small / 'a.mp4', small / 'd.avi')
    expected = {
        'a.mp4': 'a.mp4', 'b.mp4': 'b.mp4', 'b_avi.mp4': 'b_avi.mp4', 'b.avi': 'b_avi_avi.mp4', 'b.MOV': 'b_MOV.mp4',
        'c.mkv': 'c.mp4', 'c.webm': 'c_webm.mp4', 'd.avi': 'd_avi.mp4', 'd.mp4/x.mp4': 'd.mp4/x.mp4',
    }  # fmt: skip
    found = prepared(small, tmp_path / 'out')
    assert {name: done.target for name, done in found.items()} == expected
    assert all(open_video(tmp_path / 'out' / name).length == 6 for name in expected.values())
    assert sorted(map(str, find_videos(small))) == sorted(str(small / name) for name in expected)


@pytest.mark.slow
def test_what_was_made_is_made_again_when_something_changes(small, tmp_path):
    out = tmp_path / 'out'

    def made(**settings):
        before = {path.name: path.stat().st_ino for path in out.glob('*.mp4')}
        found = prepared(small, out, **settings)
        assert all(not done.problem for done in found.values())
        return sorted(path.name for path in out.glob('*.mp4') if path.stat().st_ino != before.get(path.name))

    assert made() == ['a.mp4', 'b.mp4']
    assert made() == []
    for settings in ({'short_side': 32}, {'rate': 6}, {'quality': 30}):
        assert made(**settings) == ['a.mp4', 'b.mp4']
        assert made(**settings) == []
    assert open_video(out / 'a.mp4').frames([0]).shape == (1, 16, 32, 3)
    made()
    times = (small / 'a.mp4').stat()
    shutil.copy(small / 'b.mp4', small / 'a.mp4')
    os.utime(small / 'a.mp4', ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert made() == ['a.mp4']
    assert abs(open_video(out / 'a.mp4').frames([0]).mean() - 60) < 4
    (out / 'b.mp4').write_bytes(b'cut off')
    assert made() == ['b.mp4']
    (out / 'a.mp4').unlink()
    assert made() == ['a.mp4']
    with open(out / prepare.JOURNAL, 'a') as file:
        file.write('["b.mp4", {"siz')  # killed while it wrote
    assert made() == []
    (small / 'a.mp4').write_bytes(b'replaced by something that is no video')
    assert 'of no video container' in prepared(small, out)['a.mp4'].problem


def test_files_of_others_stay(tool, small, tmp_path, capsys):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'a.mp4').write_bytes(b'mine')
    assert tool(small, tmp_path / 'out', '--workers', 1) == 1
    assert (tmp_path / 'out' / 'a.mp4').read_bytes() == b'mine'
    assert 'a.mp4: a.mp4 is there already without a note of what it was made of' in capsys.readouterr().out
    assert open_video(tmp_path / 'out' / 'b.mp4').length == 6


def test_the_source_is_never_written(small, tmp_path):
    before = {path: path.read_bytes() for path in small.rglob('*.mp4')}
    (small / 'sub').mkdir()
    shutil.copy(small / 'a.mp4', small / 'sub' / 'c.avi')
    (tmp_path / 'link').symlink_to(small)
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'sub').symlink_to(small / 'sub')
    (tmp_path / 'file').mkdir()
    (tmp_path / 'file' / 'a.mp4').symlink_to(small / 'a.mp4')
    for target in (
        small,
        small / 'x' / 'y',
        tmp_path / 'link',
        tmp_path / 'link' / 'new',
        tmp_path / 'out',
        tmp_path / 'file',
    ):
        with pytest.raises(SourceOverwritten, match='nothing was written'):
            prepare_videos(small, target)
    assert {path: path.read_bytes() for path in small.glob('*.mp4')} == before
    assert sorted(path.name for path in (small / 'sub').iterdir()) == ['c.avi']


def test_one_run_at_a_time(tool, small, tmp_path, capsys):
    code = (
        'import sys, time\nfrom clusterplug.core.outputs import locked_folder\n'
        'with locked_folder(sys.argv[1]):\n    print("held", flush=True)\n    time.sleep(600)'
    )
    holder = subprocess.Popen([sys.executable, '-c', code, tmp_path / 'out'], stdout=subprocess.PIPE)
    holder.stdout.readline()
    try:
        assert tool(small, tmp_path / 'out') == 1
        assert f'another process (number {holder.pid})' in capsys.readouterr().err
        with pytest.raises(FolderInUse):
            prepared(small, tmp_path / 'out')
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert tool(small, tmp_path / 'out', '--workers', 1) == 0
    with locked_folder(tmp_path / 'out'):
        pass


ODD = [
    'two\nlines.mp4',
    'tab\there.mp4',
    'cr\rhere.mp4',
    '\u2028.mp4',
    '-v.mp4',
    '%d.mp4',
    'concat:x.mp4',
    os.fsdecode(b'\xff.mp4'),
]


@pytest.mark.parametrize('good', [True, False])
def test_odd_names_make_one_record_each(tool, tmp_path, good, capsys):
    (tmp_path / 'raw').mkdir()
    write_video(tmp_path / 'good.mp4', np.zeros((3, 32, 32, 3), np.uint8), 3)
    for name in ODD:
        shutil.copy(tmp_path / 'good.mp4', tmp_path / 'raw' / name)
        if not good:
            (tmp_path / 'raw' / name).write_bytes(b'no video')
    assert tool(tmp_path / 'raw', tmp_path / 'out', '--workers', 1) == 0
    lines = (tmp_path / 'out' / REPORT).read_text(encoding='utf-8').splitlines()
    printed = capsys.readouterr().out
    if good:
        assert lines == []
        assert sorted(path.name for path in (tmp_path / 'out').glob('*.mp4')) == sorted(ODD)
        assert tool(tmp_path / 'raw', tmp_path / 'out', '--workers', 1) == 0
    else:
        assert [line.split('\t')[0] for line in lines] == [one_line(name) for name in sorted(ODD)]
        assert all(f'  {one_line(name)}: ' in printed for name in ODD)


def test_a_name_too_long_for_its_small_version(tmp_path):
    (tmp_path / 'raw').mkdir()
    write_video(tmp_path / 'raw' / 'a.mp4', np.zeros((3, 32, 32, 3), np.uint8), 3)
    for suffix in ('avi', 'mp4'):
        shutil.copy(tmp_path / 'raw' / 'a.mp4', tmp_path / 'raw' / f'{"x" * 251}.{suffix}')
    found = prepared(tmp_path / 'raw', tmp_path / 'out')
    assert 'cannot have the name' in found['x' * 251 + '.avi'].problem
    assert sum(not done.problem for done in found.values()) == 2


def test_a_full_disk_ends_the_run(raw, tmp_path):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, ROOT / 'tools' / 'prepare_videos.py', raw, tmp_path / 'out', '--workers', '2']
    done = subprocess.run([*command, '--quality', '1'], preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == 1
    assert 'File too large' in done.stderr
    assert 'a.mp4' not in (tmp_path / 'out' / REPORT).read_text()
    assert not list((tmp_path / 'out').rglob('*.part'))


def test_a_folder_that_cannot_be_written(tool, small, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    assert tool(small, tmp_path / 'file') == 1
    assert str(tmp_path / 'file') in capsys.readouterr().err


def test_a_worker_that_is_killed_names_its_video(small, tmp_path, monkeypatch):
    def one_dies(function, items, workers):
        for item in items:
            died = item.name == 'a.mp4'
            yield item, WorkerDied('its process was ended by signal 9 (SIGKILL)') if died else function(item)

    monkeypatch.setattr(prepare, 'map_in_processes', one_dies)
    found = prepared(small, tmp_path / 'out')
    assert 'signal 9' in found['a.mp4'].problem
    assert not found['b.mp4'].problem
    assert (tmp_path / 'out' / REPORT).read_text().startswith('a.mp4\tits process was ended by signal 9')
    monkeypatch.undo()
    assert not prepared(small, tmp_path / 'out')['a.mp4'].problem


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_run_and_the_next_goes_on(tmp_path, number):
    (tmp_path / 'raw').mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (60, 480, 640, 3), dtype=np.uint8)
    write_video(tmp_path / 'raw' / 'long.mp4', noise, 1, quality=40)
    shutil.copy(tmp_path / 'raw' / 'long.mp4', tmp_path / 'raw' / 'again.mp4')
    arguments = [tmp_path / 'raw', tmp_path / 'out', '--workers', '2', '--size', '480', '--fps', '60']
    process = subprocess.Popen(
        [sys.executable, ROOT / 'tools' / 'prepare_videos.py', *arguments], stderr=subprocess.DEVNULL
    )
    try:
        children = []
        while len(children) < 2 and process.poll() is None:
            children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
            time.sleep(0.02)
        while not list((tmp_path / 'out').glob('.*.part')) and process.poll() is None:
            time.sleep(0.02)
    finally:
        process.send_signal(number)
        process.wait()
    assert process.returncode == (143 if number == signal.SIGTERM else -9)
    for _ in range(400):
        left = [child for child in children if Path(f'/proc/{child}').exists()]
        if not left:
            break
        time.sleep(0.05)
    assert left == []
    assert [done.problem for done in prepared(tmp_path / 'raw', tmp_path / 'out').values()] == ['', '']
    assert not list((tmp_path / 'out').glob('.*.part'))


def test_lmdb_of_equal_names(tool, small, tmp_path, capsys):
    pytest.importorskip('lmdb', reason='needs lmdb')
    (small / 'sub').mkdir()
    shutil.copy(small / 'b.mp4', small / 'sub' / 'b.mp4')
    assert tool(small, tmp_path / 'out', '--workers', 1, '--lmdb', tmp_path / 'lmdb') == 0
    printed = capsys.readouterr().out
    assert '2 are not in it' in printed
    assert '  sub/b.mp4\n' in printed
    assert open_store(tmp_path / 'lmdb').ids() == ['a']
    assert tool(small, tmp_path / 'out', '--lmdb', small / 'lmdb') == 1


def test_the_journal_holds_what_was_asked_for(small, tmp_path):
    prepared(small, tmp_path / 'out', rate=2.5, quality=30)
    lines = (tmp_path / 'out' / prepare.JOURNAL).read_text().splitlines()
    name, record = json.loads(lines[-1])
    assert {key: record[key] for key in ('fps', 'size', 'quality', 'encoder')} == dict(
        fps='5/2', size=16, quality=30, encoder='pyav'
    )
    assert record['made'] == (tmp_path / 'out' / name).stat().st_size
