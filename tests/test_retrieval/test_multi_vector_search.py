# SPDX-License-Identifier: Apache-2.0
"""Indexes of several vectors, the encoders and the model behind them, and both tools."""

import importlib.util
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmengine', reason='needs mmengine')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[video]')

from clusterplug.functional import chamfer_similarity, cluster_vectors
from clusterplug.registry import MODELS
from clusterplug.retrieval import MultiVectorIndex
from clusterplug.retrieval.search import VideoIndex, build_index, load_or_set_aside
from clusterplug.retrieval.text_search import TextEncoder, build_text_index, read_texts
from clusterplug.testing import run_forked

ROOT = Path(__file__).resolve().parents[2]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_sets(number, dim=16):
    counts = torch.randint(1, 7, (number,), generator=torch.Generator().manual_seed(1)).tolist()
    return [F.normalize(randn(n, dim, seed=i), dim=-1) for i, n in enumerate(counts)]


def test_answers_are_exact():
    sets = some_sets(60)
    index = MultiVectorIndex.of_sets([f'v{i}' for i in range(60)], sets, 'key')
    query = randn(3, 16, seed=99)
    scores = [float(chamfer_similarity(query[None], None, rows.half()[None], None)) for rows in sets]
    expected = sorted(range(60), key=lambda i: -scores[i])[:5]
    hits = index.search(query, 5)
    assert [hit.video_id for hit in hits] == [f'v{i}' for i in expected]
    assert [hit.score for hit in hits] == pytest.approx([scores[i] for i in expected], rel=1e-4)
    assert len(index.search(query, 100)) == 60
    assert '60 items' in index.describe()
    assert f'{index.vectors.nbytes / 60:.0f} bytes an item (one fp32 vector: 64 bytes)' in index.describe()


@pytest.mark.parametrize('with_faiss', [False, True])
def test_candidates_hold_what_is_near(with_faiss, monkeypatch):
    if with_faiss:
        pytest.importorskip('faiss', reason='needs faiss: pip install faiss-cpu')
    else:
        monkeypatch.setitem(__import__('sys').modules, 'faiss', None)
    sets = some_sets(400)
    index = MultiVectorIndex.of_sets([str(i) for i in range(400)], sets)
    found = 0
    for i in range(0, 400, 10):
        query = sets[i] + 0.05 * randn(*sets[i].shape, seed=1000 + i)
        exact, near = index.search(query, 1), index.search(query, 1, num_candidates=40)
        found += exact == near
    assert found >= 38
    assert (index._searcher is not None) is with_faiss


