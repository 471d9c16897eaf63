# SPDX-License-Identifier: Apache-2.0
"""Real Runners on real mp4 files: train, stop, resume to the same numbers, test; configs; unreadable videos listed."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmengine', reason='needs mmengine')
pytest.importorskip('av', reason='needs PyAV: pip install clusterplug[video]')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[video]')

from clusterplug import compat
from clusterplug.cli import build_runner, load_config
from clusterplug.datasets.moving_sprites import generate_moving_sprites

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / 'configs' / 'centerclip').glob('*.py'))
SPRITES = 'centerclip-b1-2x6_vit-tiny_1xb64-40e_moving-sprites'
_RUNS = iter(range(10**6))


@pytest.fixture(scope='module')
def sprites(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sprites')
    list(generate_moving_sprites(folder, {'train': 1, 'test': 1}, num_frames=6, size=48))
    return folder


def config(sprites, work_dir, name=SPRITES, epochs=2, **options):
    """The config of the repository on a part of the sprites."""
    compat.apply_all()
    settings = {
        'train_dataloader.batch_size': 8, 'train_dataloader.dataset.indices': 24, 'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': epochs, 'val_dataloader.dataset.indices': 20, 'test_dataloader.dataset.indices': 20,
        'default_hooks.logger.interval': 1, 'default_hooks.checkpoint.interval': 1, 'log_level': 'WARNING',
        'default_hooks.checkpoint.max_keep_ckpts': 3,
    } | {key.replace('__', '.'): value for key, value in options.items()}  # fmt: skip
    found = load_config(str(ROOT / 'configs' / 'centerclip' / f'{name}.py'), settings, str(work_dir))
    for loader in (found.train_dataloader, found.val_dataloader, found.test_dataloader):
        loader.dataset.data_root = str(sprites)
        for step in loader.dataset.pipeline:
            if step.type.endswith('TokenizeCaptions'):
                step.tokenizer.vocabulary = str(sprites / 'vocabulary.txt')
            if step.type.endswith('LoadVideoFrames'):
                step.sampling = 'middle'  # nothing random, so that a resumed run repeats the numbers
    found.experiment_name = f'retrieval_{next(_RUNS)}'
    return found


def weights(runner):
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


def test_train_stop_resume_gives_the_same_weights(sprites, tmp_path):
    straight = build_runner(config(sprites, tmp_path / 'straight', epochs=2))
    straight.train()
    scalars = straight.message_hub.log_scalars
    assert np.isfinite(scalars['train/loss_contrast'].data[0]).all()
    assert 'val/retrieval/t2v/R1' in scalars
    from mmengine.hooks import Hook

    class StopAfterFirstEpoch(Hook):
        priority = 'LOWEST'  # after the checkpoint is written

        def after_train_epoch(self, runner):
            raise KeyboardInterrupt

    first = build_runner(config(sprites, tmp_path / 'halves', epochs=2))
    first.register_hook(StopAfterFirstEpoch())
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = build_runner(config(sprites, tmp_path / 'halves', epochs=2, resume=True))
    second.train()
    for name, value in weights(straight).items():
        torch.testing.assert_close(value, weights(second)[name], rtol=1e-5, atol=1e-6)
    metrics = build_runner(
        config(sprites, tmp_path / 'test', load_from=str(tmp_path / 'straight' / 'epoch_2.pth'))
    ).test()
    assert metrics['retrieval/videos'] == 20
    assert metrics['retrieval/t2v/R1'] == pytest.approx(scalars['val/retrieval/t2v/R1'].data[0][-1])


def test_learning_rates_and_decay_of_each_parameter(sprites, tmp_path):
    """CLIP's rate for CLIP, a thousand times as much for the head; no decay of gains, biases and the scale."""
    name = SPRITES
    head = dict(type='clusterplug.SequenceTransformer', embed_dims=64, num_blocks=1)
    found = config(sprites, tmp_path, name)
    found.model.head = head
    runner = build_runner(found)
    runner.optim_wrapper = runner.build_optim_wrapper(found.optim_wrapper)
    rates = {}
    names = {id(p): n for n, p in runner.model.named_parameters()}
    for group in runner.optim_wrapper.optimizer.param_groups:
        for parameter in group['params']:
            rates[names[id(parameter)]] = (group['lr'], group['weight_decay'])
    lr = found.optim_wrapper.optimizer.lr
    for parameter, (rate, decay) in rates.items():
        assert rate == pytest.approx(1000 * lr if parameter.startswith('head.') else lr), parameter
        if parameter.startswith('encoders.'):
            gain = 'norm' in parameter or 'layrnorm' in parameter
            plain = parameter.endswith('.bias') or gain or parameter.endswith('logit_scale')
            assert (decay == 0) == plain, parameter


