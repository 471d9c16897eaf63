# SPDX-License-Identifier: Apache-2.0
"""Ids of objects on their way from the label file into the loss, by the config of the LiDAR city."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('open3d')
pytest.importorskip('mmdet3d')

from mmdet3d.utils import register_all_modules

from clusterplug import compat
from clusterplug.cli import load_config
from clusterplug.datasets.load_instances import LoadInstances
from clusterplug.registry import DATASETS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'point_cluster'


def test_the_city_config_gives_the_loss_the_objects_of_the_file(small, tmp_path):
    compat.apply_all()
    register_all_modules()
    config = load_config(
        str(CONFIGS / 'point-cluster_minkunet18_w8_spconv_1xb1-5e_lidar-city.py'),
        {'train_dataloader.dataset.data_root': str(small)},
        str(tmp_path),
    )
    assert config.model.loss.regions == 'instance'
    sample = DATASETS.build(config.train_dataloader.dataset)[0]['data_samples']
    raw = np.fromfile(sample.lidar_path.replace('velodyne', 'labels').replace('.bin', '.label'), '<u4')
    found = np.asarray(sample.gt_pts_seg.pts_instance_mask)
    assert found.max() > 0, 'the street has objects'
    np.testing.assert_array_equal(found, raw >> 16)


def test_points_that_were_dropped_have_no_id(tmp_path):
    path = tmp_path / 'scan.label'
    (np.array([3, 0, 7], '<u4') << 16 | 10).tofile(path)
    results = dict(points=np.zeros((2, 4)), pts_semantic_mask_path=path, finite_points=np.array([True, False, True]))
    assert LoadInstances().transform(results)['pts_instance_mask'].tolist() == [3, 7]


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match='behind LoadAnnotations3D'):
        LoadInstances().transform(dict(points=np.zeros((2, 4))))
    path = tmp_path / 'scan.label'
    np.zeros(3, '<u4').tofile(path)
    with pytest.raises(ValueError, match='3 labels, but the scan has 2 points'):
        LoadInstances().transform(dict(points=np.zeros((2, 4)), pts_semantic_mask_path=path))
