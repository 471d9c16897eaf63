# SPDX-License-Identifier: Apache-2.0
"""Containers and names that are no plain film; what writing and the cache of decoders leave behind."""

import errno
import io
import os
import shutil
import socket
import stat
import threading
import zipfile

import numpy as np
import pytest

pytest.importorskip('av', reason='needs PyAV: pip install clusterplug[video]')

import av
from _films import BACKENDS, write

from clusterplug.datasets.video import LoadVideoFrames, UnreadableVideo, open_store, open_video
from clusterplug.datasets.video._containers import container_of
from clusterplug.datasets.video.encoding import shrink_video, write_video

PLAYLISTS = {
    'session': b'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n'
    b'm=video %d RTP/AVP 96\na=rtpmap:96 H264/90000\n',
    'hls': b'#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:%d/a.ts\n#EXT-X-ENDLIST\n',
    'concat': b'ffconcat version 1.0\nfile http://127.0.0.1:%d/a.mp4\n',
    'dash': b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><BaseURL>http://127.0.0.1:%d/</BaseURL></MPD>',
    'asx': b'[Reference]\nRef1=http://127.0.0.1:%d/a.asf\n',
    'spaces first': b'\n\n  #EXTM3U\n#EXTINF:9,\ntcp://127.0.0.1:%d\n',
    'tag first': b'ID3\x04\x00\x00\x00\x00\x00\x00#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:%d/a.ts\n',
}


@pytest.mark.parametrize('name', PLAYLISTS)
def test_formats_that_name_addresses_are_refused(tmp_path, name, shrink):
    with socket.create_server(('127.0.0.1', 0)) as server:
        server.settimeout(0.2)
        text = PLAYLISTS[name] % server.getsockname()[1]
        with zipfile.ZipFile(tmp_path / 'v.zip', 'w') as archive:
            archive.writestr('a.mp4', text)
        for suffix in ('mp4', 'm3u8', 'sdp', 'mkv'):
            (tmp_path / f'a.{suffix}').write_bytes(text)
        for backend in BACKENDS:
            for source in (text, bytearray(text), *tmp_path.glob('a.*')):
                with pytest.raises(UnreadableVideo, match='of no video container'):
                    open_video(source, backend)
            with pytest.raises(UnreadableVideo, match='of no video container'):
                open_store(tmp_path / 'v.zip').open('a', backend)
        with pytest.raises(UnreadableVideo, match='of no video container'):
            shrink(tmp_path / 'a.mp4', tmp_path / 'b.mp4', 3, 32, 10)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_container_opens_nothing_but_itself(tmp_path, monkeypatch):
    """Whatever a format names, PyAV is told to open nothing, and the program ffmpeg to take files alone."""
    import av

    from clusterplug.datasets.video._ffmpeg import _command

    write(tmp_path / 'a.mp4', [1, 2, 3])
    seen, real = [], av.open
    monkeypatch.setattr(av, 'open', lambda *args, **options: seen.append(options) or real(*args, **options))
    assert open_video(tmp_path / 'a.mp4', 'pyav').frames([0]).shape[0] == 1
    assert seen
    for options in seen:
        assert options['format'] == 'mov'
        with pytest.raises(PermissionError, match='nothing but itself'):
            options['io_open']('http://127.0.0.1/a.ts', 0, {})
    words = _command(tmp_path / 'a.mp4', 'b.part', 'mov', 3, 32, 20)
    before = words[: words.index('-i')]
    assert before[before.index('-protocol_whitelist') + 1] == 'file'
    assert before[before.index('-f') + 1] == 'mov'
    assert words[words.index('-i') + 1] == f'file:{tmp_path / "a.mp4"}'
    # Machines without the program see its time and rotation here alone.
    assert 'fps=3:round=up:start_time=0,' in words[words.index('-vf') + 1]
    assert '-noautorotate' not in words


@pytest.mark.parametrize('error', [MemoryError, ValueError, ZeroDivisionError])
def test_whatever_a_demuxer_raises_marks_the_video(tmp_path, monkeypatch, error):
    from clusterplug.datasets.video import _containers

    write(tmp_path / 'a.mp4', [1, 2, 3])

    def broken(packet):
        raise error('of a header')

    monkeypatch.setattr(_containers, '_first_picture', broken)
    for source in (tmp_path / 'a.mp4', (tmp_path / 'a.mp4').read_bytes()):
        with pytest.raises(UnreadableVideo, match='of a header'):
            open_video(source)


