# SPDX-License-Identifier: Apache-2.0
"""Damaged, hostile and odd items in folders, zips and LMDBs: each is named, none ends a run or takes the memory."""

import gc
import io
import os
import pickle
import struct
import threading
import zipfile
import zlib

import numpy as np
import pytest

pytest.importorskip('av', reason='needs PyAV: pip install clusterplug[video]')

from clusterplug.datasets.video import UnreadableVideo, open_store, stores, write_lmdb
from clusterplug.datasets.video.encoding import write_video
from clusterplug.testing import run_forked

FRAMES = np.random.default_rng(0).integers(0, 255, (4, 32, 64, 3)).astype(np.uint8)


@pytest.fixture(scope='module')
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp('video') / 'v.mp4'
    write_video(path, FRAMES)
    return path.read_bytes()


def packed(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, 'w', method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def picture(kind='PNG', size=(8, 4), mode='RGB', **options):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new(mode, size, 200 if mode != 'RGB' else (200, 10, 10)).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(width, height, *more):
    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + b''.join(more) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')


class TestZip:
    @pytest.mark.parametrize(
        'method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=str
    )
    def test_any_damage_of_a_member_leaves_the_others(self, video, tmp_path, method):
        """Bytes of one member are changed all over; each outcome is the video or UnreadableVideo."""
        path = packed(tmp_path / 'x.zip', {'a.mp4': video, 'b.mp4': video}, method)
        content = path.read_bytes()
        end = zipfile.ZipFile(path).getinfo('b.mp4').header_offset
        outcomes = set()
        for place in [*range(0, 40), *range(40, end, max(1, end // 25))]:
            path.write_bytes(content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1 :])
            store = open_store(path)
            try:
                outcomes.add(len(store.open('a', 'pyav').frames([0])))
            except UnreadableVideo:
                outcomes.add('unreadable')
            assert store.open('b', 'pyav').length == 4
        assert 'unreadable' in outcomes

    def test_sizes_are_limited_and_the_limit_is_told(self, video, tmp_path, monkeypatch):
        path = packed(tmp_path / 'x.zip', {'zeros.mp4': bytes(17_000_000), 'v.mp4': video, 'small.mp4': bytes(10**6)})
        store = open_store(path)
        with pytest.raises(UnreadableVideo, match=r'17,000,000 bytes from [\d,]+, more than 100 times'):
            store.open('zeros')
        with pytest.raises(UnreadableVideo) as caught:  # packs as well, and is small enough to be looked at
            store.open('small')
        assert 'times' not in str(caught.value)
        assert store.open('v').length == 4
        monkeypatch.setattr(stores, 'LARGEST_MEMBER', len(video) - 1)
        with pytest.raises(UnreadableVideo, match=f'may be {len(video) - 1:,}'):
            store.open('v')

    def test_sizes_that_a_header_claims(self, tmp_path):
        """A packed size larger than the whole file does not lift the limit."""
        path = packed(tmp_path / 'x.zip', {'v.mp4': bytes(20_000_000)})
        content = bytearray(path.read_bytes())
        place = content.rfind(b'PK\x01\x02') + 20
        content[place : place + 4] = struct.pack('<I', 19_000_000)
        path.write_bytes(content)
        with pytest.raises(UnreadableVideo, match='more than 100 times'):
            open_store(path).open('v')

    def test_a_damaged_archive_is_named(self, video, tmp_path):
        path = packed(tmp_path / 'x.zip', {'a.mp4': video})
        content = bytearray(path.read_bytes())
        content[content.rfind(b'PK\x01\x02')] = 0
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'x\.zip must be a whole zip'):
            open_store(path).ids()


class TestPictures:
    @pytest.mark.parametrize(
        ('name', 'content', 'reason'),
        [
            ('0.png', png(8_000, 6_000), '8000 x 6000, a picture may have 40,000,000'),
            ('0.png', png(30_000, 30_000), 'pixels'),
            ('0.png', png(8, 8)[:45], ''),
            ('0.png', png(8, 8, chunk(b'tEXt', b'x'))[:40], ''),
            ('0.png', b'\x89PNG\r\n\x1a\n' + b'\xff' * 40, ''),
            ('0.png', png(8, 8, chunk(b'zTXt', b'x\0\0' + zlib.compress(bytes(80_000_000)))), ''),
            ('0.jpg', picture('TIFF'), 'cannot identify'),
            ('0.jpg', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n', 'cannot identify'),
            ('0.png', picture(mode='I;16'), 'more than 8 bits'),
            ('0.bmp', b'BM' + bytes(60), ''),
            ('0.webp', b'RIFF\x10\0\0\0WEBPVP8 ' + b'\xff' * 30, ''),
        ],
    )  # fmt: skip
    def test_what_cannot_be_read_is_unreadable(self, tmp_path, name, content, reason):
        (tmp_path / 'v').mkdir()
        (tmp_path / 'v' / name).write_bytes(content)
        for store in (open_store(tmp_path), open_store(packed(tmp_path / 'x.zip', {f'v/{name}': content}))):
            with pytest.raises(UnreadableVideo) as caught:
                store.open('v').frames([0])
            assert reason in str(caught.value)

    def test_frames_are_in_the_order_of_their_numbers(self, tmp_path):
        from PIL import Image

        (tmp_path / 'v').mkdir()
        for number in (1, 2, 9, 10, 11, 100):
            Image.new('RGB', (4, 4), (number, 0, 0)).save(tmp_path / 'v' / f'frame{number}.png')
        frames = open_store(tmp_path).open('v').frames(range(6))
        assert frames[:, 0, 0, 0].tolist() == [1, 2, 9, 10, 11, 100]

    def test_a_marked_picture_is_upright(self, tmp_path):
        from PIL import Image

        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn clockwise shows it upright
        (tmp_path / 'v').mkdir()
        (tmp_path / 'v' / '0.png').write_bytes(picture(size=(8, 4), exif=exif))
        assert open_store(tmp_path).open('v').frames([0]).shape == (1, 8, 4, 3)

    def test_names(self, tmp_path, video):
        for folder in ('train/v', 'test/v', 'w'):
            (tmp_path / folder).mkdir(parents=True)
            (tmp_path / folder / '0.png').write_bytes(picture())
        (tmp_path / 'cover.jpg').write_bytes(picture('JPEG'))
        (tmp_path / 'w.mp4').write_bytes(video)
        store = open_store(tmp_path)
        assert store.ids() == ['v', 'w', 'w.mp4']
        with pytest.raises(UnreadableVideo, match='name of 2 folders: test/v, train/v'):
            store.open('v')
        assert store.open('w').frames([0]).shape == (1, 4, 8, 3)
        assert store.open('w.mp4').length == 4
        with pytest.raises(UnreadableVideo, match='no multiple of side_by_side=3'):
            open_store(tmp_path, 3).open('w').frames([0])

    def test_what_the_process_lacks_is_no_damaged_item(self, tmp_path):
        from clusterplug.datasets.video.frame_sequence import FrameSequence

        for error in (OSError(24, 'Too many open files'), MemoryError()):

            def read(name, error=error):
                raise error

            with pytest.raises(type(error)) as caught:
                FrameSequence(['0.png'], read).frames([0])
            assert not isinstance(caught.value, UnreadableVideo)


def test_a_training_goes_on_over_bad_members(video, tmp_path):
    pytest.importorskip('mmengine', reason='needs mmengine')
    from clusterplug.datasets.video import VideoTextDataset

    path = packed(tmp_path / 'x.zip', {f'{name}.mp4': video for name in 'abcd'})
    content = bytearray(path.read_bytes())
    infos = {info.filename[0]: info.header_offset for info in zipfile.ZipFile(path).infolist()}
    content[infos['b'] + 100] ^= 255
    content[infos['c'] + 300] ^= 255
    path.write_bytes(content)
    (tmp_path / 'pairs.csv').write_text('video,caption\n' + ''.join(f'{name},words\n' for name in 'abcd'))
    pipeline = [dict(type='clusterplug.LoadVideoFrames', num_frames=2)]
    options = dict(videos='x.zip', data_root=str(tmp_path), pipeline=pipeline)
    training = VideoTextDataset('pairs.csv', **options)
    assert {training[index]['video_id'] for index in range(4)} <= {'a', 'd'}
    test = VideoTextDataset('pairs.csv', test_mode=True, **options)
    assert [bool(test[index]['problem']) for index in range(4)] == [False, True, True, False]


class TestFingerprints:
    @pytest.mark.parametrize('kind', ['folder', 'frames', 'zip', 'lmdb'])
    def test_only_what_was_replaced_differs(self, tmp_path, video, kind):
        if kind == 'lmdb':
            pytest.importorskip('lmdb', reason='needs lmdb')

        def make(number, second):
            root = tmp_path / f'{kind}{number}'
            if kind == 'zip':
                return packed(tmp_path / f'{number}.zip', {'a.mp4': video, 'b.mp4': second})
            source = tmp_path / f'files{number}'
            for name, content in (('a', video), ('b', second)):
                file = (source / f'{name}.mp4') if kind != 'frames' else (source / name / '0.png')
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(picture() + content)
                os.utime(file, ns=(1, len(content)))
            if kind == 'lmdb':
                write_lmdb(root, sorted(source.iterdir()))
                return root
            return source

        first, second = (open_store(make(n, c)) for n, c in enumerate((video, video + b'\0')))
        assert first.fingerprint('a') == second.fingerprint('a')
        assert first.fingerprint('b') != second.fingerprint('b')
        assert first.fingerprint('a') != first.fingerprint('b')


class TestLmdb:
    @pytest.fixture(autouse=True)
    def _needs_lmdb(self):
        pytest.importorskip('lmdb', reason='needs lmdb')

    def write(self, tmp_path, video, names='ab', where='lmdb'):
        for name in names:
            (tmp_path / f'{name}.mp4').write_bytes(video)
        write_lmdb(tmp_path / where, [tmp_path / f'{name}.mp4' for name in names])
        return tmp_path / where

    def test_adding_to_what_is_larger_than_what_is_added(self, tmp_path, monkeypatch):
        """What is there is larger than the map that the new file alone would need."""
        monkeypatch.setattr('clusterplug.datasets.video.lmdb_files._ROOM', 1 << 16)
        (tmp_path / 'big.mp4').write_bytes(bytes(5_000_000))
        assert write_lmdb(tmp_path / 'new' / 'lmdb', [tmp_path / 'big.mp4']) == 1
        (tmp_path / 'small.mp4').write_bytes(bytes(60_000))
        write_lmdb(tmp_path / 'new' / 'lmdb', [tmp_path / 'small.mp4'])
        assert open_store(tmp_path / 'new' / 'lmdb').ids() == ['big', 'small']

    def test_a_full_map_grows(self, tmp_path):
        import lmdb

        from clusterplug.datasets.video.lmdb_files import _put

        environment = lmdb.open(str(tmp_path / 'small'), map_size=1 << 16)
        for number in range(60):
            _put(lmdb, environment, str(number).encode(), bytes(5000))
        assert environment.stat()['entries'] == 60
        environment.close()

    def test_handles_go_with_the_stores(self, tmp_path, video):
        paths = [self.write(tmp_path, video, where=f'lmdb{number}') for number in range(5)]
        count = lambda: len(os.listdir('/proc/self/fd'))  # noqa: E731
        gc.collect()
        before = count()
        held = [open_store(path) for path in paths for _ in range(2)]
        assert all(store.open('a').length == 4 for store in held)
        assert count() > before
        held[0].close()
        assert held[0].open('b').length == 4
        del held
        gc.collect()
        assert count() == before

    def test_written_to_while_it_is_open(self, tmp_path, video):
        path = self.write(tmp_path, video)
        store = open_store(path)
        assert store.ids() == ['a', 'b']
        (tmp_path / 'c.mp4').write_bytes(video)
        with pytest.raises(ValueError, match='is open in this process'):
            write_lmdb(path, [tmp_path / 'c.mp4'])
        store.close()
        write_lmdb(path, [tmp_path / 'c.mp4'])
        assert open_store(path).ids() == ['a', 'b', 'c']

    def test_threads_and_forks_share_nothing_they_must_not(self, tmp_path, video):
        store = open_store(self.write(tmp_path, video))
        store.ids()
        lengths = []
        threads = [threading.Thread(target=lambda: lengths.append(store.open('a').length)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert run_forked(lambda: store.open('b').length) == 4
        assert [*lengths, store.open('b').length] == [4] * 5
        assert pickle.loads(pickle.dumps(store)).open('a').length == 4

    def test_one_that_is_cut_off_does_not_end_the_process(self, tmp_path, video):
        path = self.write(tmp_path, video + bytes(200_000))
        content = (path / 'data.mdb').read_bytes()
        for size in (len(content) - 4096, len(content) // 2, 5000, 0, 100):
            (path / 'data.mdb').write_bytes(content[:size])
            with pytest.raises(ValueError, match='must be a whole LMDB'):
                open_store(path).ids()
        (path / 'data.mdb').write_bytes(b'text ' * 5000)
        with pytest.raises(ValueError, match='must be a whole LMDB'):
            open_store(path).ids()

    def test_a_damaged_entry_leaves_the_others(self, tmp_path, video):
        path = self.write(tmp_path, video + bytes(9000))
        content = bytearray((path / 'data.mdb').read_bytes())
        place = content.find(video)
        content[place : place + len(video)] = bytes(len(video))
        (path / 'data.mdb').write_bytes(content)
        store, outcomes = open_store(path), []
        for name in 'ab':
            try:
                outcomes.append(len(store.open(name).frames([0])))
            except UnreadableVideo:
                outcomes.append('unreadable')
        assert sorted(map(str, outcomes)) == ['1', 'unreadable']


def test_an_id_with_folders_is_the_file_there_and_no_other(tmp_path):
    for name in ('a/clip.mp4', 'a/1.2.mp4', 'b/other.mp4'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'x')
    store = open_store(tmp_path)
    assert all(name in store for name in ('clip', 'a/clip', 'a/clip.mp4', '1.2', 'a/1.2', 'b/other'))
    assert store.fingerprint('a/clip') == store.fingerprint('clip')
    for name in ('b/clip', '../clip', '/clip', 'x/../a/clip', 'a/clip.avi', '../../a/clip', 'a/'):
        assert name not in store
        with pytest.raises(UnreadableVideo, match='no video'):
            store.open(name)
