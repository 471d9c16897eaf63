# SPDX-License-Identifier: Apache-2.0
"""Configs of SwAV and DeepCluster-v2: they build; the small ones take steps and probe on tiny real files."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')
pytest.importorskip('timm')

from clusterplug import compat
from clusterplug.cli import load_config
from clusterplug.testing import write_tiny_semantickitti

ROOT = Path(__file__).resolve().parents[2] / 'configs'
CONFIGS = sorted([*(ROOT / 'swav').glob('*.py'), *(ROOT / 'deepcluster').glob('*.py')])
SMALL = [path for path in CONFIGS if 'in1k' not in path.name]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    write_tiny_semantickitti(root / 'semantickitti', num_points=1500)
    (root / 'images').mkdir()
    g = np.random.default_rng(0)
    arrays = {f'X_{part}': g.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8) for part in ('train', 'test')}
    labels = {f'y_{part}': np.arange(16) % 2 for part in ('train', 'test')}
    np.savez(root / 'images' / 'cifar10_small.npz', **arrays, **labels)
    return root


def configured(path, data, tmp_path, monkeypatch):
    """The config as it is, but for its files, its workers, its length and numbers of samples and clusters."""
    monkeypatch.setenv('CLUSTERPLUG_DATA', str(data))
    config = load_config(str(path), work_dir=str(tmp_path))
    for part in ('train', 'val'):
        loader = config[f'{part}_dataloader']
        loader.num_workers, loader.persistent_workers = 0, False
        if 'cifar10' not in path.name:
            dataset = loader.dataset
            dataset.data_root = str(data / 'semantickitti')
            dataset.pop('data_prefix', None)
            dataset.ann_file = f'semantickitti_infos_{part}.pkl'
    if 'cifar10' in path.name:
        config.train_dataloader.batch_size = 8
    config.train_cfg.update(max_epochs=1, val_interval=1)
    config.param_scheduler = None
    config.experiment_name = path.stem
    loss = config.model.loss
    if 'num_samples' in loss:
        loss.num_samples = 16 if 'cifar10' in path.name else 4
        sets = len(config.model.head.num_prototypes)
        config.model.head.num_prototypes = [2] * sets
        refresh = next(hook for hook in config.custom_hooks if 'Refresh' in hook.type)
        each = dict(type='KMeans', n_clusters=2)
        refresh.estimator = [each] * sets if sets > 1 else each
    return config


@pytest.mark.slow
@pytest.mark.parametrize('path', SMALL, ids=lambda path: path.stem)
def test_small_configs_train_and_probe(path, data, tmp_path, monkeypatch):
    from mmengine.runner import Runner

    compat.apply_all()
    runner = Runner.from_cfg(configured(path, data, tmp_path, monkeypatch))
    before = {name: value.detach().clone() for name, value in runner.model.backbone.named_parameters()}
    runner.train()
    moved = [name for name, value in runner.model.backbone.named_parameters() if not value.equal(before[name])]
    assert len(moved) > 0.9 * len(before)
    scalars = runner.message_hub.log_scalars
    names = [name for name in scalars if name.startswith('train/loss_')]
    assert len(names) == 1
    assert np.isfinite(scalars[names[0]].data[0]).all()
    assert 0 <= scalars['val/linear_probe/accuracy'].data[0][-1] <= 100
    assert 'val/knn_probe/class_mean' in scalars


@pytest.mark.parametrize('path', [p for p in CONFIGS if p not in SMALL], ids=lambda path: path.stem)
def test_published_recipes_build(path):
    from mmengine.optim import build_optim_wrapper

    from clusterplug.registry import HOOKS, MODELS, TRANSFORMS

    config = load_config(str(path), work_dir='x')
    model = MODELS.build(config.model)
    assert model.head.embed_dims == 128
    assert sum(p.numel() for p in model.backbone.parameters()) == 23508032  # ResNet-50 without its classifier
    optimizer = build_optim_wrapper(model, {**config.optim_wrapper, 'type': 'OptimWrapper'}).optimizer
    assert type(optimizer).__name__ == 'Lars'
    for hook in config.custom_hooks:
        assert HOOKS.build(hook) is not None
    for transform in config.train_dataloader.dataset.pipeline[1:]:
        assert TRANSFORMS.build(transform) is not None
