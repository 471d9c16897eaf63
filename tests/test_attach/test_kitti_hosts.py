# SPDX-License-Identifier: Apache-2.0
"""PointPillars, SECOND, PV-RCNN and PointRCNN with the clustering loss, by a real Runner on KITTI files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')

from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from clusterplug import compat
from clusterplug.cli import load_config
from clusterplug.datasets.kitti_convert import prepare_kitti
from clusterplug.registry import MODELS
from clusterplug.testing.toy_detectors import tiny_detector_config
from clusterplug.testing.toy_kitti import write_tiny_kitti

CONFIGS = Path(__file__).resolve().parents[2] / 'configs/point_cluster'
HOSTS = {
    'pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class': ('voxel_encoder', 64),
    'second_hv_secfpn_8xb6-80e_kitti-3d-3class': ('middle_encoder.conv_out', 128),
    'pv_rcnn_8xb2-80e_kitti-3d-3class': ('roi_head.semantic_head.seg_cls_layer:input', 640),
    'point-rcnn_8xb2_kitti-3d-3class': ('rpn_head.cls_layers:input', 128),
}


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    compat.apply_all()
    root = tmp_path_factory.mktemp('kitti')
    write_tiny_kitti(root, num_points=3000, radius=15.0)
    prepare_kitti(root, root, dict(train=['000000', '000001'], val=['000002', '000003']))
    return root


@pytest.fixture(scope='module')
def real(tmp_path_factory):
    if not os.environ.get('CLUSTERPLUG_DATA'):
        pytest.skip('CLUSTERPLUG_DATA is not set: no real frames')
    compat.apply_all()
    root = tmp_path_factory.mktemp('kitti-real')
    frames = Path(os.environ['CLUSTERPLUG_DATA']) / 'kitti'
    prepare_kitti(frames, root, dict(train=['000000', '000003'], val=['000008']))
    return root


def config_of(host, data_root, work_dir, clustered=True):
    compat.apply_all()
    init_default_scope('mmdet3d')
    name = ('point-cluster_' if clustered else '') + host
    config = tiny_detector_config(load_config(str(CONFIGS / f'{name}.py'), work_dir=str(work_dir)), data_root)
    config.experiment_name = f'{name}_{Path(work_dir).name}'
    return config


def train(config):
    runner = Runner.from_cfg(config)
    before = {name: value.detach().clone() for name, value in runner.model.named_parameters()}
    runner.train()
    moved = {name for name, value in runner.model.named_parameters() if not value.equal(before[name])}
    return runner, moved


def check(runner, moved, tap):
    branch = runner.model.clustering
    assert branch.embedding.path == tap[0]
    assert (branch.loss.num_classes, branch.loss.in_channels) == (3, tap[1])
    assert int(branch.loss.memory.step) == 2
    assert branch.loss.memory.num_seeded.any()
    assert any(name.startswith('clustering.loss.projector') for name in moved)
    scalars = runner.message_hub.log_scalars
    assert all(np.isfinite(s.data[0]).all() for name, s in scalars.items() if 'loss' in name)
    assert scalars['train/loss_cluster_center'].data[0][-1] > 0
    assert any('pred_instances_3d/KITTI/Overall_3D_AP40_moderate' in name for name in scalars)


@pytest.mark.slow
def test_pointpillars(tiny, tmp_path):
    host = 'pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class'
    runner, moved = train(config_of(host, tiny, tmp_path))
    check(runner, moved, HOSTS[host])
    assert any(name.startswith('voxel_encoder') for name in moved)


@pytest.mark.slow
@pytest.mark.parametrize('host', [name for name in HOSTS if not name.startswith('pointpillars')])
def test_host(host, tiny, tmp_path):
    runner, moved = train(config_of(host, tiny, tmp_path))
    check(runner, moved, HOSTS[host])


@pytest.mark.slow
@pytest.mark.parametrize('host', HOSTS)
def test_host_on_real_frames(host, real, tmp_path):
    runner, moved = train(config_of(host, real, tmp_path))
    check(runner, moved, HOSTS[host])


def test_predictions_and_keys_stay_those_of_the_detector(tiny, tmp_path):
    host = 'pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class'
    plain, ours = (config_of(host, tiny, tmp_path, clustered) for clustered in (False, True))
    torch.manual_seed(0)
    bare = MODELS.build(plain.model)
    torch.manual_seed(0)
    wrapped = MODELS.build(ours.model)
    state = {name: value for name, value in wrapped.state_dict().items() if not name.startswith('clustering.')}
    assert list(state) == list(bare.state_dict())
    bare.load_state_dict(state)
    loader = Runner.build_dataloader(ours.val_dataloader)
    data = next(iter(loader))
    found = []
    for model in (bare.eval(), wrapped.eval()):
        with torch.no_grad():
            found.append(model.test_step(data)[0].pred_instances_3d)
    assert torch.equal(found[0].scores_3d, found[1].scores_3d)
    assert torch.equal(found[0].bboxes_3d.tensor, found[1].bboxes_3d.tensor)
    assert len(found[0].scores_3d) > 0


def test_background_as_a_class_with_its_own_number_of_clusters(tiny, tmp_path):
    config = config_of('pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class', tiny, tmp_path)
    config.model.labels = 'boxes+background'
    config.model.loss.num_clusters = {3: 9, 'default': 4}
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    assert model.clustering.loss.num_classes == 4
    data = next(iter(Runner.build_dataloader(config.train_dataloader)))
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    model.parse_losses(losses)[0].backward()
    seeded = model.clustering.loss.memory.num_seeded.tolist()
    assert seeded[3] > 0
    assert model.clustering.loss.memory.num_clusters == 9
    check_regions(model, data)


def check_regions(model, data):
    """Objects are regions of their own or connected cells; the background is connected cells at any rate."""
    seen = []
    handle = model.clustering.loss.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    for regions in ('instance', 'cell'):
        model.clustering.loss.regions = regions
        model(**model.data_preprocessor(data, True), mode='loss')
    handle.remove()
    for _, labels, *_, regions in seen:
        assert (regions >= 0).all()
        assert (labels[regions.sort(stable=True).indices].diff()[regions.sort().values.diff() == 0] == 0).all()
    labels, by_object, by_cell = seen[0][1], seen[0][4], seen[1][4]
    assert torch.equal(by_object[labels == 3], by_cell[labels == 3])
    assert len(by_cell[labels == 3].unique()) < (labels == 3).sum() / 2
    boxes = sum(len(sample.gt_instances_3d.labels_3d) for sample in data['data_samples'])
    assert 0 < len(by_object[labels < 3].unique()) <= boxes
    assert len(by_cell[labels < 3].unique()) >= len(by_object[labels < 3].unique())


def test_a_segmentation_label_source_on_a_detector_is_refused(tiny, tmp_path):
    config = config_of('pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class', tiny, tmp_path)
    config.model.labels = 'point'
    config.model.loss.num_classes = 3
    model = MODELS.build(config.model)
    data = model.data_preprocessor(next(iter(Runner.build_dataloader(config.train_dataloader))), True)
    with pytest.raises(ValueError, match='cannot be aligned with no labels'):
        model(**data, mode='loss')