def test_unreadable_videos_are_listed_at_the_end(sprites, tmp_path):
    import shutil

    shutil.copytree(sprites, tmp_path / 'data')
    for number in (3, 11):
        (tmp_path / 'data' / 'videos' / f'train_{number:05d}.mp4').write_bytes(b'broken')
    (tmp_path / 'data' / 'videos' / 'test_00002.mp4').write_bytes(b'')
    runner = build_runner(config(tmp_path / 'data', tmp_path / 'run', epochs=1))
    runner.train()
    lines = (tmp_path / 'run' / 'unreadable_videos.txt').read_text().splitlines()
    assert [line.split('\t')[0] for line in lines] == ['train_00003', 'train_00011']
    assert runner.message_hub.log_scalars['val/retrieval/unreadable'].data[0][-1] == 1
    assert runner.message_hub.log_scalars['val/retrieval/videos'].data[0][-1] == 19


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_is_complete(path, monkeypatch):
    """Every config names parts that exist, and a recipe that fits: batches of 128, rates, warm-up of a tenth."""
    from clusterplug.registry import DATASETS, METRICS, MODELS, TRANSFORMS

    found = load_config(str(path), work_dir='x')
    assert MODELS.get(found.model.type)
    assert MODELS.get(found.model.encoders.type)
    assert METRICS.get(found.val_evaluator.type)
    for loader in (found.train_dataloader, found.val_dataloader, found.test_dataloader):
        assert DATASETS.get(loader.dataset.type)
        for step in loader.dataset.pipeline:
            assert TRANSFORMS.get(step.type)
        counts = DATASETS.get(loader.dataset.type).COUNTS
        assert loader.dataset.get('split') is None or loader.dataset.split in counts
    clustered = path.name.startswith(('centerclip', 'sparse'))
    assert ('clustering' in found.model.encoders) == clustered
    if 'moving-sprites' in path.name or 'features' in path.name:
        return
    gpus, batch = path.stem.split('xb')[0].rsplit('_', 1)[1], found.train_dataloader.batch_size
    assert int(gpus) * batch == 128
    warm_up, cosine = found.param_scheduler
    assert warm_up['end'] == cosine['begin'] == 0.1 * found.max_epochs
    assert found.optim_wrapper.optimizer.lr == (1e-5 if 'activitynet' in path.name else 5e-6)
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith('#')]
    assert len(lines) <= 8
    if clustered:
        segments, clusters = (path.stem.split('-b6-')[1].split('_')[0]).split('x')
        settings = found.model.encoders.clustering
        assert (settings.num_segments, settings.num_clusters, settings.start) == (int(segments), int(clusters), 6)
        assert clusters == ('49' if 'b32' in path.stem else '160')


@pytest.mark.slow
def test_real_frames_and_features_of_msrvtt(tmp_path):
    """Frames in a zip with published captions; DINOv2 and MiniLM features through a trained projection to R@1."""
    import os

    if 'CLUSTERPLUG_DATA' not in os.environ:
        pytest.skip('needs CLUSTERPLUG_DATA')
    data = Path(os.environ['CLUSTERPLUG_DATA'], 'video')
    from clusterplug.registry import DATASETS

    pipeline = [
        dict(type='clusterplug.LoadVideoFrames', num_frames=6),
        dict(type='clusterplug.ResizeAndCrop', size=64),
        dict(type='clusterplug.TokenizeCaptions', tokenizer=dict(type='WordTokenizer', vocabulary=['a', 'man'])),
        dict(type='clusterplug.PackVideoText'),
    ]
    frames = DATASETS.build(dict(
        type='clusterplug.MSRVTTDataset', ann_file='MSRVTT_JSFUSION_test.csv', split='test-1k', data_root=str(data),
        videos='msrvtt_1kA_frame_pairs.zip', side_by_side=2, pipeline=pipeline, test_mode=True,
    ))  # fmt: skip
    assert (len(frames), len(frames.missing)) == (476, 524)
    item = frames[0]
    assert item['inputs']['frames'].float().std() > 10
    compat.apply_all()
    options = {'train_cfg.max_epochs': 30, 'train_cfg.val_interval': 30, 'log_level': 'WARNING'}
    found = load_config(
        str(ROOT / 'configs' / 'centerclip' / 'features_1xb64-30e_msrvtt-frames.py'), options, str(tmp_path)
    )
    found.experiment_name = f'retrieval_{next(_RUNS)}'
    runner = build_runner(found)
    runner.train()
    rank_one = runner.message_hub.log_scalars['val/retrieval/t2v/R1'].data[0][-1]
    assert runner.message_hub.log_scalars['val/retrieval/videos'].data[0][-1] == 96
    assert rank_one > 5 * 100 / 96
