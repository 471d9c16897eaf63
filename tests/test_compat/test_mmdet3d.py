# SPDX-License-Identifier: Apache-2.0
"""Workarounds for mmdet3d: voxels on the CPU, broken files named, pictures without a display."""

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d')

from mmdet3d.models import Det3DDataPreprocessor
from mmdet3d.structures import Det3DDataSample, PointData

from clusterplug import compat
from clusterplug.compat.mmdet3d import minkunet_voxelize
from clusterplug.testing import write_tiny_semantickitti
from clusterplug.testing.toy_runner import tiny_config
from clusterplug.visualization.birds_eye import birds_eye


@pytest.fixture(autouse=True)
def patched():
    compat.apply_all()


@pytest.fixture
def data_root(tmp_path):
    return write_tiny_semantickitti(tmp_path / 'data', num_scans=2, num_points=500)


def batch(num_points=400):
    generator = torch.Generator().manual_seed(0)
    points, samples = [], []
    for _ in range(2):
        sample = Det3DDataSample()
        sample.gt_pts_seg = PointData(pts_semantic_mask=torch.randint(0, 5, (num_points,), generator=generator))
        points.append(torch.rand(num_points, 4, generator=generator) * 4 - 2)
        samples.append(sample)
    return points, samples


@pytest.mark.parametrize('batch_first', [True, False])
@pytest.mark.parametrize('max_voxels', [None, 50])
def test_voxels_are_those_of_mmdet3d(monkeypatch, batch_first, max_voxels):
    layer = dict(max_num_points=-1, point_cloud_range=[-9, -9, -9, 9, 9, 9], voxel_size=[0.5] * 3, max_voxels=(-1, -1))
    preprocessor = Det3DDataPreprocessor(
        voxel=True, voxel_type='minkunet', voxel_layer=layer, batch_first=batch_first, max_voxels=max_voxels
    ).train()
    results = []
    for ours in (True, False):
        if not ours:  # mmdet3d's own code, with a .cuda() that stays on the CPU
            minkunet_voxelize.WORKAROUND.remove()
            monkeypatch.setattr(torch.Tensor, 'cuda', lambda tensor: tensor)
        np.random.seed(0)
        points, samples = batch()
        results.append((preprocessor.voxelize(points, samples), samples))
    (voxels, samples), (wanted, wanted_samples) = results
    assert set(voxels) == set(wanted)
    for key in wanted:
        torch.testing.assert_close(voxels[key], wanted[key], rtol=0, atol=0)
    for sample, other in zip(samples, wanted_samples):
        assert torch.equal(sample.batch_idx, other.batch_idx)
        assert torch.equal(sample.point2voxel_map, other.point2voxel_map)
        assert torch.equal(sample.gt_pts_seg.voxel_semantic_mask, other.gt_pts_seg.voxel_semantic_mask)


@pytest.mark.skipif(torch.cuda.is_available(), reason='.cuda() works here')
def test_needed_because_mmdet3d_moves_voxels_to_cuda():
    minkunet_voxelize.WORKAROUND.remove()
    preprocessor = Det3DDataPreprocessor(
        voxel=True,
        voxel_type='minkunet',
        voxel_layer=dict(max_num_points=-1, point_cloud_range=[0] * 6, voxel_size=[0.5] * 3, max_voxels=(-1, -1)),
    )
    with pytest.raises((RuntimeError, AssertionError)):
        preprocessor.voxelize(*batch())


def dataset(data_root, split='train'):
    from mmdet3d.registry import DATASETS
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet3d')
    return DATASETS.build(tiny_config(data_root, data_root)[f'{split}_dataloader'].dataset)


def cut(path, num_bytes):
    path.write_bytes(path.read_bytes()[:num_bytes])


@pytest.mark.parametrize('num_bytes', [7999, 7996, 0])
def test_a_truncated_point_file_is_named_with_its_bytes(data_root, num_bytes):
    path = data_root / 'sequences/00/velodyne/000001.bin'
    cut(path, num_bytes)
    with pytest.raises(ValueError, match=rf'000001\.bin has {num_bytes} bytes, which is not a multiple of 16'):
        dataset(data_root)[1]


@pytest.mark.parametrize(('num_bytes', 'words'), [(1998, 'not a whole number of labels'), (1996, '499 labels, but')])
@pytest.mark.parametrize('split', ['train', 'val'])
def test_a_truncated_label_file_is_named_with_its_bytes(data_root, num_bytes, words, split):
    sequence = {'train': '00', 'val': '08'}[split]
    cut(data_root / f'sequences/{sequence}/labels/000001.label', num_bytes)
    with pytest.raises(ValueError, match=rf'{sequence}/labels/000001\.label has {num_bytes} bytes.*{words}'):
        dataset(data_root, split)[1]


@pytest.mark.parametrize('name', ['velodyne/000001.bin', 'labels/000001.label'])
def test_an_info_file_that_points_nowhere_is_named(data_root, name):
    (data_root / 'sequences/00' / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf'{name} does not exist.*infos_train\.pkl needs it'):
        dataset(data_root)[1]


def test_a_missing_info_file_comes_with_the_tool_that_writes_it(data_root):
    (data_root / 'semantickitti_infos_train.pkl').unlink()
    with pytest.raises(FileNotFoundError, match=r'infos_train\.pkl does not exist.*prepare_semantickitti'):
        dataset(data_root)


def test_needed_because_mmdet3d_reports_a_shape_or_nothing(data_root):
    compat.remove_all()
    cut(data_root / 'sequences/00/velodyne/000001.bin', 7996)
    labels = data_root / 'sequences/00/labels/000000.label'
    labels.write_bytes(labels.read_bytes() + b'\0' * 4)
    broken = dataset(data_root)
    with pytest.raises(ValueError, match='cannot reshape'):
        broken[1]
    assert len(broken[0]['data_samples'].gt_pts_seg.pts_semantic_mask) == 501  # one label too many, not a word


def test_birds_eye_shows_the_highest_point_in_its_place():
    points = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [9.0, 0.0, 0.0]])
    colors = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12], [13, 14, 15]])
    image = birds_eye(points, colors, size=21, radius=1.0)
    assert image[10, 10].tolist() == [1, 2, 3]
    assert image[0, 10].tolist() == [7, 8, 9]  # x is up
    assert image[10, 0].tolist() == [10, 11, 12]  # y is to the left
    assert not (image == 13).any()
    assert birds_eye(np.zeros((0, 3)), np.zeros((0, 3)), size=5).shape == (5, 5, 3)