def test_a_session_hidden_in_a_container_is_not_obeyed(tmp_path, monkeypatch):
    """An unusual Matroska beginning with a session description behind it: FFmpeg's own guess would be the session."""
    write(tmp_path / 'a.mkv', [1, 2, 3])
    content = (tmp_path / 'a.mkv').read_bytes()
    header = content[4] & 0x7F if content[4] & 0x80 else int.from_bytes(content[5:12], 'big')
    at = 5 if content[4] & 0x80 else 12
    text = PLAYLISTS['session'] % 50998 * 20
    void = b'\xec' + (len(text) | 1 << 56).to_bytes(8, 'big') + text
    fields = void + content[at : at + header]
    odd = content[:4] + (len(fields) | 1 << 56).to_bytes(8, 'big') + fields + content[at + header :]
    for backend in BACKENDS:
        assert open_video(odd, backend).length == 3
        with open('/proc/net/udp') as file:
            assert not any(line.split()[1].endswith(f':{50998:04X}') for line in file.readlines()[1:])
    # The decoders that look for the format themselves never get it.
    from clusterplug.datasets.video import decoding

    given = []
    for name in ('_Decord', '_TorchCodec'):
        monkeypatch.setattr(decoding, name, lambda source: given.append(source))
    for backend in BACKENDS:
        open_video(odd, backend)
    for backend in BACKENDS:
        monkeypatch.setattr(decoding, 'available_backends', lambda backend=backend: (backend,))
        if backend != 'pyav':
            with pytest.raises(UnreadableVideo, match='in memory, only MP4'):
                open_video(odd, backend)
    assert given == []


def test_containers_are_known_by_their_first_bytes(tmp_path):
    codecs = {
        'mp4': 'libx264',
        'mkv': 'libx264',
        'webm': 'libvpx',
        'avi': 'mpeg4',
        'mov': 'libx264',
        'flv': 'flv',
        'mpg': 'mpeg1video',
        'mpeg': 'mpeg2video',
        'wmv': 'wmv2',
        'ogv': 'libtheora',
        '3gp': 'mpeg4',
        'm4v': 'mpeg4',
        'ts': 'mpeg2video',
        'm2ts': 'mpeg2video',
        'mxf': 'mpeg2video',
        'y4m': 'wrapped_avframe',
    }
    read = 0
    for suffix, codec in codecs.items():
        try:
            write(tmp_path / f'a.{suffix}', list(range(12)), codec=codec)
        except (ValueError, av.FFmpegError, TypeError):
            continue  # this build of FFmpeg cannot write it
        if suffix == 'm4v':
            continue  # a raw stream without container
        for source in (tmp_path / f'a.{suffix}', (tmp_path / f'a.{suffix}').read_bytes()):
            found = {backend: open_video(source, backend).frames([0, 5, 9]) for backend in BACKENDS}
            for backend, frames in found.items():
                assert np.abs(frames.astype(int) - found['pyav']).max() <= 2, (suffix, backend)
            assert np.abs(found['pyav'].mean((1, 2, 3)) / 4 - [0, 5, 9]).max() < 1.5, suffix
        read += 1
    assert read >= 8
    with pytest.raises(UnreadableVideo, match='of no video container'):
        container_of(b'\x7fELF' + bytes(100))


ODD_NAMES = [
    'two\nlines.mp4',
    '-i.mp4',
    'concat:x.mp4',
    '%d.mp4',
    '%03d.mp4',
    'a \'b\' "c".mp4',
    'file:x.mp4',
    'http:x.mp4',
    'subfile,,start,1,end,9,,:x.mp4',
    'x?y#z.mp4',
    '[1].mp4',
    'ü.mp4',
    ' .mp4',
    os.fsdecode(b'\xff\xfe.mp4'),
]


@pytest.mark.parametrize('name', ODD_NAMES)
def test_odd_names_are_files(tmp_path, name, shrink, monkeypatch):
    (tmp_path / 'raw').mkdir()
    write_video(tmp_path / 'a.mp4', np.full((6, 32, 48, 3), 99, np.uint8), 3)
    shutil.copy(tmp_path / 'a.mp4', tmp_path / 'raw' / name)
    monkeypatch.chdir(tmp_path / 'raw')
    for source in (tmp_path / 'raw' / name, name):
        for backend in BACKENDS:
            assert open_video(source, backend).frames([5]).shape == (1, 32, 48, 3)
        shrink(source, name.replace('mp4', 'small.mp4'), 3, 16, 10)
        assert open_video(name.replace('mp4', 'small.mp4')).length == 6


