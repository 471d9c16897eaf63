# SPDX-License-Identifier: Apache-2.0
"""The index behind tools/search_videos.py, and the tool on real files with a model of random weights."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip('mmengine', reason='needs mmengine')
pytest.importorskip('av', reason='needs PyAV: pip install clusterplug[video]')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[video]')

from clusterplug.datasets.video.encoding import write_video
from clusterplug.retrieval.search import (
    VideoIndex,
    build_index,
    encode_sentences,
    load_or_set_aside,
    model_key,
    untrained_parts,
)
from clusterplug.testing import run_forked

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('with_faiss', [False, True])
def test_answers_are_the_nearest(with_faiss, monkeypatch):
    if with_faiss:
        pytest.importorskip('faiss', reason='needs faiss: pip install faiss-cpu')
        monkeypatch.setattr('clusterplug.retrieval.video_index.FAISS_FROM', 0)
    features = torch.nn.functional.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    index = VideoIndex([f'v{i}' for i in range(50)], features, 'key')
    query = 3 * features[7] + 0.1 * features[8]
    hits = index.search(query, 4)
    scores = (features @ torch.nn.functional.normalize(query, dim=0)).tolist()
    expected = sorted(range(50), key=lambda i: -scores[i])[:4]
    assert [hit.video_id for hit in hits] == [f'v{i}' for i in expected]
    assert [hit.score for hit in hits] == pytest.approx([scores[i] for i in expected])
    assert len(index.search(query, 100)) == 50
    assert (index._searcher is not None) is with_faiss


def test_bad_input(tmp_path):
    index = VideoIndex(['a'], torch.ones(1, 4), 'key')
    with pytest.raises(ValueError, match='query must have shape'):
        index.search(torch.ones(5))
    with pytest.raises(ValueError, match='empty'):
        VideoIndex([], torch.zeros(0, 0), 'key').search(torch.ones(4))
    with pytest.raises(ValueError, match='one twice'):
        VideoIndex(['a', 'a'], torch.ones(2, 4), 'key')
    with pytest.raises(FileNotFoundError, match='no index'):
        VideoIndex.load(tmp_path / 'none.pt')
    (tmp_path / 'x.pt').write_text('x')
    with pytest.raises(ValueError, match='is no video index'):
        VideoIndex.load(tmp_path / 'x.pt')


class Colours(torch.nn.Module):
    """Stands for a model: the feature of a video is its mean color; counts what it encodes."""

    def __init__(self):
        super().__init__()
        self.anchor, self.encoded = torch.nn.Parameter(torch.zeros(())), 0

    def data_preprocessor(self, data, training):
        inputs = data['inputs']
        return dict(inputs=dict(frames=torch.stack(inputs['frames']), frame_mask=torch.stack(inputs['frame_mask'])))

    def encode_video(self, frames, mask):
        self.encoded += len(frames)
        return torch.nn.functional.normalize(frames.float().mean((1, 3, 4)), dim=-1)


def test_features_are_made_once_and_only_for_what_is_new(tmp_path):
    from clusterplug.registry import TRANSFORMS

    load = TRANSFORMS.build(dict(type='clusterplug.LoadVideoFrames', num_frames=2))
    crop = TRANSFORMS.build(dict(type='clusterplug.ResizeAndCrop', size=16))
    folder = tmp_path / 'videos'
    folder.mkdir()

    def add(name, color):
        write_video(folder / f'{name}.mp4', np.full((3, 32, 64, 3), color, np.uint8), 5)

    add('red', (230, 20, 20))
    add('green', (20, 230, 20))
    (folder / 'bad.mp4').write_bytes(b'bad')
    model, key = Colours(), model_key({'a': 1}, None)
    index = build_index(model, folder, lambda results: crop(load(results)), key)
    assert (index.ids, model.encoded) == (['green', 'red'], 2)
    assert list(index.unreadable) == ['bad']
    index.save(tmp_path / 'index.pt')
    add('blue', (20, 20, 230))
    steps = []
    index = build_index(
        model, folder, lambda results: crop(load(results)), key, VideoIndex.load(tmp_path / 'index.pt'),
        say=lambda *state: steps.append(state),
    )  # fmt: skip
    assert (index.ids, model.encoded) == (['blue', 'green', 'red'], 3)
    assert steps[-1] == (4, 4)
    assert index.search(torch.tensor([0.0, 0.1, 1.0]), 1)[0].video_id == 'blue'
    build_index(model, folder, lambda results: crop(load(results)), 'other model', index)
    assert model.encoded == 6
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='holds no video'):
        build_index(model, tmp_path / 'empty', load, key)


class Folder:
    """Videos of one color each, a pipeline that can be told to stop, and a model that counts."""

    def __init__(self, tmp_path):
        from clusterplug.registry import TRANSFORMS

        self.path, self.model, self.stop_at = tmp_path / 'videos', Colours(), None
        self.path.mkdir()
        load = TRANSFORMS.build(dict(type='clusterplug.LoadVideoFrames', num_frames=2))
        crop = TRANSFORMS.build(dict(type='clusterplug.ResizeAndCrop', size=16))
        self.steps = lambda results: crop(load(results))

    def add(self, name, color, folder=None):
        write_video((folder or self.path) / f'{name}.mp4', np.full((3, 32, 64, 3), color, np.uint8), 5)

    def pipeline(self, results):
        if results['video_id'] == self.stop_at:
            raise KeyboardInterrupt
        return self.steps(results)

    def build(self, previous=None, path=None, videos=None, key='key', **options):
        self.model.encoded = 0
        return build_index(self.model, videos or self.path, self.pipeline, key, previous, path=path, **options)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


RED, BLUE = (230, 20, 20), (20, 20, 230)


@pytest.mark.parametrize('kind', ['folder', 'zip', 'lmdb', 'frames'])
def test_what_was_replaced_is_encoded_again(folder, tmp_path, kind):
    import zipfile

    from PIL import Image

    from clusterplug.datasets.video import write_lmdb

    if kind == 'lmdb':
        pytest.importorskip('lmdb', reason='needs lmdb')

    def make(color):
        source = tmp_path / 'source'
        source.mkdir(exist_ok=True)
        if kind == 'frames':
            for name, each in (('same', RED), ('other', color)):
                (folder.path / name).mkdir(exist_ok=True)
                if name == 'other' or not (folder.path / name / '0.png').exists():
                    Image.new('RGB', (32, 32), each).save(folder.path / name / '0.png')
            return folder.path
        target = folder.path if kind == 'folder' else source
        if not (target / 'same.mp4').exists():
            folder.add('same', RED, target)
        folder.add('other', color, target)
        files = [target / 'same.mp4', target / 'other.mp4']
        if kind == 'zip':
            with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as archive:
                for file in files:
                    archive.write(file, file.name)
            return tmp_path / 'x.zip'
        if kind == 'lmdb':
            write_lmdb(tmp_path / 'lmdb', files)
            return tmp_path / 'lmdb'
        return folder.path

    first = folder.build(videos=make(RED))
    assert folder.model.encoded == 2
    first.save(tmp_path / 'x.index.pt')
    assert folder.build(VideoIndex.load(tmp_path / 'x.index.pt'), videos=make(BLUE)).ids == ['other', 'same']
    assert folder.model.encoded == 1
    second = folder.build(first, videos=make(BLUE))
    assert second.features[0].argmax() == 2
    assert second.features[1].argmax() == 0
    place = dict(zip=tmp_path / 'x.zip', lmdb=tmp_path / 'lmdb').get(kind, folder.path)
    third = folder.build(second, videos=place)
    assert folder.model.encoded == 0
    assert third.ids == second.ids


def test_work_that_stops_is_kept(folder, tmp_path):
    for name in 'abcde':
        folder.add(name, RED)
    folder.stop_at = 'd'
    path = tmp_path / 'x.index.pt'
    with pytest.raises(KeyboardInterrupt) as caught:
        folder.build(path=path, batch_size=1)
    assert caught.value.index.ids == ['a', 'b', 'c'] == VideoIndex.load(path).ids
    folder.stop_at = None
    index = folder.build(VideoIndex.load(path), path, batch_size=1)
    assert (index.ids, folder.model.encoded) == (list('abcde'), 2)
    assert VideoIndex.load(path).ids == list('abcde')


def test_a_kill_loses_one_batch_at_most(folder, tmp_path):
    import os
    import signal

    for name in 'abcd':
        folder.add(name, RED)
    path, seen = tmp_path / 'x.index.pt', []

    def killed():
        folder.build(
            path=path, batch_size=1, say=lambda done, total: done == 3 and os.kill(os.getpid(), signal.SIGKILL)
        )

    assert run_forked(killed) == -signal.SIGKILL
    kept = VideoIndex.load(path)
    assert kept.ids == ['a', 'b', 'c']
    folder.build(kept, say=lambda *state: seen.append(state), batch_size=1)
    assert (folder.model.encoded, seen) == (1, [(4, 4)])


def test_features_that_are_not_finite_are_no_answers(folder):
    folder.add('a', RED)
    folder.add('b', BLUE)
    encode = folder.model.encode_video
    folder.model.encode_video = lambda frames, mask: encode(frames, mask) * torch.tensor([[1.0], [torch.nan]])
    index = folder.build()
    assert (index.ids, index.unreadable) == (['a'], {'b': 'its features are not finite'})


def test_what_is_no_index_is_set_aside(tmp_path):
    path, said = tmp_path / 'x.index.pt', []
    assert load_or_set_aside(path, said.append) is None
    VideoIndex(['a'], torch.ones(1, 2), 'key').save(path)
    assert load_or_set_aside(path, said.append).ids == ['a']
    assert said == []
    whole = path.read_bytes()
    for number, content in enumerate((whole[: len(whole) // 2], b'', b'notes of a user')):
        path.write_bytes(content)
        assert load_or_set_aside(path, said.append) is None
        aside = tmp_path / f'x.index.pt.unreadable{f".{number}" if number else ""}'
        assert aside.read_bytes() == content
        assert not path.exists()
        assert str(aside) in said[-1]
    for content in (dict(ids=['a'], features=torch.ones(1, 2)), dict(ids=['a'], features=[1], model_key='k'),
                    dict(ids=['a'], features=torch.full((1, 2), torch.nan), model_key='k'), dict(a=1)):  # fmt: skip
        torch.save(content, path)
        with pytest.raises(ValueError, match='is no video index'):
            VideoIndex.load(path)


def test_the_key_knows_the_weights():
    model = Colours()
    key = model_key({'a': 1}, model=model)
    assert key == model_key({'a': 1}, model=Colours())
    assert key != model_key({'a': 2}, model=model)
    with torch.no_grad():
        model.anchor += 1e-6
    assert key != model_key({'a': 1}, model=model)


def test_numbers(folder):
    folder.add('a', RED)
    for size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match='batch_size must be'):
            folder.build(batch_size=size)
    index = folder.build()
    for count in (0, -1, 1.5):
        with pytest.raises(ValueError, match='count must be'):
            index.search(torch.ones(3), count)
    with pytest.raises(ValueError, match='query must be finite'):
        index.search(torch.full((3,), torch.nan))


def test_words_that_the_vocabulary_lacks():
    from clusterplug.registry import TRANSFORMS

    class Words(Colours):
        def encode_text(self, tokens):
            return tokens.float()

    words = dict(type='WordTokenizer', vocabulary=['red', 'circle'])
    tokenize = TRANSFORMS.build(dict(type='clusterplug.TokenizeCaptions', tokenizer=words, max_words=6))
    with pytest.warns(UserWarning, match='not in the vocabulary of the model: a, zebra'):
        encode_sentences(Words(), ['a red zebra'], tokenize)
    with pytest.raises(ValueError, match="got 'green zebra': none is in the vocabulary"):
        encode_sentences(Words(), ['red circle', 'green zebra'], tokenize)


def test_random_weights_are_named(tmp_path):
    from clusterplug.registry import MODELS

    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    config = dict(vision_config=sizes | dict(image_size=16, patch_size=8), text_config=sizes | dict(vocab_size=20))
    encoders = dict(type='clusterplug.TransformersEncoders', config=config | dict(projection_dim=32))
    model = MODELS.build(dict(type='clusterplug.CenterCLIP', encoders=encoders))
    assert untrained_parts(model) == ['encoders']
    model.encoders.clip.save_pretrained(tmp_path / 'clip')
    encoders = dict(type='clusterplug.TransformersEncoders', pretrained=str(tmp_path / 'clip'))
    assert untrained_parts(MODELS.build(dict(type='clusterplug.CenterCLIP', encoders=encoders))) == []
    head = dict(type='clusterplug.SequenceTransformer', embed_dims=32, num_blocks=1)
    model = MODELS.build(dict(type='clusterplug.CenterCLIP', encoders=encoders, head=head))
    assert untrained_parts(model) == ['head']


def test_tool(tmp_path, capsys):
    from clusterplug.datasets.moving_sprites import all_sprites, render_sprite
    from clusterplug.datasets.video import write_vocabulary

    folder = tmp_path / 'videos'
    folder.mkdir()
    for number in range(4):
        write_video(
            folder / f'{number}.mp4', render_sprite(all_sprites()[40 * number], 6, 48, np.random.default_rng(1)), 6
        )
    write_vocabulary(tmp_path / 'vocabulary.txt', ['a red circle moves across'])
    config = ROOT / 'configs' / 'centerclip' / 'centerclip-b1-2x6_vit-tiny_1xb64-40e_moving-sprites.py'
    options = ['--config', config, '--cfg-options', f'test_dataloader.dataset.pipeline.2.tokenizer.vocabulary='
               f'{tmp_path / "vocabulary.txt"}']  # fmt: skip

    spec = importlib.util.spec_from_file_location('search_videos', ROOT / 'tools' / 'search_videos.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def run(task, *arguments, random=('--random-weights',), more=()):
        try:
            code = tool.main([str(part) for part in (task, folder, *arguments, *options, *more, *random)])
        except SystemExit as error:
            code = error.code
        return SimpleNamespace(returncode=code, **capsys.readouterr()._asdict())

    result = run('query', 'a red circle', random=())
    assert (result.returncode, result.out) == (1, '')
    assert 'weights of the encoders are random' in result.err
    (tmp_path / 'videos.index.pt').write_text('junk')
    result = run('query', 'a red zebra', '--top', 3, '--sheet', tmp_path / 'hits.png')
    assert result.returncode == 0, result.err
    assert '4 of 4 videos' in result.err
    assert 'is no video index' in result.err
    assert 'not in the vocabulary of the model: zebra' in result.err
    assert result.out.count('\n  ') == 3
    assert (tmp_path / 'hits.png').read_bytes()[:4] == b'\x89PNG'
    result = run('tokens', '2', '--out', tmp_path / 'out')
    assert result.returncode == 0, result.err
    assert len(list((tmp_path / 'out').glob('2_*.png'))) == 2
    for arguments, message in (
        (['query', ' '], 'at least one word'),
        (['query', 'zebra'], 'none is in the vocabulary'),
        (['query', 'red', '--top', '-1'], 'at least 1, got -1'),
        (['index', '--batch-size', '0'], 'at least 1, got 0'),
        (['index', '--checkpoint', 'none.pth'], 'none.pth'),
        (['index', '--index', folder / '0.mp4'], 'is only read'),
        (['index', '--device', 'xyz'], '--device must be'),
    ):
        result = run(*arguments)
        assert result.returncode != 0, arguments
        assert message in result.err, result.err
    result = run('query', 'red', more=['test_dataloader.dataset.pipeline.2.tokenizer.vocabulary=none.txt'])
    assert (result.returncode, result.out) == (1, '')
    assert 'no vocabulary none.txt' in result.err
    torch.save(dict(state_dict={'backbone.weight': torch.ones(3)}), tmp_path / 'other.pth')
    result = run('query', 'red', '--checkpoint', tmp_path / 'other.pth', random=())
    assert (result.returncode, result.out) == (1, '')
    assert 'does not fit the model' in result.err
