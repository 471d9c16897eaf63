# SPDX-License-Identifier: Apache-2.0
"""One rule for rotation, time and streams, the same for all decoders and for re-encoding."""

from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip('av', reason='needs PyAV: pip install clusterplug[video]')

import av
from _films import BACKENDS, corners, near, numbers_of, write

from clusterplug.datasets.video import LoadVideoFrames, UnreadableVideo, open_store, open_video
from clusterplug.datasets.video._containers import shown_at
from clusterplug.datasets.video._ffmpeg import shrink_with_ffmpeg
from clusterplug.datasets.video.encoding import shrink_video

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
