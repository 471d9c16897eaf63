"""The index behind tools/search_videos.py, and the tool on real files with a model of random weights."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmengine', reason='needs mmengine')
pytest.importorskip('av', reason='needs PyAV: pip install clusterplug[video]')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[video]')

from clusterplug.datasets.video.encoding import write_video
from clusterplug.retrieval.search import VideoIndex, build_index, model_key

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('with_faiss', [False, True])
def test_answers_are_the_nearest(with_faiss, monkeypatch):
    if with_faiss:
        pytest.importorskip('faiss', reason='needs faiss: pip install faiss-cpu')
        monkeypatch.setattr('clusterplug.retrieval.search.FAISS_FROM', 0)
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
    """Stands for a model: the feature of a video is its mean colour; counts what it encodes."""

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


@pytest.mark.slow
def test_tool(tmp_path):
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

    def run(task, *arguments):
        command = [sys.executable, ROOT / 'tools' / 'search_videos.py', task, folder, *arguments, *options]
        return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=tmp_path)

    result = run('query', 'a red circle', '--top', 3, '--sheet', tmp_path / 'hits.png')
    assert result.returncode == 0, result.stderr
    assert '4 of 4 videos' in result.stderr
    assert result.stdout.count('\n  ') == 3
    assert (tmp_path / 'hits.png').read_bytes()[:4] == b'\x89PNG'
    result = run('tokens', '2', '--out', tmp_path / 'out')
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / 'out').glob('2_*.png'))) == 2
    result = run('query', ' ')
    assert result.returncode == 1
    assert 'at least one word' in result.stderr
    result = run('index', '--checkpoint', 'none.pth')
    assert result.returncode == 1
    assert 'no checkpoint none.pth' in result.stderr
