# SPDX-License-Identifier: Apache-2.0
"""Whole models with weights of samples: KITTI's detectors and Cylinder3D by one step, MinkUNet by a real Runner."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')

from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from clusterplug import compat
from clusterplug.attach import WithSampleWeights
from clusterplug.cli import load_config
from clusterplug.datasets.kitti_convert import prepare_kitti
from clusterplug.registry import MODELS
from clusterplug.testing import build_tiny_runner, tiny_host_config, write_tiny_layouts, write_tiny_semantickitti
from clusterplug.testing.toy_detectors import tiny_detector_config
from clusterplug.testing.toy_kitti import write_tiny_kitti

CONFIGS = Path(__file__).resolve().parents[2] / 'configs/point_cluster'


@pytest.fixture(scope='module')
def kitti(tmp_path_factory):
    compat.apply_all()
    root = tmp_path_factory.mktemp('kitti')
    write_tiny_kitti(root, num_points=3000, radius=15.0)
    prepare_kitti(root, root, dict(train=['000000', '000001'], val=['000002', '000003']))
    return root


def losses_of(model, batch, weights, key):
    for sample, weight in zip(batch['data_samples'], weights):
        sample.set_metainfo({key: 1 - weight})
    torch.manual_seed(0)
    np.random.seed(0)
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    model.zero_grad()
    found = model(**data, mode='loss')
    found = {name: sum(each) if isinstance(each, list) else each for name, each in found.items() if 'loss' in name}
    sum(found.values()).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {name: value.detach() for name, value in found.items()}, gradient


@pytest.mark.slow
@pytest.mark.parametrize(
    'host',
    [
        'pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class',
        'second_hv_secfpn_8xb6-80e_kitti-3d-3class',
        'pv_rcnn_8xb2-80e_kitti-3d-3class',
        'point-rcnn_8xb2_kitti-3d-3class',
    ],
)
def test_detectors(kitti, tmp_path, host):
    compat.apply_all()
    init_default_scope('mmdet3d')
    config = tiny_detector_config(load_config(str(CONFIGS / f'{host}.py'), work_dir=str(tmp_path)), kitti)
    check_weights(config)


@pytest.mark.slow
def test_cylinder3d(tmp_path):
    compat.apply_all()
    init_default_scope('mmdet3d')
    root = write_tiny_layouts(tmp_path / 'data')
    path = CONFIGS / 'cylinder3d_4xb4-3x_semantickitti.py'
    check_weights(tiny_host_config(load_config(str(path), work_dir=str(tmp_path)), root))


def check_weights(config):
    torch.manual_seed(0)
    plain = MODELS.build(config.model).train()
    model = WithSampleWeights(copy.deepcopy(plain), eta=0.0, gamma=1.0).train()
    baseline = WithSampleWeights(copy.deepcopy(plain), eta=0.7, gamma=0.0).train()
    assert not model.sample_weighting.alone
    batch = next(iter(Runner.build_dataloader(config.train_dataloader)))
    key = 'sample_likelihood'
    expected, gradient = losses_of(plain, batch, [0.3, 0.6], key)
    found, other = losses_of(baseline, batch, [0.3, 0.6], key)
    assert found == expected
    assert torch.equal(gradient, other)
    (first, g0), (second, g1) = (losses_of(model, batch, weights, key) for weights in ([1.0, 0.0], [0.0, 1.0]))
    found, g = losses_of(model, batch, [0.8, 0.3], key)
    for name, value in found.items():
        torch.testing.assert_close(value, 0.8 * first[name] + 0.3 * second[name], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(first[name] + second[name], expected[name], rtol=1e-3, atol=1e-5)
    assert (g - 0.8 * g0 - 0.3 * g1).norm() < 1e-3 * g.norm()


@pytest.mark.slow
def test_a_runner_with_a_file_of_likelihoods(tmp_path):
    root = write_tiny_semantickitti(tmp_path / 'data')
    ids = [f'00/velodyne/{i:06}.bin' for i in range(20)]
    likelihood = {each: (i % 3) / 2 for i, each in enumerate(ids)}

    def wrap(model, gamma=5.0):
        return dict(
            type='clusterplug.WithSampleWeights', model=model, likelihood=likelihood, key='lidar_path', gamma=gamma
        )

    runner = build_tiny_runner(tmp_path / 'run', root, wrap=wrap, max_epochs=1)
    runner.train()
    weights = runner.model.sample_weighting.last_weights
    assert ((weights > 1 / 3 - 1e-6) & (weights <= 1)).all()
    plain = build_tiny_runner(tmp_path / 'plain', root, max_epochs=1)
    plain.train()
    assert plain.iter == runner.iter  # the epoch is as long
    assert plain.model.state_dict().keys() == runner.model.state_dict().keys()
    same = build_tiny_runner(tmp_path / 'same', root, wrap=lambda model: wrap(model, gamma=0.0), max_epochs=1)
    same.train()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, same.model.state_dict()[name]), name
    assert any(not torch.equal(v, runner.model.state_dict()[n]) for n, v in plain.model.state_dict().items())
