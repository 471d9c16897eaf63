# SPDX-License-Identifier: Apache-2.0
"""Decoders, stores and sampling on real files: the same frames everywhere, and every kind of broken file named."""

import pickle
import shutil
import zipfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

pytest.importorskip('av', reason='needs PyAV: pip install clusterplug[video]')

import av

from clusterplug.datasets.video import (
    UnreadableVideo,
    available_backends,
    open_store,
    open_video,
    sample_frames,
    write_lmdb,
)
from clusterplug.datasets.video.encoding import shrink_video, write_video


def pictures(count=20, height=64, width=128, seed=0):
    """Frames that change slowly, so that lossy coding keeps them near."""
    row, column = np.mgrid[:height, :width]
    time = np.arange(count)[:, None, None]
    waves = [np.sin((row + 3 * time) / 9 + seed), np.cos((column - 2 * time) / 11), np.sin((row + column + time) / 15)]
    return np.stack([127 + 100 * wave for wave in np.broadcast_arrays(*waves)], -1).astype(np.uint8)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Three good videos and one of each kind of bad one."""
    folder = tmp_path_factory.mktemp('videos')
    (folder / 'deep' / 'er').mkdir(parents=True)
    write_video(folder / 'a.mp4', pictures(), 10)
    write_video(folder / 'deep' / 'er' / '1001_Flight_00.00.05.425.mp4', pictures(seed=1), 10)
    write_video(folder / 'short.mp4', pictures(3), 10)
    whole = (folder / 'a.mp4').read_bytes()
    (folder / 'truncated.mp4').write_bytes(whole[: len(whole) // 2])
    (folder / 'empty.mp4').write_bytes(b'')
    (folder / 'text.mp4').write_text('this is no video at all')
    shutil.copy(folder / 'a.mp4', folder / 'wrong_suffix.avi')
    with av.open(str(folder / 'sound.mp4'), 'w') as container:
        stream = container.add_stream('aac', rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format='fltp', layout='mono')
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return folder


@pytest.mark.parametrize('backend', ['auto', *available_backends()])
class TestBackends:
    def test_frames_are_those_that_were_written(self, folder, backend):
        video = open_video(folder / 'a.mp4', backend)
        assert (video.length, video.rate) == (20, 10)
        frames = video.frames([0, 7, 7, 19])
        assert frames.shape == (4, 64, 128, 3)
        assert frames.dtype == np.uint8
        assert np.abs(frames.astype(int) - pictures()[[0, 7, 7, 19]]).mean() < 4
        assert np.array_equal(frames[1], frames[2])

    def test_equal_to_pyav(self, folder, backend):
        indices = [1, 2, 11, 12, 18]
        expected = open_video(folder / 'a.mp4', 'pyav').frames(indices)
        found = open_video(folder / 'a.mp4', backend).frames(indices)
        assert np.abs(found.astype(int) - expected).max() <= 1

    def test_bytes(self, folder, backend):
        path = folder / 'a.mp4'
        assert np.array_equal(open_video(path, backend).frames([3]), open_video(path.read_bytes(), backend).frames([3]))

    @pytest.mark.parametrize('name', ['truncated.mp4', 'empty.mp4', 'text.mp4', 'sound.mp4', 'nothing.mp4'])
    def test_broken_files_are_named(self, folder, backend, name):
        with pytest.raises(UnreadableVideo, match=r'.{10,}|no file'):
            open_video(folder / name, backend).frames([0, 10, 19])

    def test_wrong_suffix_is_read_all_the_same(self, folder, backend):
        assert open_video(folder / 'wrong_suffix.avi', backend).length == 20


def test_reasons(folder):
    with pytest.raises(UnreadableVideo, match='no video stream'):
        open_video(folder / 'sound.mp4', 'pyav')
    with pytest.raises(UnreadableVideo, match='is empty'):
        open_video(folder / 'empty.mp4')
    with pytest.raises(UnreadableVideo, match='is empty'):
        open_video(b'')
    with pytest.raises(UnreadableVideo, match='no file'):
        open_video(folder / 'nothing.mp4')
    with pytest.raises(ValueError, match='backend must be'):
        open_video(folder / 'a.mp4', 'opencv')


def test_a_backend_that_fails_is_followed_by_the_next(tmp_path, monkeypatch):
    from clusterplug.datasets.video import decoding

    write_video(tmp_path / 'narrow.mp4', pictures(4, 48, 48), 10)

    class Broken(decoding.Video):
        length, rate = 4, 10.0

        def __init__(self, source):
            pass

        def frames(self, indices):
            raise UnreadableVideo('cannot')

    monkeypatch.setattr(decoding, '_Decord', Broken)
    monkeypatch.setattr(decoding, 'available_backends', lambda: ('decord', 'pyav'))
    assert open_video(tmp_path / 'narrow.mp4').frames([0, 3]).shape == (2, 48, 48, 3)
    monkeypatch.setattr(decoding, 'available_backends', lambda: ('decord',))
    with pytest.raises(UnreadableVideo, match='cannot'):
        open_video(tmp_path / 'narrow.mp4').frames([0, 3])
    monkeypatch.setattr(decoding, 'available_backends', lambda: ())
    with pytest.raises(ModuleNotFoundError, match='pip install'):
        open_video(tmp_path / 'narrow.mp4')


def write_streams(path, codec, *videos, **options):
    """A file with a video stream for each of ``videos``."""
    with av.open(str(path), 'w') as container:
        streams = [container.add_stream(codec, rate=10) for _ in videos]
        streams[-1].disposition = av.stream.Disposition.default
        for stream, frames in zip(streams, videos):
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt, stream.options = 'yuv420p', options
        for stream, frames in zip(streams, videos):
            for picture in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode())


def test_frames_of_avi_are_counted_from_the_start(tmp_path):
    # B frames and few key frames: where decoders that jump by time go wrong
    write_streams(tmp_path / 'a.avi', 'mpeg4', pictures(40), bf='2', g='12')
    with av.open(str(tmp_path / 'a.avi')) as container:
        expected = [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]
    for source in (tmp_path / 'a.avi', (tmp_path / 'a.avi').read_bytes()):
        video = open_video(source)
        indices = [0, 13, 26, len(expected) - 1]
        assert np.array_equal(video.frames(indices), np.stack([expected[index] for index in indices]))
        # what the container counts and the decoder drops is the last picture
        assert 0 <= video.length - len(expected) <= 2
        assert np.array_equal(video.frames([video.length - 1])[0], expected[-1])


def test_a_frame_far_behind_the_last_is_missing(folder):
    video = open_video(folder / 'a.mp4', 'pyav')
    assert np.array_equal(*video.frames([19, 21]))
    with pytest.raises(UnreadableVideo, match='frame 22 of 20 cannot be decoded'):
        video.frames([22])


def test_of_several_streams_all_decoders_take_the_same(tmp_path):
    write_streams(tmp_path / 'two.mp4', 'mpeg4', pictures(5, 32, 64), pictures(8, 64, 128))
    for backend in available_backends():
        video = open_video(tmp_path / 'two.mp4', backend)
        assert (video.length, video.frames([7]).shape) == (8, (1, 64, 128, 3)), backend


class TestStores:
    @pytest.fixture(scope='class')
    def stores(self, folder, tmp_path_factory):
        root = tmp_path_factory.mktemp('stores')
        with zipfile.ZipFile(root / 'videos.zip', 'w') as archive:
            for path in folder.rglob('*.*'):
                archive.write(path, path.relative_to(folder))
        found = {'folder': folder, 'zip': root / 'videos.zip'}
        try:
            write_lmdb(root / 'lmdb', [path for path in folder.rglob('*.*') if path.is_file()])
        except ModuleNotFoundError:
            pass
        else:
            found['lmdb'] = root / 'lmdb'
        return found

    @pytest.mark.parametrize('kind', ['folder', 'zip', 'lmdb'])
    def test_every_store_has_the_same_videos(self, stores, kind):
        if kind not in stores:
            pytest.skip('needs lmdb')
        store = open_store(stores[kind])
        assert store.ids() == sorted(
            ['a', 'short', 'truncated', 'empty', 'text', 'wrong_suffix', 'sound', '1001_Flight_00.00.05.425']
        )
        assert 'a' in store
        assert 'a.mp4' in store
        assert 'b' not in store
        expected = open_video(stores['folder'] / 'a.mp4').frames([5])
        for name in ('a', 'a.mp4'):
            assert np.array_equal(store.open(name).frames([5]), expected)
        assert store.open('1001_Flight_00.00.05.425').length == 20
        with pytest.raises(UnreadableVideo, match='no video b in'):
            store.open('b')
        again = pickle.loads(pickle.dumps(store))
        assert np.array_equal(again.open('a').frames([5]), expected)

    def test_two_files_of_one_name(self, folder, tmp_path):
        shutil.copy(folder / 'a.mp4', tmp_path / 'a.mp4')
        shutil.copy(folder / 'a.mp4', tmp_path / 'a.mkv')
        store = open_store(tmp_path)
        with pytest.raises(UnreadableVideo, match=r'2 files: a\.mkv, a\.mp4'):
            store.open('a')
        assert store.open('a.mp4').length == 20
        assert store.ids() == ['a.mkv', 'a.mp4']

    @pytest.mark.parametrize('zipped', [False, True])
    def test_folders_of_frames(self, tmp_path, zipped):
        from PIL import Image

        frames = pictures(6, 32, 48)
        for number in range(3):
            pair = np.concatenate([frames[2 * number], frames[2 * number + 1]], 1)
            (tmp_path / 'frames' / 'video7').mkdir(parents=True, exist_ok=True)
            Image.fromarray(pair).save(tmp_path / 'frames' / 'video7' / f'{number:03d}.png')
        source = tmp_path / 'frames'
        if zipped:
            source = shutil.make_archive(str(tmp_path / 'frames'), 'zip', source)
        video = open_store(source, side_by_side=2).open('video7')
        assert video.length == 6
        assert np.array_equal(video.frames([0, 3, 3, 5]), frames[[0, 3, 3, 5]])
        assert open_store(source).open('video7').frames([1]).shape == (1, 32, 96, 3)

    def test_broken_frames(self, tmp_path):
        (tmp_path / 'v').mkdir()
        (tmp_path / 'v' / '0.jpg').write_bytes(b'no picture')
        with pytest.raises(UnreadableVideo, match=r'0\.jpg'):
            open_store(tmp_path).open('v').frames([0])

    def test_bad_paths(self, tmp_path):
        with pytest.raises(FileNotFoundError, match='does not exist'):
            open_store(tmp_path / 'x')
        (tmp_path / 'x').write_text('x')
        with pytest.raises(ValueError, match='must be a folder'):
            open_store(tmp_path / 'x')
        with pytest.raises(ValueError, match='side_by_side'):
            open_store(tmp_path, 0)


@hypothesis.given(st.integers(1, 400), st.integers(1, 60), st.booleans())
@hypothesis.settings(deadline=None, max_examples=80)
def test_sampling(num_frames, count, random):
    indices, mask = sample_frames(num_frames, count, random, np.random.default_rng(0))
    assert len(indices) == len(mask) == count
    assert (np.diff(indices) >= 0).all()
    assert indices.min() >= 0
    assert indices.max() < num_frames
    assert mask.sum() == min(count, num_frames)
    if num_frames < count:
        assert indices.tolist() == [min(i, num_frames - 1) for i in range(count)]
    elif not random:
        assert indices.tolist() == [int(num_frames / count / 2 + num_frames / count * i) for i in range(count)]
    else:
        edges = [i * num_frames // count for i in range(count + 1)]
        assert all(low <= index < high for low, high, index in zip(edges[:-1], edges[1:], indices))


def test_sampling_at_random_reaches_every_frame():
    generator = np.random.default_rng(0)
    seen = {int(i) for _ in range(200) for i in sample_frames(10, 3, True, generator)[0]}
    assert seen == set(range(10))
    with pytest.raises(ValueError, match='at least 1'):
        sample_frames(0, 3)


class TestWriting:
    def test_shrinking(self, tmp_path):
        write_video(tmp_path / 'long.mp4', pictures(50, 96, 160), 25)
        assert shrink_video(tmp_path / 'long.mp4', tmp_path / 'small.mp4', rate=5, short_side=48) == 10
        small = open_video(tmp_path / 'small.mp4', 'pyav')
        assert (small.length, small.rate) == (10, 5)
        frames = small.frames(range(10))
        assert frames.shape == (10, 48, 80, 3)
        original = pictures(50, 96, 160)[::5].reshape(10, 48, 2, 80, 2, 3).mean((2, 4))
        assert np.abs(frames - original).mean() < 9  # colors have half the resolution

    def test_nothing_is_enlarged_and_time_is_kept(self, tmp_path):
        write_video(tmp_path / 'a.mp4', pictures(6, 32, 64), 2)
        assert shrink_video(tmp_path / 'a.mp4', tmp_path / 'b.mp4', rate=30, short_side=224) == 90
        video = open_video(tmp_path / 'b.mp4', 'pyav')
        assert (video.length, video.rate) == (90, 30)
        found = video.frames(range(90)).astype(int)
        assert found.shape == (90, 32, 64, 3)
        assert np.abs(found - np.repeat(pictures(6, 32, 64), 15, axis=0)).mean() < 8

    def test_broken_sources_leave_nothing_behind(self, folder, tmp_path):
        for name in ('truncated', 'empty', 'text', 'sound'):
            with pytest.raises(UnreadableVideo):
                shrink_video(folder / f'{name}.mp4', tmp_path / 'out.mp4')
        assert list(tmp_path.iterdir()) == []

    def test_bad_frames(self, tmp_path):
        with pytest.raises(TypeError, match='uint8'):
            write_video(tmp_path / 'a.mp4', np.zeros((2, 4, 4, 3)))
        with pytest.raises(ValueError, match='even'):
            write_video(tmp_path / 'a.mp4', np.zeros((2, 5, 4, 3), np.uint8))
