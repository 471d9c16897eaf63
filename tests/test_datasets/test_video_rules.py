# SPDX-License-Identifier: Apache-2.0
"""One rule for rotation, time, streams and containers, the same for all decoders and for re-encoding."""

import io
import os
import shutil
import socket
import stat
import threading
import zipfile
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip('av', reason='needs PyAV: pip install clusterplug[video]')

import av

from clusterplug.datasets.video import LoadVideoFrames, UnreadableVideo, available_backends, open_store, open_video
from clusterplug.datasets.video._containers import container_of, shown_at
from clusterplug.datasets.video._ffmpeg import shrink_with_ffmpeg
from clusterplug.datasets.video.encoding import shrink_video, write_video

BACKENDS = ('auto', *available_backends())
SHRINKERS = {'pyav': shrink_video, 'ffmpeg': shrink_with_ffmpeg}
# (a, b, c, d): stored (x, y) is shown at (a x + c y, b x + d y); and what numpy makes of it
MATRICES = {
    'upright': ((1, 0, 0, 1), lambda picture: picture),
    '90 clockwise': ((0, 1, -1, 0), lambda picture: np.rot90(picture, -1)),
    '180': ((-1, 0, 0, -1), lambda picture: np.rot90(picture, 2)),
    '270 clockwise': ((0, -1, 1, 0), lambda picture: np.rot90(picture, 1)),
    'mirrored': ((-1, 0, 0, 1), np.fliplr),
    'upside down': ((1, 0, 0, -1), np.flipud),
    'transposed': ((0, 1, 1, 0), lambda picture: picture.transpose(1, 0, 2)),
    'transposed the other way': ((0, -1, -1, 0), lambda picture: np.rot90(picture, 2).transpose(1, 0, 2)),
}


@pytest.fixture(params=['pyav', 'ffmpeg'])
def shrink(request):
    if request.param == 'ffmpeg' and shutil.which('ffmpeg') is None:
        pytest.skip('needs ffmpeg')
    return SHRINKERS[request.param]


def write(path, numbers, times=None, size=(64, 48), base=Fraction(1, 1000), matrix=None, rate=25, **options):
    """A film whose pictures are gray of 4 x number, shown from ``times`` (in ``base``) on."""
    pictures = [
        np.full((size[1], size[0], 3), 4 * number, np.uint8) if isinstance(number, int) else number
        for number in numbers
    ]
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(options.pop('codec', 'libx264'), rate=rate)
        stream.width, stream.height, stream.pix_fmt = (
            pictures[0].shape[1],
            pictures[0].shape[0],
            options.pop('pix_fmt', 'yuv420p'),
        )
        stream.options = {'crf': '10', **options}
        if times is not None:
            stream.time_base = stream.codec_context.time_base = base
        if matrix is not None:
            a, b, c, d = (65536 * value for value in matrix)
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24').reformat(format=stream.pix_fmt)
            if times is not None:
                frame.pts, frame.time_base = times[number], base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def numbers_of(path):
    video = open_video(path, 'pyav')
    return [round(float(frame.mean()) / 4) for frame in video.frames(range(video.length))]