def test_kept_in_a_file(tmp_path):
    index = MultiVectorIndex.of_sets(['a', 'b'], some_sets(2), 'key', {'c': 'broken'}, {'a': '1'}, 'stamp')
    index.save(tmp_path / 'x.pt')
    again = MultiVectorIndex.load(tmp_path / 'x.pt')
    assert torch.equal(again.vectors, index.vectors)
    assert (again.ids, again.unreadable, again.sources, again.stamp) == (
        ['a', 'b'],
        {'c': 'broken'},
        {'a': '1'},
        'stamp',
    )
    with pytest.raises(ValueError, match='is no video index'):
        VideoIndex.load(tmp_path / 'x.pt')
    said = []
    VideoIndex(['a'], torch.ones(1, 2), 'key').save(tmp_path / 'y.pt')
    assert load_or_set_aside(tmp_path / 'y.pt', said.append, MultiVectorIndex) is None
    assert 'no index of several vectors' in said[0]
    with pytest.raises(FileNotFoundError, match='no index'):
        MultiVectorIndex.load(tmp_path / 'none.pt')


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: MultiVectorIndex(['a'], torch.ones(2, 3), torch.tensor([1])), 'sum to 2'),
        (lambda: MultiVectorIndex(['a', 'b'], torch.ones(2, 3), torch.tensor([2, 0])), 'at least 1'),
        (lambda: MultiVectorIndex(['a', 'a'], torch.ones(2, 3), torch.tensor([1, 1])), 'one twice'),
        (lambda: MultiVectorIndex(['a'], 1e6 * torch.ones(1, 3), torch.tensor([1])), 'finite in fp16'),
        (lambda: MultiVectorIndex(['a'], torch.ones(1, 3), torch.ones(1)), 'counts must be int64'),
        (lambda: MultiVectorIndex(['a'], torch.ones(3), torch.tensor([1])), 'vectors must be'),
        (lambda: MultiVectorIndex.of_sets([], []).search(torch.ones(1, 3)), 'empty'),
        (lambda: MultiVectorIndex.of_sets(['a'], some_sets(1)).search(torch.ones(16)), 'query must have shape'),
        (lambda: MultiVectorIndex.of_sets(['a'], some_sets(1)).search(torch.ones(0, 16)), 'query must have shape'),
        (lambda: MultiVectorIndex.of_sets(['a'], some_sets(1)).search(torch.full((1, 16), torch.nan)), 'finite'),
        (lambda: MultiVectorIndex.of_sets(['a'], some_sets(1)).search(torch.ones(1, 16), 0), 'count must be'),
    ],
)
def test_bad_input(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def clip(clustering=None, vectors=None):
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    config = dict(
        vision_config=sizes | dict(image_size=32, patch_size=8), text_config=sizes | dict(vocab_size=100),
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    encoders = dict(type='clusterplug.TransformersEncoders', config=config, clustering=clustering)
    return MODELS.build(dict(type='clusterplug.CenterCLIP', encoders=encoders, vectors=vectors)).eval()


CLUSTERING = dict(after_block=1, segments=2, clusters=10)


@pytest.mark.parametrize('clustering', [None, CLUSTERING])
def test_patches_and_words_of_clip(clustering):
    model = clip(clustering)
    frames, mask = randn(2, 4, 3, 32, 32), torch.tensor([[True] * 4, [True, True, False, False]])
    with torch.no_grad():
        patches, segments = model.encoders.encode_patches(frames, mask)
        pooled, same = model.encoders.encode_video(frames, mask)
        assert torch.equal(segments, same)
        assert patches.shape[:2] == pooled.shape[:2] == ((2, 2) if clustering else (2, 4))
        assert patches.shape[2:] == ((10, 16) if clustering else (16, 16))  # without the class token
        tokens = torch.tensor([[98, 5, 7, 99, 0, 0], [98, 5, 99, 0, 0, 0]])
        words, there = model.encoders.encode_words(tokens)
        assert words.shape == (2, 6, 16)
        assert there.sum(1).tolist() == [4, 3]
        text = model.encode_text(tokens)
        torch.testing.assert_close(words[0, 3], text[0])  # the end token is the text's feature
        torch.testing.assert_close(words[1, 2], text[1])


@pytest.mark.parametrize('clustering', [None, CLUSTERING])
def test_the_model_trains_and_returns_sets(clustering):
    model = clip(
        clustering, dict(text=dict(tokens='words', num_clusters=3), video=dict(tokens='patches', num_clusters=6))
    )
    frames, mask = randn(3, 4, 3, 32, 32), torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
    tokens = torch.tensor([[98, 5, 7, 99], [98, 5, 99, 0], [98, 9, 8, 99]])
    vectors, _ = model.encode_video_vectors(frames, mask)
    patches, segments = model.encoders.encode_patches(frames, mask)
    flat = F.normalize(patches.flatten(1, 2).float(), dim=-1), segments.repeat_interleave(patches.shape[2], 1)
    expected = cluster_vectors(*flat, 6)
    torch.testing.assert_close(vectors, expected[0])
    losses = model(dict(frames=frames, frame_mask=mask, tokens=tokens), mode='loss')
    assert sorted(losses) == ['logit_scale', 'loss_contrast', 'loss_vectors']
    losses['loss_vectors'].backward()
    for parameter in (model.encoders.clip.visual_projection.weight, model.encoders.clip.text_projection.weight):
        assert parameter.grad.abs().sum() > 0
    assert sorted(clip()(dict(frames=frames, frame_mask=mask, tokens=tokens), mode='loss')) == [
        'logit_scale', 'loss_contrast',
    ]  # fmt: skip
    assert set(model.state_dict()) == set(clip(clustering).state_dict())
    pooled = clip(clustering, {})
    encode, passes = pooled.encoders.encode_images, []
    pooled.encoders.encode_images = lambda images: passes.append(1) or encode(images)
    losses = pooled(dict(frames=frames, frame_mask=mask, tokens=tokens), mode='loss')
    expected = pooled.vectors.loss(*pooled.encode_text_vectors(tokens), *pooled.encode_video_vectors(frames, mask))
    torch.testing.assert_close(losses['loss_vectors'], expected)
    assert len(passes) == 2  # one in the loss, one here
    with pytest.raises(ValueError, match='tokens must be one of'):
        clip(vectors=dict(text=dict(tokens='letters')))
    features = MODELS.build(dict(type='clusterplug.CenterCLIP', encoders=dict(
        type='clusterplug.FeatureEncoders', video_channels=8, text_channels=6)))  # fmt: skip
    vectors, _ = features.encode_video_vectors(randn(2, 40, 8), torch.ones(2, 40, dtype=torch.bool))
    assert vectors.shape == (2, 32, 256)
    assert features.encode_text_vectors(randn(2, 6))[1].sum(1).tolist() == [1, 1]


@pytest.fixture(scope='module')
def text_model(tmp_path_factory):
    """A text encoder of random weights with a vocabulary of words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp('encoder')
    words = [
        '[PAD]',
        '[UNK]',
        '[CLS]',
        '[SEP]',
        '[MASK]',
        'a',
        'red',
        'green',
        'blue',
        'circle',
        'square',
        'moves',
        'slowly',
        'fast',
    ]
    (folder / 'vocab.txt').write_text('\n'.join(words))
    BertTokenizerFast(str(folder / 'vocab.txt')).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


TEXTS = {'1': 'a red circle moves', '2': 'a green square moves slowly', '3': 'blue blue blue', '4': 'a fast red square'}


def test_texts_are_encoded_once_and_again_when_they_change(text_model, tmp_path):
    encoder = TextEncoder(text_model, num_clusters=3, query_clusters=2)
    path, steps = tmp_path / 'x.pt', []
    index = build_text_index(encoder, TEXTS, 'key', batch_size=2, path=path, say=lambda *state: steps.append(state))
    assert index.ids == list(TEXTS)
    assert int(index.counts.max()) == 3
    assert steps == [(2, 4), (4, 4)]
    changed = {**TEXTS, '2': 'a green circle', '5': 'red'}
    steps.clear()
    again = build_text_index(encoder, changed, 'key', MultiVectorIndex.load(path), say=lambda *s: steps.append(s))
    assert (again.ids, steps) == ([*TEXTS, '5'], [(5, 5)])
    assert torch.equal(again.sets()[0], index.sets()[0])
    build_text_index(encoder, TEXTS, 'other', index, say=lambda *s: steps.append(s))
    assert steps[-1] == (4, 4)
    for name in ('1', '4'):
        question = encoder.encode([TEXTS[name]], query=True)[0]
        assert len(question) == 2
        assert index.search(question, 1)[0].video_id in TEXTS
    single = build_text_index(encoder, TEXTS, 'key', index, vectors='single')
    assert single.search(encoder.encode([TEXTS['4']], 'single')[0], 1)[0].video_id == '4'
    with pytest.raises(FileNotFoundError, match='no text encoder'):
        TextEncoder(str(tmp_path / 'none'))


def test_files_of_texts(tmp_path):
    (tmp_path / 'a.txt').write_text('one\n\n two \n')
    assert read_texts(tmp_path / 'a.txt') == {'1': 'one', '3': 'two'}
    (tmp_path / 'a.jsonl').write_text('{"id": 7, "text": "one"}\n')
    assert read_texts(tmp_path / 'a.jsonl') == {'7': 'one'}
    for content, message in (('{"id": 7}\n', 'line 1: must be a JSON'), ('x', 'must be a JSON'), ('\n', 'no text'),
                             ('{"id": 1, "text": "a"}\n' * 2, 'comes twice')):  # fmt: skip
        (tmp_path / 'b.jsonl').write_text(content)
        with pytest.raises(ValueError, match=message):
            read_texts(tmp_path / 'b.jsonl')


def tool_named(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@pytest.mark.parametrize('vectors', ['multi', 'single'])
def test_tool_for_texts(text_model, tmp_path, capsys, vectors):
    tool, texts = tool_named('search_texts'), tmp_path / 'texts.jsonl'
    texts.write_text('\n'.join(json.dumps(dict(id=name, text=text)) for name, text in TEXTS.items()))

    def run(task, *more):
        try:
            code = tool.main([task, str(texts), '--model', text_model, '--vectors', vectors, *map(str, more)])
        except SystemExit as error:
            code = error.code
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    result = run('index', '--num-clusters', 3)
    assert result.code == 0, result.err
    assert f'texts.jsonl.{vectors}.index.pt: 4 texts' in result.out
    assert '4 items' in result.err
    assert ' MB' in result.err
    result = run('query', 'a fast red square', '--top', 2, '--num-clusters', 3)
    assert result.code == 0, result.err
    assert 'of 4 texts' not in result.err  # nothing to encode again
    assert result.out.count('\n  ') == 2
    for more, message in (
        (['query', ' '], 'at least one word'), (['query', 'red', '--top', 0], 'at least 1, got 0'),
        (['index', '--num-clusters', 0], 'at least 1, got 0'), (['index', '--index', texts], 'is only read'),
    ):  # fmt: skip
        result = run(*more)
        assert result.code != 0
        assert message in result.err


def test_a_kill_loses_little(text_model, tmp_path, monkeypatch):
    encoder, path = TextEncoder(text_model, num_clusters=3), tmp_path / 'x.pt'

    def killed():
        clock = iter(range(0, 10_000, 10))
        monkeypatch.setattr('time.monotonic', lambda: next(clock))  # every batch is saved
        build_text_index(
            encoder, TEXTS, 'key', path=path, batch_size=1,
            say=lambda done, total: done == 3 and os.kill(os.getpid(), signal.SIGKILL),
        )  # fmt: skip

    assert run_forked(killed) == -signal.SIGKILL
    kept, steps = MultiVectorIndex.load(path), []
    assert len(kept.ids) == 3
    index = build_text_index(encoder, TEXTS, 'key', kept, say=lambda *state: steps.append(state))
    assert (index.ids, steps) == (list(TEXTS), [(4, 4)])


def test_tool_for_videos(tmp_path, capsys):
    pytest.importorskip('av', reason='needs PyAV: pip install clusterplug[video]')
    from clusterplug.datasets.moving_sprites import all_sprites, render_sprite
    from clusterplug.datasets.video import write_vocabulary
    from clusterplug.datasets.video.encoding import write_video

    folder = tmp_path / 'videos'
    folder.mkdir()
    for number in range(3):
        frames = render_sprite(all_sprites()[40 * number], 6, 48, np.random.default_rng(1))
        write_video(folder / f'{number}.mp4', frames, 6)
    write_vocabulary(tmp_path / 'vocabulary.txt', ['a red circle moves across'])
    tool, config = tool_named('search_videos'), 'centerclip-b1-2x6_vit-tiny_1xb64-40e_moving-sprites.py'

    def run(task, *more, options=()):
        vocabulary = f'test_dataloader.dataset.pipeline.2.tokenizer.vocabulary={tmp_path / "vocabulary.txt"}'
        given = ['--config', ROOT / 'configs' / 'centerclip' / config, '--random-weights', '--vectors', 'multi']
        torch.manual_seed(0)  # the same random weights in every run
        code = tool.main([*map(str, (task, folder, *more, *given)), '--cfg-options', vocabulary, *options])
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    result = run('query', 'a red circle', '--top', 2)
    assert result.code == 0, result.err
    assert '3 of 3 videos' in result.err
    assert result.out.count('\n  ') == 2
    index = MultiVectorIndex.load(tmp_path / 'videos.multi.index.pt')
    assert index.ids == ['0', '1', '2']
    assert index.counts.tolist() == [2, 2, 2]  # segments of that config
    assert index.describe() in result.err
    result = run('query', 'a red circle')
    assert 'of 3 videos' not in result.err
    patches = [
        'model.vectors.video.tokens=patches',
        'model.vectors.video.num_clusters=5',
        'model.vectors.text.tokens=words',
    ]
    result = run('index', options=patches)
    assert result.code == 0, result.err
    assert MultiVectorIndex.load(tmp_path / 'videos.multi.index.pt').counts.tolist() == [5, 5, 5]


def test_videos_without_a_vector_are_named():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.anchor = torch.nn.Parameter(torch.zeros(()))

        def data_preprocessor(self, data, training):
            return dict(inputs={key: torch.stack(value) for key, value in data['inputs'].items()})

        def encode_video_vectors(self, frames, mask):
            return frames, mask

    class Store:
        def ids(self):
            return ['a', 'b']

        def stamp(self):
            return ''

        def fingerprint(self, video_id):
            return video_id

    def pipeline(item):
        there = item['video_id'] == 'a'
        return dict(frames=torch.ones(3, 4), frame_mask=torch.tensor([there] * 3))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('clusterplug.retrieval.search.open_store', lambda videos: Store())
        index = build_index(Model(), 'x', pipeline, 'key', vectors='multi')
    assert (index.ids, index.unreadable) == (['a'], {'b': 'it has no frame, so no vector'})
    with pytest.raises(ValueError, match='vectors must be one of'):
        build_index(Model(), 'x', pipeline, 'key', vectors='many')
