# SPDX-License-Identifier: Apache-2.0
"""Subclasses of the points of every segmentation host; detectors are refused by name; patches and coarse grids."""

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')
pytest.importorskip('spconv')

from mmdet3d.structures import PointData
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner

from clusterplug import compat
from clusterplug.attach import check_predictable, predict_subclasses, subclass_prediction, true_classes
from clusterplug.attach.taps import Rows
from clusterplug.cli import load_config
from clusterplug.testing import tiny_host_config, write_tiny_layouts

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'point_cluster'
FAST = ('spvcnn_w32_spconv_8xb2-amp-15e_semantickitti', 'pointnet2_ssg_2xb16-cosine-50e_s3dis-seg',
        'cylinder3d_4xb4-3x_semantickitti')  # fmt: skip
SLOW = ('minkunet34v2_w32_spconv_8xb2-amp-laser-polar-mix-3x_semantickitti', 'paconv_ssg_8xb8-cosine-150e_s3dis-seg',
        'dgcnn_4xb32-cosine-100e_s3dis-seg_test-area5', 'pointnet2_msg_2xb16-cosine-80e_s3dis-seg')  # fmt: skip
HOSTS = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return write_tiny_layouts(tmp_path_factory.mktemp('data'))


@pytest.fixture(autouse=True)
def patched():
    compat.apply_all()


def built(name, root, work_dir, **options):
    config = load_config(str(CONFIGS / f'point-cluster_{name}.py'), work_dir=str(work_dir))
    config.experiment_name = f'{name}_{work_dir.name}'
    config.merge_from_dict(options)
    runner = Runner.from_cfg(tiny_host_config(config, root))
    data = pseudo_collate([runner.build_dataloader(config.test_dataloader).dataset[0]])
    return runner.model, data


@pytest.mark.parametrize('name', HOSTS)
def test_every_point_of_every_host(name, root, tmp_path):
    model, data = built(name, root, tmp_path)
    memory = model.clustering.loss.memory
    memory.num_seeded.fill_(memory.num_clusters)
    memory.unused.fill_(False)
    memory.centers.copy_(torch.nn.functional.normalize(torch.randn_like(memory.centers), dim=-1))
    frozen = next(module for module in model.train().modules() if isinstance(module, torch.nn.BatchNorm1d))
    frozen.eval()
    torch.manual_seed(0)  # rooms are cut into patches at random
    np.random.seed(0)
    (scan,) = predict_subclasses(model, copy.deepcopy(data))
    count = len(data['inputs']['points'][0])
    assert len(scan.points) == len(scan.predictions) == len(scan.subclasses) == len(scan.features) == count
    assert scan.features.isfinite().all()
    known = scan.predictions < memory.num_classes  # Cylinder3D has one more output
    assert torch.equal((scan.subclasses >= 0) & (scan.subclasses < memory.num_clusters), known)
    assert model.training
    assert not frozen.training
    assert '_sliding_patch_generation' not in vars(model)
    torch.manual_seed(0)
    np.random.seed(0)
    expected = model.eval().test_step(copy.deepcopy(data))[0].pred_pts_seg.pts_semantic_mask
    assert torch.equal(scan.predictions, expected)
    # the feature goes with its point: the classifier's own layer on it gives the prediction of every voxel
    head = getattr(model.decode_head, 'classifier', None) or model.decode_head.conv_seg
    if model.clustering.embedding.path == 'decode_head.conv_seg:input' and isinstance(head, torch.nn.Linear):
        assert torch.equal(head(scan.features).argmax(1), scan.predictions)
    truth = true_classes(data['data_samples'][0])
    (within,) = predict_subclasses(model, copy.deepcopy(data), use_labels=True)
    assert torch.equal(within.classes, truth.long())
    assert torch.equal(within.subclasses >= 0, truth < memory.num_classes)
    assert len(within.subclasses.unique()) > 1


def test_the_feature_of_a_point_is_the_mean_over_its_patches():
    patches = subclass_prediction.Patches(torch.nn.Identity(), 'x')
    patches.rows = [torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]]), torch.tensor([[[2.0, 2.0]]])]  # (B, C, N)
    patches.indices = [torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0])]
    first, second = patches.features([3, 2])
    assert first.flatten().tolist() == [1.0, 4.0, 7.0]
    assert second.flatten().tolist() == [2.0, 2.0]
    patches.indices = []
    with pytest.raises(ValueError, match=r"the layer 'x' has 6 rows for 5 points in 2 scans"):
        patches.features([3, 2])
    assert [each.flatten().tolist() for each in patches.features([4, 2])] == [[1.0, 3.0, 5.0, 7.0], [2.0, 2.0]]


def test_a_voxel_that_the_coarse_grid_dropped_has_no_feature():
    coords = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [0, 3, 3, 3]], dtype=torch.int32)
    rows = Rows(torch.tensor([[1.0, 2.0]]), torch.tensor([[0, 0, 0, 0]], dtype=torch.int32), (2, 2, 2))
    branch = SimpleNamespace(embedding=SimpleNamespace(path='x'), grid=(4, 4, 4))
    sample = SimpleNamespace(point2voxel_map=torch.tensor([2, 0, 1]))
    (features,) = subclass_prediction.features_of_voxels(rows, dict(coors=coords), [sample], branch)
    assert features[0].isnan().all()
    assert features[1:].tolist() == [[1.0, 2.0], [1.0, 2.0]]


def test_what_cannot_be_predicted_is_refused_by_name(root, tmp_path):
    with pytest.raises(ValueError, match='Linear has no clustering loss'):
        check_predictable(torch.nn.Linear(2, 2))
    detector = torch.nn.Linear(2, 2)
    detector.clustering = torch.nn.Module()
    detector.clustering.boxes = object()
    with pytest.raises(ValueError, match=r'Linear is a detector: it predicts boxes.*draw_boxes\.py'):
        predict_subclasses(detector, {})
    model, data = built(FAST[0], root, tmp_path)
    data['data_samples'][0].gt_pts_seg, data['data_samples'][0].eval_ann_info = PointData(), None
    with pytest.raises(ValueError, match='this scan has no labels'):
        predict_subclasses(model, data, use_labels=True)