class TestWriting:
    """Errors of writing come out as OSError, never as a video that cannot be read."""

    def test_the_disk_is_full(self, tmp_path, shrink):
        if not os.path.exists('/dev/full'):
            pytest.skip('needs /dev/full')
        import resource

        noise = np.random.default_rng(0).integers(0, 255, (20, 64, 96, 3), dtype=np.uint8)
        write_video(tmp_path / 'a.mp4', noise, 10)
        (tmp_path / 'b.mp4').write_bytes(b'older')
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))
            with pytest.raises(OSError, match='too large') as caught:
                shrink(tmp_path / 'a.mp4', tmp_path / 'b.mp4', 10, 64, 5)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not isinstance(caught.value, UnreadableVideo)
        assert sorted(path.name for path in tmp_path.iterdir()) == ['a.mp4', 'b.mp4']
        assert (tmp_path / 'b.mp4').read_bytes() == b'older'

    @pytest.mark.parametrize(
        ('line', 'kind'),
        [
            ('[out#0/mp4 @ 0x5] Error writing trailer: No space left on device', OSError),
            ('av_interleaved_write_frame(): Disk quota exceeded', OSError),
            ('[in#0 @ 0x5] Error opening input: Invalid data found when processing input', UnreadableVideo),
        ],
    )
    def test_what_the_program_says_is_told_apart(self, tmp_path, monkeypatch, line, kind):
        """The second encoder: a program of its own, here a stand-in that fails as ffmpeg does."""
        from clusterplug.datasets.video._ffmpeg import shrink_with_ffmpeg

        write_video(tmp_path / 'a.mp4', np.zeros((3, 32, 32, 3), np.uint8), 10)
        (tmp_path / 'bin').mkdir()
        (tmp_path / 'bin' / 'ffmpeg').write_text(f'#!/bin/sh\necho "{line}" >&2\nexit 1\n')
        (tmp_path / 'bin' / 'ffmpeg').chmod(0o755)
        monkeypatch.setenv('PATH', f'{tmp_path / "bin"}{os.pathsep}{os.environ["PATH"]}')
        with pytest.raises(kind) as caught:
            shrink_with_ffmpeg(tmp_path / 'a.mp4', tmp_path / 'b.mp4', 10, 32, 20)
        assert isinstance(caught.value, UnreadableVideo) == (kind is UnreadableVideo)
        assert not (tmp_path / 'b.mp4').exists()

    def test_no_folder_to_write_to(self, tmp_path, shrink):
        write_video(tmp_path / 'a.mp4', np.zeros((3, 32, 32, 3), np.uint8), 10)
        with pytest.raises(FileNotFoundError, match='none'):
            shrink(tmp_path / 'a.mp4', tmp_path / 'none' / 'b.mp4', 10, 64, 5)

    def test_interrupted(self, tmp_path, monkeypatch):
        write_video(tmp_path / 'a.mp4', np.zeros((9, 32, 32, 3), np.uint8), 3)
        from clusterplug.datasets.video import encoding

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(encoding, '_small', interrupt)
        with pytest.raises(KeyboardInterrupt):
            shrink_video(tmp_path / 'a.mp4', tmp_path / 'b.mp4')
        assert [path.name for path in tmp_path.iterdir()] == ['a.mp4']

    def test_interrupted_after_an_error(self, tmp_path):
        from clusterplug.datasets.video.encoding import _Writer

        class Container:
            def close(self):
                raise KeyboardInterrupt

        writer = _Writer(tmp_path / 'a.mp4', 32, 32, 3, 20).__enter__()
        writer._container.close()
        writer._container = Container()
        full = OSError(errno.ENOSPC, 'No space left on device')
        with pytest.raises(KeyboardInterrupt):
            writer.__exit__(OSError, full, None)
        assert not list(tmp_path.iterdir())

    def test_mode_and_links_of_the_target(self, tmp_path, shrink):
        write_video(tmp_path / 'a.mp4', np.zeros((3, 32, 32, 3), np.uint8), 3)
        (tmp_path / 'real.mp4').write_bytes(b'')
        (tmp_path / 'real.mp4').chmod(0o640)
        (tmp_path / 'link.mp4').symlink_to(tmp_path / 'real.mp4')
        shrink(tmp_path / 'a.mp4', tmp_path / 'link.mp4', 3, 64, 20)
        assert (tmp_path / 'link.mp4').is_symlink()
        assert stat.S_IMODE((tmp_path / 'real.mp4').stat().st_mode) == 0o640
        assert open_video(tmp_path / 'real.mp4').length == 3

    @pytest.mark.parametrize(
        ('argument', 'values'),
        [
            ('rate', [0, -1, float('nan'), float('inf'), '3', True, 2000]),
            ('short_side', [0, -5, 1, 22.5, True, 10**6]),
            ('quality', [-1, 52, 3.5, '9']),
        ],
    )
    def test_bad_settings(self, tmp_path, argument, values, shrink):
        write_video(tmp_path / 'a.mp4', np.zeros((3, 32, 32, 3), np.uint8), 3)
        for value in values:
            settings = {'rate': 3, 'short_side': 32, 'quality': 20, argument: value}
            with pytest.raises(ValueError, match=f'{argument} must be') as caught:
                shrink(tmp_path / 'a.mp4', tmp_path / 'b.mp4', **settings)
            assert not isinstance(caught.value, UnreadableVideo)
            if argument != 'short_side':
                with pytest.raises(ValueError, match=f'{argument} must be'):
                    write_video(tmp_path / 'b.mp4', np.zeros((3, 32, 32, 3), np.uint8), **{argument: value})