def corners(height, width):
    """A picture with another color in each corner."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (250, 0, 0)
    picture[: height // 2, width // 2 :] = (0, 250, 0)
    picture[height // 2 :, : width // 2] = (0, 0, 250)
    picture[height // 2 :, width // 2 :] = (250, 250, 250)
    return picture


def near(found, expected):
    return found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 12


@pytest.mark.parametrize('name', MATRICES)
@pytest.mark.parametrize('size', [(128, 192), (96, 160), (100, 68)])
def test_pictures_are_upright_everywhere(tmp_path, name, size, shrink):
    matrix, turn = MATRICES[name]
    write(tmp_path / 'phone.mp4', [corners(*size)] * 6, matrix=matrix)
    expected = turn(corners(*size))
    for backend in BACKENDS:
        for source in (tmp_path / 'phone.mp4', (tmp_path / 'phone.mp4').read_bytes()):
            assert all(near(frame, expected) for frame in open_video(source, backend).frames([0, 3, 5])), backend
    shrink(tmp_path / 'phone.mp4', tmp_path / 'small.mp4', 25, 1000, 10)
    assert near(open_video(tmp_path / 'small.mp4').frames([2])[0], expected)
    shrink(tmp_path / 'phone.mp4', tmp_path / 'small.mp4', 25, min(size) // 2, 10)
    height, width = expected.shape[:2]
    factor = (min(size) // 2) / min(size)
    even = [2 * int(side * factor / 2 + 0.5) for side in (height, width)]
    assert near(open_video(tmp_path / 'small.mp4').frames([2])[0], corners_turned(turn, size, even))


def corners_turned(turn, size, even):
    return np.asarray(turn(corners(*size)))[
        np.ix_(*(np.arange(n) * full // n for n, full in zip(even, turn(corners(*size)).shape)))
    ]


@pytest.mark.parametrize('suffix', ['mkv', 'mov'])
@pytest.mark.parametrize('name', ['90 clockwise', '180'])
def test_other_containers_are_upright(tmp_path, suffix, name, shrink):
    matrix, turn = MATRICES[name]
    write(tmp_path / f'a.{suffix}', [corners(32, 64)] * 3, matrix=matrix)
    for backend in BACKENDS:
        assert near(open_video(tmp_path / f'a.{suffix}', backend).frames([1])[0], turn(corners(32, 64)))
    shrink(tmp_path / f'a.{suffix}', tmp_path / 'small.mp4', 25, 1000, 10)
    assert near(open_video(tmp_path / 'small.mp4').frames([0])[0], turn(corners(32, 64)))


@pytest.mark.parametrize('size', [(33, 47), (35, 64), (64, 35), (2, 2)])
def test_odd_sizes(tmp_path, size, shrink):
    picture = np.kron(corners(2, 2), np.ones((64, 64, 1), np.uint8))[: size[0], : size[1]]
    write(tmp_path / 'odd.mkv', [picture] * 4, codec='ffv1', pix_fmt='yuv444p')
    for backend in BACKENDS:
        assert near(open_video(tmp_path / 'odd.mkv', backend).frames([0, 3])[1], picture), backend
    shrink(tmp_path / 'odd.mkv', tmp_path / 'small.mp4', 25, 1000, 10)
    shape = open_video(tmp_path / 'small.mp4').frames([0]).shape
    assert shape[1:3] == tuple(max(2, side - side % 2) for side in size)


def expected_numbers(times, end, rate, start):
    """The rule, by looking at every slot: the last picture shown up to then, the first one before all."""
    slots = [Fraction(n) / Fraction(rate) for n in range(100_000)]
    slots = [slot for n, slot in enumerate(slots) if slot < end - start or n == 0]
    return [
        max([i for i, time in enumerate(times) if time - start <= slot + Fraction(1, 2000)] or [0]) for slot in slots
    ]


TIMES = {
    'pause in the middle': [0, 40, 80, 5000, 5040, 5080],
    'pause at the start': [0, 7000, 7040],
    'bursts': [0, 10, 20, 30, 1000, 1010, 1020, 1030, 2000, 2010],
    'slower than the rate': [1000 * i for i in range(12)],
    'slower, uneven': [0, 1100, 1900, 4000, 4400, 9000],
    'twice the rate': [167 * i for i in range(20)],
    'one picture': [0],
    'late start of all': [3000, 3500, 4700],
}


@pytest.mark.parametrize('name', TIMES)
@pytest.mark.parametrize(('rate', 'suffix'), [(3, 'mp4'), (2.5, 'mkv'), (30, 'mp4')])
def test_time_is_kept(tmp_path, name, rate, suffix, shrink):
    times = TIMES[name]
    write(tmp_path / f'a.{suffix}', list(range(len(times))), times, bf='0')
    shrink(tmp_path / f'a.{suffix}', tmp_path / 'b.mp4', rate, 1000, 10)
    with av.open(str(tmp_path / f'a.{suffix}')) as container:
        durations = [frame.duration * frame.time_base for frame in container.decode(video=0)]
    end = Fraction(times[-1], 1000) + durations[-1]
    seconds = [Fraction(time, 1000) for time in times]
    found, expected = numbers_of(tmp_path / 'b.mp4'), expected_numbers(seconds, end, rate, seconds[0])
    assert abs(len(found) - len(expected)) <= (shrink is shrink_with_ffmpeg)  # which may guess another end
    count = min(len(found), len(expected))
    assert found[:count] == expected[:count]
    assert open_video(tmp_path / 'b.mp4', 'pyav').rate == rate


def test_sound_that_starts_before_the_pictures(tmp_path, shrink):
    with av.open(str(tmp_path / 'a.mkv'), 'w') as container:
        sound, film = container.add_stream('pcm_s16le', rate=8000), container.add_stream('libx264', rate=10)
        film.width, film.height, film.pix_fmt = 64, 48, 'yuv420p'
        film.time_base = film.codec_context.time_base = Fraction(1, 1000)
        noise = av.AudioFrame.from_ndarray(np.zeros((1, 8000 * 4), np.int16), format='s16', layout='mono')
        noise.sample_rate, noise.pts = 8000, 0
        container.mux(sound.encode(noise))
        for number in range(20):
            picture = np.full((48, 64, 3), 8 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24').reformat(format='yuv420p')
            frame.pts, frame.time_base = 2000 + 100 * number, Fraction(1, 1000)
            container.mux(film.encode(frame))
        container.mux(film.encode())
    assert np.allclose(open_video(tmp_path / 'a.mkv').times(), 2 + np.arange(20) / 10, atol=0.002)
    shrink(tmp_path / 'a.mkv', tmp_path / 'b.mp4', 2, 100, 10)
    assert numbers_of(tmp_path / 'b.mp4') == [0, 0, 0, 0, 0, 10, 20, 30]


def test_a_clock_that_was_set_back_goes_on(tmp_path):
    write(tmp_path / 'a.ts', list(range(20)), rate=10, codec='mpeg2video', g='1')
    content = (tmp_path / 'a.ts').read_bytes()
    (tmp_path / 'twice.ts').write_bytes(content + content)
    shrink_video(tmp_path / 'twice.ts', tmp_path / 'b.mp4', 5, 100, 10)
    found = numbers_of(tmp_path / 'b.mp4')
    assert 18 <= len(found) <= 21
    assert max(found[10:]) == 18
    assert min(found[9:12]) <= 1


def test_a_time_stamp_that_would_fill_the_disk(tmp_path):
    write(tmp_path / 'a.mkv', [1, 2, 3], [0, 40, 50_000_000])
    with pytest.raises(UnreadableVideo, match='its time jumps from 0 s to 50000 s'):
        shrink_video(tmp_path / 'a.mkv', tmp_path / 'b.mp4')
    assert not (tmp_path / 'b.mp4').exists()


def test_shown_at():
    times = np.array([0.5, 1.0, 1.333, 9.0])
    assert shown_at(times, [0, 0.4, 0.5, 0.99, 1, 4 / 3, 8.99, 100]).tolist() == [0, 0, 0, 0, 1, 2, 2, 3]


@pytest.mark.parametrize('backend', BACKENDS)
def test_chunks_of_a_varying_rate_are_of_time(tmp_path, backend):
    # 1 picture for 9 s, then 45 in the tenth second: of ten chunks nine show the first picture
    write(tmp_path / 'a.mp4', list(range(46)), [0] + [9000 + 22 * i for i in range(45)], bf='0')
    load = LoadVideoFrames(num_frames=10, sampling='middle', backend=backend)
    results = load(dict(store=open_store(tmp_path), video_id='a'))
    means = results['frames'].mean((1, 2, 3)) / 4
    assert means[:9].round().tolist() == [0] * 9
    assert means[9] > 5
    assert np.allclose(np.diff(results['frame_times']), 1, atol=0.2)
    short = LoadVideoFrames(num_frames=4, sampling='middle', backend=backend, max_seconds=8)
    assert short(dict(store=open_store(tmp_path), video_id='a'))['frames'].max() < 8


class TestStreams:
    @pytest.fixture
    def cover(self, tmp_path):
        """A film of 64 x 48 with a larger cover picture."""
        write(tmp_path / 'film.mp4', list(range(30)))
        with av.open(str(tmp_path / 'film.mp4')) as film, av.open(str(tmp_path / 'cover.mp4'), 'w') as container:
            stream = container.add_stream_from_template(film.streams.video[0])
            picture = container.add_stream('mjpeg', rate=1)
            picture.width, picture.height, picture.pix_fmt = 640, 480, 'yuvj420p'
            picture.disposition = av.stream.Disposition.attached_pic
            still = av.VideoFrame.from_ndarray(np.full((480, 640, 3), 200, np.uint8), format='rgb24')
            container.mux(picture.encode(still.reformat(format='yuvj420p')))
            container.mux(picture.encode())
            for packet in film.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
        with av.open(str(tmp_path / 'cover.mp4')) as container:
            assert any(s.disposition & av.stream.Disposition.attached_pic for s in container.streams.video)
        return tmp_path / 'cover.mp4'

    def test_a_cover_picture_is_no_film(self, cover, tmp_path, shrink):
        for backend in BACKENDS:
            video = open_video(cover, backend)
            assert (video.length, video.frames([29]).shape) == (30, (1, 48, 64, 3)), backend
        shrink(cover, tmp_path / 'b.mp4', 25, 100, 10)
        assert numbers_of(tmp_path / 'b.mp4') == list(range(30))

    def test_a_song_with_a_cover_is_no_video(self, cover, tmp_path, shrink):
        with av.open(str(cover)) as both, av.open(str(tmp_path / 'song.mp4'), 'w') as container:
            stream = container.add_stream_from_template(both.streams.video[1])
            stream.disposition = av.stream.Disposition.attached_pic
            sound = container.add_stream('aac', rate=8000)
            for packet in both.demux(video=1):
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format='fltp', layout='mono')
            frame.sample_rate = 8000
            for packet in [*sound.encode(frame), *sound.encode()]:
                container.mux(packet)
        for backend in BACKENDS:
            with pytest.raises(UnreadableVideo, match='no video stream'):
                open_video(tmp_path / 'song.mp4', backend)
        with pytest.raises(UnreadableVideo):
            shrink(tmp_path / 'song.mp4', tmp_path / 'b.mp4', 25, 100, 10)

    def test_pixel_aspect_is_handed_on(self, tmp_path, shrink):
        write(tmp_path / 'a.mp4', [corners(64, 80)] * 3, **{'x264-params': 'sar=16/11'})
        for backend in BACKENDS:
            assert open_video(tmp_path / 'a.mp4', backend).frames([0]).shape == (1, 64, 80, 3)
        shrink(tmp_path / 'a.mp4', tmp_path / 'b.mp4', 25, 32, 10)
        assert open_video(tmp_path / 'b.mp4').frames([0]).shape == (1, 32, 40, 3)
        with av.open(str(tmp_path / 'b.mp4')) as container:
            assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)

    def test_size_that_changes_on_the_way(self, tmp_path):
        for name, size in (('a', (64, 48)), ('b', (32, 32))):
            write(tmp_path / f'{name}.ts', list(range(10)), size=size, codec='mpeg2video', g='1')
        content = (tmp_path / 'a.ts').read_bytes() + (tmp_path / 'b.ts').read_bytes()
        for backend in BACKENDS:
            video = open_video(content, backend)
            assert video.frames([0, video.length - 1]).shape == (2, 48, 64, 3)


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


def test_a_session_hidden_in_a_container_is_not_obeyed(tmp_path):
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
