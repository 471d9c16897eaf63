# SPDX-License-Identifier: Apache-2.0
"""Configs of pre-training: they build; the small ones take steps, probe and resume on tiny real files."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')
pytest.importorskip('timm')

from clusterplug import compat
from clusterplug.cli import load_config
from clusterplug.testing import write_tiny_semantickitti

ROOT = Path(__file__).resolve().parents[2] / 'configs'
FAMILIES = ('swav', 'deepcluster', 'franca', 'mlcd', 'beclr', 'simlap', 'gsimclr', 'subspace_learners')
CONFIGS = [path for family in FAMILIES for path in sorted((ROOT / family).glob('*.py'))]
IMAGES = [path for path in CONFIGS if 'cifar10' in path.name]
PUBLISHED = [path for path in CONFIGS if 'imagenet' in path.name or 'in1k' in path.name]
SCANS = [path for path in CONFIGS if path not in IMAGES + PUBLISHED]
SLOW = ('swav', 'deepcluster')  # their resumed runs have tests of their own
TERMS = {'beclr': 2}  # losses of a step, where they are more than one


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    write_tiny_semantickitti(root / 'semantickitti', num_points=1500)
    (root / 'images').mkdir()
    g = np.random.default_rng(0)
    arrays = {f'X_{part}': g.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8) for part in ('train', 'test')}
    labels = {f'y_{part}': np.arange(16) % 2 for part in ('train', 'test')}
    np.savez(root / 'images' / 'cifar10_small.npz', **arrays, **labels)
    np.save(root / 'labels.npy', g.integers(0, 200, (16, 2)).astype(np.int32))
    return root


def configured(path, data, work_dir, monkeypatch, max_epochs=1):
    """The config as it is, but for its files, its workers, its length and numbers of samples and clusters."""
    monkeypatch.setenv('CLUSTERPLUG_DATA', str(data))
    config = load_config(str(path), work_dir=str(work_dir))
    for part in ('train', 'val'):
        loader = config[f'{part}_dataloader']
        loader.num_workers, loader.persistent_workers = 0, False
        if path not in IMAGES:
            dataset = loader.dataset
            dataset.data_root = str(data / 'semantickitti')
            dataset.pop('data_prefix', None)
            dataset.ann_file = f'semantickitti_infos_{part}.pkl'
    if path in IMAGES:
        config.train_dataloader.batch_size = 8
    config.train_cfg.update(max_epochs=max_epochs, val_interval=max_epochs)
    config.param_scheduler = None
    config.experiment_name = f'{path.stem}_{work_dir.name}'
    config.default_hooks.checkpoint.interval = 1
    if 'labels' in config.model:
        config.model.labels = str(data / 'labels.npy')
    if config.model.get('memory'):
        config.model.memory.update(length=16, num_clusters=2)
        config.model.num_neighbors = 2
    if 'num_samples' in config.model:
        config.model.num_samples = 16
    loss = config.model.get('loss', {})
    hooks = config.get('custom_hooks', [])
    refresh = next((hook for hook in hooks if 'Refresh' in hook.type), None)
    if 'num_samples' in loss:
        loss.num_samples = 16 if path in IMAGES else 4
        sets = len(config.model.head.num_prototypes)
        config.model.head.num_prototypes = [2] * sets
        each = dict(type='KMeans', n_clusters=2)
        refresh.estimator = [each] * sets if sets > 1 else each
    elif refresh is not None and path.parent.name != 'subspace_learners':
        number = 4 if path in IMAGES else 2
        refresh.estimator = dict(type='KMeans', n_clusters=number)
        config.train_dataloader.batch_size = number
    return config


def trained(config, resume=False):
    from mmengine.runner import Runner

    compat.apply_all()
    config.resume = resume
    runner = Runner.from_cfg(config)
    before = {name: value.detach().clone() for name, value in runner.model.backbone.named_parameters()}
    runner.train()
    moved = [name for name, value in runner.model.backbone.named_parameters() if not value.equal(before[name])]
    assert len(moved) > 0.9 * len(before)
    return runner


def check_log(runner, family):
    scalars = runner.message_hub.log_scalars
    names = [name for name in scalars if name.startswith('train/loss_')]
    assert len(names) == TERMS.get(family, 1)
    for name in names:
        assert np.isfinite(scalars[name].data[0]).all()
    assert 0 <= scalars['val/linear_probe/accuracy'].data[0][-1] <= 100
    assert 'val/knn_probe/class_mean' in scalars


@pytest.mark.slow
@pytest.mark.parametrize('path', SCANS, ids=lambda path: path.stem)
def test_scans_train_and_probe(path, data, tmp_path, monkeypatch):
    check_log(trained(configured(path, data, tmp_path, monkeypatch)), path.parent.name)


@pytest.mark.parametrize(
    'path',
    [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.parent.name in SLOW else []) for p in IMAGES],
)
def test_images_train_probe_and_resume(path, data, tmp_path, monkeypatch):
    straight = trained(configured(path, data, tmp_path / 'straight', monkeypatch, max_epochs=2))
    check_log(straight, path.parent.name)
    trained(configured(path, data, tmp_path / 'stopped', monkeypatch))
    resumed = trained(configured(path, data, tmp_path / 'stopped', monkeypatch, max_epochs=2), resume=True)
    assert resumed.epoch == straight.epoch == 2
    found, expected = resumed.model.state_dict(), straight.model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize('path', PUBLISHED, ids=lambda path: path.stem)
def test_published_recipes_build(path, tmp_path):
    from mmengine.optim import build_optim_wrapper

    from clusterplug.registry import HOOKS, MODELS, TRANSFORMS

    config = load_config(str(path), work_dir='x')
    if 'labels' in config.model:
        np.save(tmp_path / 'labels.npy', np.zeros((4, 8), dtype=np.int32))
        config.model.labels = str(tmp_path / 'labels.npy')
    if path.parent.name in ('franca', 'mlcd'):  # gigabytes
        with torch.device('meta'):
            model = MODELS.build(config.model)
    else:
        model = MODELS.build(config.model)
    size = sum(p.numel() for p in model.backbone.parameters())
    assert size == {'franca': 85_724_928, 'beclr': 11_176_512}.get(path.parent.name, 23_508_032)  # no classifiers
    optimizer = build_optim_wrapper(model, {**config.optim_wrapper, 'type': 'OptimWrapper'}).optimizer
    kinds = {'franca': 'AdamW', 'mlcd': 'AdamW', 'simlap': 'AdamW', 'beclr': 'SGD', 'gsimclr': 'SGD'}
    assert type(optimizer).__name__ == kinds.get(path.parent.name, 'Lars')
    for hook in config.get('custom_hooks', []):
        assert HOOKS.build(hook) is not None
    for transform in config.train_dataloader.dataset.pipeline[1:]:
        assert TRANSFORMS.build(transform) is not None
    if path.parent.name in ('swav', 'deepcluster'):
        assert model.head.embed_dims == 128
