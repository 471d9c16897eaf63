# SPDX-License-Identifier: Apache-2.0
"""Annotation formats, data sets, pipelines and unreadable videos, from real files to batches of the loader."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
import torch

pytest.importorskip('mmengine', reason='needs mmengine')
pytest.importorskip('av', reason='needs PyAV: pip install clusterplug[video]')

from clusterplug.datasets.moving_sprites import all_sprites, caption_of, generate_moving_sprites, render_sprite
from clusterplug.datasets.video import (
    CLIPTokenizer,
    VideoTextDataset,
    WordTokenizer,
    open_video,
    read_activitynet,
    read_didemo,
    read_ids,
    read_lsmdc,
    read_msrvtt,
    read_msvd,
    read_pairs,
    write_vocabulary,
)
from clusterplug.datasets.video.encoding import write_video
from clusterplug.registry import DATASETS

FRAMES = np.random.default_rng(0).integers(0, 255, (6, 32, 64, 3)).astype(np.uint8)
PIPELINE = [
    dict(type='clusterplug.LoadVideoFrames', num_frames=4),
    dict(type='clusterplug.ResizeAndCrop', size=16),
    dict(
        type='clusterplug.TokenizeCaptions', tokenizer=dict(type='WordTokenizer', vocabulary=['a', 'dog']), max_words=6
    ),
    dict(type='clusterplug.PackVideoText'),
]


class TestAnnotations:
    def test_msrvtt(self, tmp_path):
        sentences = [dict(caption=f'caption {i}', video_id=f'video{i // 2}', sen_id=i) for i in range(6)]
        (tmp_path / 'MSRVTT_data.json').write_text(json.dumps(dict(videos=[], sentences=sentences)))
        (tmp_path / 'train.csv').write_text('video_id\nvideo2\nvideo0\n')
        found = read_msrvtt(tmp_path / 'MSRVTT_data.json', tmp_path / 'train.csv')
        assert found == {'video2': ['caption 4', 'caption 5'], 'video0': ['caption 0', 'caption 1']}
        test = 'key,vid_key,video_id,sentence\nret0,msr3,video3,"a gray cat, asleep on a fence"\n'
        (tmp_path / 'test.csv').write_text(test)
        assert read_msrvtt(tmp_path / 'test.csv') == {'video3': ['a gray cat, asleep on a fence']}
        (tmp_path / 'train.csv').write_text('video_id\nvideo2\nvideo7\n')
        with pytest.raises(ValueError, match='1 videos without captions, such as video7'):
            read_msrvtt(tmp_path / 'MSRVTT_data.json', tmp_path / 'train.csv')

    def test_msvd(self, tmp_path):
        captions = {'vid1': [['a', 'dog'], ['it', 'runs']], 'vid2': [['rain']]}
        (tmp_path / 'raw-captions.pkl').write_bytes(pickle.dumps(captions))
        (tmp_path / 'test_list.txt').write_text('vid1\n')
        expected = {'vid1': ['a dog', 'it runs']}
        assert read_msvd(tmp_path / 'raw-captions.pkl', tmp_path / 'test_list.txt') == expected
        (tmp_path / 'captions.json').write_text(json.dumps({'vid1': ['a dog', 'it runs']}))
        assert read_msvd(tmp_path / 'captions.json') == expected

    def test_a_pickle_that_would_run_code_is_refused(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return print, ('run',)

        (tmp_path / 'evil.pkl').write_bytes(pickle.dumps({'a': Evil()}))
        with pytest.raises(pickle.UnpicklingError, match='plain lists and strings'):
            read_msvd(tmp_path / 'evil.pkl')

    def test_lsmdc(self, tmp_path):
        line = '9001_Some_Film_00.00.05.425-00.00.07.000\t00:05\t00:07\t00:05\t00:07\tSOMEONE folds a paper boat.\n'
        broken = line.replace('9001_Some_Film_00.00.05.425-00.00.07.000', '1012_Unbreakable_00.05.16.065-00.05.21.941')
        (tmp_path / 'train.csv').write_text(line + broken)
        assert read_lsmdc(tmp_path / 'train.csv') == {
            '9001_Some_Film_00.00.05.425-00.00.07.000': ['SOMEONE folds a paper boat.']
        }
        (tmp_path / 'train.csv').write_text(line + 'a\tb\n')
        with pytest.raises(ValueError, match='line 2 must have 6 fields'):
            read_lsmdc(tmp_path / 'train.csv')

    def test_paragraphs(self, tmp_path):
        content = {'v_1': dict(duration=9, timestamps=[[0, 4], [4, 9]], sentences=[' A man. ', 'He runs.'])}
        (tmp_path / 'val_1.json').write_text(json.dumps(content))
        assert read_activitynet(tmp_path / 'val_1.json') == {'v_1': ['A man. He runs.']}
        entries = [dict(video='x.avi', description='first'), dict(video='x.avi', description='then')]
        (tmp_path / 'train_data.json').write_text(json.dumps(entries))
        assert read_didemo(tmp_path / 'train_data.json') == {'x.avi': ['first then']}

    def test_tables(self, tmp_path):
        expected = {'a': ['one', 'two'], 'b': ['three']}
        files = {
            'x.csv': 'video,sentence\na,one\na,two\nb,three\n',
            'x.tsv': 'video_id\tcaption\na\tone\na\ttwo\nb\tthree\n',
            'x.json': json.dumps(dict(a=['one', 'two'], b='three')),
            'y.json': json.dumps([dict(video='a', caption=['one', 'two']), dict(video_id='b', sentence='three')]),
            'x.jsonl': '{"video": "a", "caption": ["one", "two"]}\n\n{"video": "b", "caption": "three"}\n',
        }
        for name, text in files.items():
            (tmp_path / name).write_text(text)
            assert read_pairs(tmp_path / name) == expected, name

    def test_bad_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match='no annotation file'):
            read_pairs(tmp_path / 'none.csv')
        (tmp_path / 'x.csv').write_text('video,caption\na,one\nb,  \n')
        with pytest.raises(ValueError, match='a caption of b is empty'):
            read_pairs(tmp_path / 'x.csv')
        (tmp_path / 'x.csv').write_text('name,text\na,one\n')
        with pytest.raises(ValueError, match='must name video_id and caption'):
            read_pairs(tmp_path / 'x.csv')
        (tmp_path / 'x.csv').write_text('video,caption\n')
        with pytest.raises(ValueError, match='holds no captions'):
            read_pairs(tmp_path / 'x.csv')
        (tmp_path / 'ids.txt').write_text('a\nb\na\n')
        with pytest.raises(ValueError, match='more than one of a'):
            read_ids(tmp_path / 'ids.txt')

    def test_real_msrvtt_test_csv(self):
        import os
        from pathlib import Path

        if 'CLUSTERPLUG_DATA' not in os.environ:
            pytest.skip('needs CLUSTERPLUG_DATA')
        found = read_msrvtt(Path(os.environ['CLUSTERPLUG_DATA'], 'video', 'MSRVTT_JSFUSION_test.csv'))
        assert len(found) == 1000
        assert all(len(texts) == 1 and len(texts[0].split()) > 1 for texts in found.values())
        assert 'video9770' in found


class TestTokenizers:
    def test_clip_long_and_empty(self):
        pytest.importorskip('open_clip', reason='needs open_clip')
        tokenizer = CLIPTokenizer()
        assert tokenizer.encode('A Dog', 6) == [49406, 320, 1929, 49407, 0, 0]
        long = tokenizer.encode('word ' * 200, 77)
        assert len(long) == 77
        assert (long[0], long[-1]) == (49406, 49407)
        assert tokenizer.encode('', 5) == [49406, 49407, 0, 0, 0]
        with pytest.raises(ValueError, match='between 3 and 77'):
            tokenizer.encode('a', 78)

    def test_words(self, tmp_path):
        assert write_vocabulary(tmp_path / 'words.txt', ['A dog.', 'a cat']) == 3
        tokenizer = WordTokenizer(tmp_path / 'words.txt')
        assert tokenizer.encode('a dog flies', 8) == [2, 3, 5, 1, 6, 0, 0, 0]
        assert tokenizer.encode('a dog flies', 4) == [2, 3, 5, 6]
        with pytest.raises(ValueError, match='different words'):
            WordTokenizer(['a', 'a'])


@pytest.fixture
def root(tmp_path):
    """Four readable videos, one truncated, one of sound only... and an annotation without a video."""
    (tmp_path / 'videos').mkdir()
    for name in 'abcd':
        write_video(tmp_path / 'videos' / f'{name}.mp4', FRAMES[: 3 if name == 'd' else 6], 6)
    whole = (tmp_path / 'videos' / 'a.mp4').read_bytes()
    (tmp_path / 'videos' / 'broken.mp4').write_bytes(whole[: len(whole) // 2])
    rows = [('a', 'a dog'), ('a', 'dog dog'), ('b', 'a'), ('c', 'dog'), ('d', 'cat'), ('broken', 'a'), ('gone', 'a')]
    (tmp_path / 'pairs.csv').write_text('video,caption\n' + ''.join(f'{v},{c}\n' for v, c in rows))
    return tmp_path


def dataset(root, **options):
    return VideoTextDataset('pairs.csv', videos='videos', data_root=str(root), pipeline=PIPELINE, **options)


class TestDataset:
    def test_test_mode_has_each_video_once_with_all_captions(self, root):
        found = dataset(root, test_mode=True)
        assert len(found) == 5
        assert found.missing == ['gone']
        item = found[0]
        assert item['inputs']['frames'].shape == (4, 3, 16, 16)
        assert item['inputs']['tokens'].tolist() == [[2, 3, 4, 5, 0, 0], [2, 4, 4, 5, 0, 0]]
        sample = item['data_samples']
        assert (sample.video_id, sample.captions, sample.valid) == ('a', ['a dog', 'dog dog'], True)
        assert sample.frame_times == [0.0, pytest.approx(2 / 6, abs=1e-3), 0.5, pytest.approx(5 / 6, abs=1e-3)]

    def test_short_videos_are_filled_up_and_masked(self, root):
        item = dataset(root, test_mode=True)[3]
        assert item['inputs']['frame_mask'].tolist() == [True, True, True, False]
        assert torch.equal(item['inputs']['frames'][2], item['inputs']['frames'][3])

    def test_an_unreadable_video_keeps_its_place_in_a_test(self, root):
        item = dataset(root, test_mode=True)[4]
        sample = item['data_samples']
        assert (sample.video_id, sample.valid) == ('broken', False)
        assert sample.problem
        assert item['inputs']['frames'].shape == (4, 3, 16, 16)
        assert not item['inputs']['frame_mask'].any()

    def test_an_unreadable_video_is_replaced_in_training(self, root):
        found = dataset(root)
        assert len(found) == 6  # one for each caption
        item = found[5]
        sample = item['data_samples']
        assert sample.valid
        assert sample.video_id != 'broken'
        assert [video for video, _ in sample.skipped] == ['broken']

    def test_what_is_known_to_be_broken_is_not_drawn_again(self, root):
        for name in 'abc':
            (root / 'videos' / f'{name}.mp4').write_bytes(b'')
        for _ in range(10):
            sample = dataset(root, max_refetch=4)[0]['data_samples']
            assert sample.video_id == 'd'
            names = [video for video, _ in sample.skipped]
            assert len(names) == len(set(names))

    def test_nothing_readable_ends_with_an_error(self, root):
        for name in 'abcd':
            (root / 'videos' / f'{name}.mp4').write_bytes(b'')
        with pytest.raises(RuntimeError, match='no readable video in 21 tries'):
            dataset(root, max_refetch=20)[0]

    def test_counts_are_checked(self, root):
        (root / 'test.csv').write_text('key,vid_key,video_id,sentence\nr,m,a,a dog\n')
        config = dict(type='clusterplug.MSRVTTDataset', ann_file='test.csv', data_root=str(root), videos='videos')
        with pytest.raises(ValueError, match='must have the 1000 videos of MSRVTTDataset test-1k, got 1'):
            DATASETS.build(config | dict(split='test-1k'))
        with pytest.raises(ValueError, match='split must be one of train-7k'):
            DATASETS.build(config | dict(split='test'))
        assert len(DATASETS.build(config)) == 1

    def test_no_video_at_all(self, root):
        for path in (root / 'videos').iterdir():
            path.unlink()
        with pytest.raises(ValueError, match='none of the 6 annotated videos'):
            dataset(root)

    @pytest.mark.parametrize('workers', [0, 2])
    def test_loader(self, root, workers):
        from mmengine.dataset import pseudo_collate
        from torch.utils.data import DataLoader

        from clusterplug.retrieval import VideoTextPreprocessor

        loader = DataLoader(dataset(root, test_mode=True), 5, num_workers=workers, collate_fn=pseudo_collate)
        batch = VideoTextPreprocessor()(next(iter(loader)))
        assert batch['inputs']['frames'].shape == (5, 4, 3, 16, 16)
        assert batch['inputs']['num_captions'].tolist() == [2, 1, 1, 1, 1]
        assert [sample.valid for sample in batch['data_samples']] == [True] * 4 + [False]


class TestTransforms:
    def build(self, **options):
        from clusterplug.registry import TRANSFORMS

        return TRANSFORMS.build(options)

    def test_crop_is_the_middle_and_the_shorter_side_fits(self):
        crop = self.build(type='clusterplug.ResizeAndCrop', size=32)
        plain = crop(dict(frames=FRAMES))['frames']
        assert torch.equal(plain, torch.from_numpy(FRAMES[:, :, 16:48]).permute(0, 3, 1, 2))
        flat = np.full((2, 64, 90, 3), 77, np.uint8)
        assert (self.build(type='clusterplug.ResizeAndCrop', size=24)(dict(frames=flat))['frames'] == 77).all()

    def test_the_cache_changes_nothing(self, root):
        from clusterplug.datasets.video import open_store

        store = open_store(root / 'videos')
        plain = self.build(type='clusterplug.LoadVideoFrames', num_frames=3)
        cached = self.build(type='clusterplug.LoadVideoFrames', num_frames=3, cache_bytes=10**6)
        for _ in range(2):
            results = [each(dict(store=store, video_id='a', test_mode=True))['frames'] for each in (plain, cached)]
            assert np.array_equal(*results)

    def test_beginning_only(self, root):
        from clusterplug.datasets.video import open_store

        load = self.build(type='clusterplug.LoadVideoFrames', num_frames=3, max_seconds=0.5)
        found = load(dict(store=open_store(root / 'videos'), video_id='a', test_mode=True))
        assert max(found['frame_times']) < 0.5

    def test_features(self, tmp_path):
        np.savez(tmp_path / 'v.npz', feat=np.arange(10).reshape(5, 2), video=['b', 'a', 'b', 'b', 'a'])
        np.savez(tmp_path / 't.npz', text=np.arange(6).reshape(3, 2), video=['a', 'b', 'a'])
        load = self.build(type='clusterplug.LoadFeatures', video_file=str(tmp_path / 'v.npz'),
                          text_file=str(tmp_path / 't.npz'), num_frames=3)  # fmt: skip
        found = load(dict(video_id='a', test_mode=True))
        assert found['frames'].tolist() == [[2, 3], [8, 9], [8, 9]]
        assert found['frame_mask'].tolist() == [True, True, False]
        assert found['tokens'].tolist() == [[0, 1], [4, 5]]
        assert load(dict(video_id='a', test_mode=True, caption_rows=[1]))['tokens'].tolist() == [[4, 5]]
        with pytest.raises(ValueError, match='no video features of c'):
            load(dict(video_id='c'))
        (tmp_path / 'pairs.csv').write_text('video,caption\na,one\na,two\nc,three\n')
        pipeline = [load, dict(type='clusterplug.PackVideoText')]
        found = VideoTextDataset('pairs.csv', data_root=str(tmp_path), pipeline=pipeline, test_mode=True)[1]
        assert (found['data_samples'].video_id, found['data_samples'].valid) == ('c', False)
        assert found['inputs']['frames'].shape == (3, 2)
        assert found['inputs']['tokens'].shape == (1, 2)

    def test_bad_settings(self):
        for options, message in (
            (dict(type='clusterplug.LoadVideoFrames', num_frames=0), 'num_frames'),
            (dict(type='clusterplug.LoadVideoFrames', sampling='first'), 'sampling'),
            (dict(type='clusterplug.LoadVideoFrames', max_seconds=0), 'max_seconds'),
            (dict(type='clusterplug.ResizeAndCrop', size=0), 'size'),
            (dict(type='clusterplug.TokenizeCaptions', tokenizer=dict(type='Letters')), 'tokenizer.type'),
        ):
            with pytest.raises(ValueError, match=message):
                self.build(**options)


class TestMovingSprites:
    def test_files_are_real_and_complete(self, tmp_path):
        steps = list(generate_moving_sprites(tmp_path, {'test': 1}, num_frames=3, size=32))
        assert steps[-1] == ('test', 144, 144)
        captions = read_pairs(tmp_path / 'test.csv')
        assert len({text for texts in captions.values() for text in texts}) == 144
        video = open_video(tmp_path / 'videos' / 'test_00017.mp4')
        generator = np.random.default_rng([0, 0, 17])
        drawn = render_sprite(all_sprites()[17], 3, 32, generator)
        assert np.abs(video.frames([0, 1, 2]).astype(int) - drawn).mean() < 12
        before = (tmp_path / 'videos' / 'test_00017.mp4').stat().st_mtime_ns
        list(generate_moving_sprites(tmp_path, {'test': 1}, num_frames=3, size=32))
        assert (tmp_path / 'videos' / 'test_00017.mp4').stat().st_mtime_ns == before
        assert 'circle' in (tmp_path / 'vocabulary.txt').read_text().split()

    def test_a_sprite_has_its_colour_and_moves_unless_told_not_to(self):
        for sprite in all_sprites()[::5]:
            video = render_sprite(sprite, 8, 64, np.random.default_rng(1)).astype(int)
            from clusterplug.datasets.moving_sprites import COLORS

            near = np.abs(video - np.array(COLORS[sprite.color])).sum(-1) < 40
            assert (near.sum((1, 2)) > 40).all(), sprite
            places = np.stack([np.argwhere(frame).mean(0) for frame in near])
            travelled = np.abs(np.diff(places, axis=0)).sum()
            assert (travelled < 4) == (sprite.motion == 'not at all'), sprite

    def test_captions(self):
        assert caption_of(all_sprites()[0], 4) == 'the circle is red and it goes across the top'
        with pytest.raises(ValueError, match='even'):
            list(generate_moving_sprites('/nowhere', size=17))


@pytest.mark.parametrize(
    'code', [b'Nr\xff\xff\xff\x7f', b'\x8e\xff\xff\xff\xff\xff\xff\x00\x00', b'\x96\xff\xff\xff\x7f' + bytes(4)]
)
def test_a_pickle_of_captions_takes_the_memory_of_its_bytes(tmp_path, code):
    (tmp_path / 'captions.pkl').write_bytes(b'\x80\x05' + code + b'.')
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r'captions\.pkl must'):
            read_msvd(tmp_path / 'captions.pkl')
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize('text', ['{"\\ud800": "x"}', '[{"video_id": ' + '9' * 5000 + ', "caption": "x"}]'])
def test_errors_of_odd_json_name_the_file_and_can_be_printed(tmp_path, text):
    (tmp_path / 'captions.json').write_text(text)
    with pytest.raises(ValueError, match=r'captions\.json') as error:
        read_pairs(tmp_path / 'captions.json')
    str(error.value).encode()
