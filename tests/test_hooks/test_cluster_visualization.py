# SPDX-License-Identifier: Apache-2.0
"""Pictures while a model is trained."""

import pytest
import torch

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')
pytest.importorskip('matplotlib')

from clusterplug.hooks import ClusterVisualizationHook
from clusterplug.testing import build_tiny_runner, write_tiny_semantickitti


def _train(folder, data, hooks):
    loss = dict(type='clusterplug.PointClusterLoss', num_clusters=3, embed_dims=8, queue_len=4)
    wrap = lambda model: dict(type='clusterplug.WithClustering', model=model, loss=loss)  # noqa: E731
    runner = build_tiny_runner(folder, data, wrap=wrap, hooks=hooks)
    runner.train()
    return runner


def test_files_and_a_training_that_does_not_notice(tmp_path):
    data = write_tiny_semantickitti(tmp_path / 'data')
    hook = dict(type='clusterplug.ClusterVisualizationHook', stats_interval=1)
    drawn = _train(tmp_path / 'drawn', data, [hook])
    (folder,) = (tmp_path / 'drawn').glob('*/subclasses')
    names = {file.name for file in folder.iterdir()}
    last = f'epoch_{drawn.epoch}'
    assert {'drift.png', f'{last}_subclass_sizes.png', f'{last}_centers.png', f'{last}_scan_0.png'} <= names
    page = (folder / f'{last}_scan_0.html').read_text()
    assert 'subclasses' in page
    assert 'road' in page
    assert all(file.stat().st_size > 500 for file in folder.iterdir())
    plain = _train(tmp_path / 'plain', data, [])
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(drawn.model.state_dict()[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize('options', [dict(interval=0), dict(stats_interval=-1), dict(scans=-1), dict(scans=1.5)])
def test_bad_numbers(options):
    with pytest.raises(ValueError, match=f'{next(iter(options))} must be an int'):
        ClusterVisualizationHook(**options)


def test_no_loss_to_look_at(tmp_path):
    data = write_tiny_semantickitti(tmp_path / 'data')
    runner = build_tiny_runner(tmp_path / 'w', data, hooks=[dict(type='clusterplug.ClusterVisualizationHook')])
    with pytest.raises(ValueError, match='ClusterVisualizationHook found no PointClusterLoss'):
        runner.train()


def test_a_picture_that_fails_does_not_end_the_training(tmp_path, monkeypatch):
    from clusterplug.visualization import subclass_views

    def full(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(subclass_views, 'save_memory_views', full)
    data = write_tiny_semantickitti(tmp_path / 'data')
    runner = _train(tmp_path / 'w', data, [dict(type='clusterplug.ClusterVisualizationHook')])
    assert runner.epoch == runner.max_epochs


def test_random_numbers_are_put_back():
    import random

    import numpy as np

    from clusterplug.hooks.cluster_visualization import _random_numbers_kept

    draw = lambda: (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: E731
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with pytest.raises(ZeroDivisionError), _random_numbers_kept():
        draw()[0] / 0
    assert draw() == expected


def test_scans_that_cannot_be_drawn_are_refused_before_the_training(tmp_path, monkeypatch):
    from clusterplug import attach as segmentors

    def refuse(model):
        raise ValueError(f'{type(model).__name__} is a detector')

    monkeypatch.setattr(segmentors, 'check_predictable', refuse)
    data = write_tiny_semantickitti(tmp_path / 'data')
    with pytest.raises(ValueError, match='cannot draw 2 scans: MinkUNet is a detector; set scans=0'):
        _train(tmp_path / 'a', data, [dict(type='clusterplug.ClusterVisualizationHook', scans=2)])
    assert not list((tmp_path / 'a').glob('*.pth'))
    _train(tmp_path / 'b', data, [dict(type='clusterplug.ClusterVisualizationHook')])
    (folder,) = (tmp_path / 'b').glob('*/subclasses')
    assert not list(folder.glob('*scan*'))
    assert list(folder.glob('*centers.png'))
