"""tools/prepare_videos.py and prepare_moving_sprites.py as a user calls them."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('av', reason='needs PyAV: pip install clusterplug[video]')

from clusterplug.datasets.video import open_video
from clusterplug.datasets.video.encoding import write_video
from clusterplug.datasets.video.prepare import prepare_videos

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


def test_sprites(tmp_path):
    result = run('prepare_moving_sprites.py', tmp_path, '--train', 0, '--test', 1, '--frames', 2, '--size', 16)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / 'videos').iterdir())) == 144
    assert run('prepare_moving_sprites.py', tmp_path, '--size', 17).returncode == 1