class TestCache:
    class Counting:
        """A store that counts what is decoded."""

        path = 'somewhere'

        def __init__(self, store):
            self.store, self.decoded = store, 0

        def open(self, video_id, backend):
            video = self.store.open(video_id, backend)
            frames = video.frames

            def counted(indices):
                self.decoded += len(list(indices))
                return frames(indices)

            video.frames = counted
            return video

    def test_below_the_size_of_a_video(self, tmp_path):
        write(tmp_path / 'a.mp4', list(range(40)))
        size = 40 * 48 * 64 * 3
        for cache_bytes, expected in ((0, 12), (size - 1, 12), (size, 4 + 40)):
            store = self.Counting(open_store(tmp_path))
            load = LoadVideoFrames(num_frames=4, sampling='middle', cache_bytes=cache_bytes)
            frames = [load(dict(store=store, video_id='a'))['frames'] for _ in range(3)]
            assert store.decoded == expected
            assert all(np.array_equal(each, frames[0]) for each in frames)

    def test_two_stores_with_one_name(self, tmp_path):
        for folder, number in (('x', 10), ('y', 50)):
            (tmp_path / folder).mkdir()
            write(tmp_path / folder / 'a.mp4', [number] * 5)
        load = LoadVideoFrames(num_frames=2, cache_bytes=10**9)
        for folder, number in (('x', 40), ('y', 200), ('x', 40)):
            frames = load(dict(store=open_store(tmp_path / folder), video_id='a'))['frames']
            assert abs(frames.mean() - number) < 6

    def test_only_what_max_seconds_needs_is_kept(self, tmp_path):
        write(tmp_path / 'a.mp4', list(range(50)))
        store = self.Counting(open_store(tmp_path))
        load = LoadVideoFrames(num_frames=2, max_seconds=0.4, cache_bytes=10 * 48 * 64 * 3)
        load(dict(store=store, video_id='a'))
        assert store.decoded == 2 + 10

    def test_bad_size(self):
        with pytest.raises(ValueError, match='cache_bytes must be'):
            LoadVideoFrames(cache_bytes=-1)


def test_a_picture_that_the_decoder_drops_is_the_one_before(tmp_path):
    from clusterplug.datasets.video.decoding import _PyAV, read_facts

    write(tmp_path / 'a.mp4', list(range(10)), bf='0')
    facts = read_facts(tmp_path / 'a.mp4')
    pts = [*facts.pts[:4], facts.pts[3] + 1, *facts.pts[4:]]
    video = _PyAV(tmp_path / 'a.mp4', facts._replace(pts=pts, times=np.arange(11) / 25))
    found = video.frames([3, 4, 5, 10]).mean((1, 2, 3)) / 4
    assert found.round().tolist() == [3, 3, 4, 9]


def test_bad_indices(tmp_path):
    write(tmp_path / 'a.mp4', [1, 2, 3])
    for backend in BACKENDS:
        for indices in ([], [-1, 2]):
            with pytest.raises(ValueError, match='indices must be'):
                open_video(tmp_path / 'a.mp4', backend).frames(indices)
    for source in (3, None, io.BytesIO(b'')):
        with pytest.raises(TypeError, match='path or the bytes'):
            open_video(source)


def test_memory_does_not_hold_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / 'pipe.mp4')
    opened = threading.Event()
    for backend in BACKENDS:
        with pytest.raises(UnreadableVideo, match='no file'):
            open_video(tmp_path / 'pipe.mp4', backend)
    assert not opened.is_set()
