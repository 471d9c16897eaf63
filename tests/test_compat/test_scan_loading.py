# SPDX-License-Identifier: Apache-2.0
"""Odd scans and labels on their way into a model: unknown ids, NaN and inf, no labels, too few points."""

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')

from mmdet3d.datasets import SemanticKittiDataset
from mmdet3d.structures import LiDARPoints
from mmengine.registry import init_default_scope

from clusterplug import compat
from clusterplug.compat import _warn
from clusterplug.compat.mmdet3d.unknown_labels import map_labels
from clusterplug.datasets import semantickitti_multiscan
from clusterplug.datasets.previous_scans import AddPreviousScans
from clusterplug.datasets.semantickitti_infos import write_infos
from clusterplug.registry import TRANSFORMS
from clusterplug.testing import build_tiny_runner, write_tiny_semantickitti
from clusterplug.testing.toy_indoor import write_tiny_s3dis
from clusterplug.testing.toy_runner import LABEL_MAPPING, tiny_config

READ_POINTS = dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=4, use_dim=4)


@pytest.fixture(autouse=True)
def patched(monkeypatch):
    compat.apply_all()
    init_default_scope('mmdet3d')
    monkeypatch.setattr(_warn, '_SAID', set())


@pytest.fixture
def root(tmp_path):
    return write_tiny_semantickitti(tmp_path / 'data', num_scans=2, num_points=60)


def dataset(root, split='train', kind=SemanticKittiDataset, **options):
    config = dict(tiny_config(root / 'work', root)[f'{split}_dataloader'].dataset)
    config.pop('type')
    return kind(**{**config, **options})


def files(root, scan='00/000000'):
    folder, _, name = scan.partition('/')
    return (
        root / f'sequences/{folder}/velodyne/{name}.bin',
        root / f'sequences/{folder}/labels/{name}.label',
    )


def test_map_labels_by_hand():
    table, known = np.array([19, 0, 0, 3]), np.array([True, True, False, True])
    classes, unknown = map_labels(np.array([0, 1, 2, 3, 4, 70000, -1, 2]), table, known, 19)
    assert classes.tolist() == [19, 0, 19, 3, 19, 19, 19, 19]
    assert unknown == {-1: 1, 2: 2, 4: 1, 70000: 1}
    assert map_labels(np.array([2, 9]), table, None, 7)[0].tolist() == [0, 7]
    assert map_labels(np.array([], np.uint32), table, known, 19)[0].tolist() == []


@pytest.mark.parametrize('split', ['train', 'val'])
def test_unknown_ids_are_ignored_with_one_warning(root, split):
    scan = '00/000000' if split == 'train' else '08/000000'
    raw = np.full(60, 10, '<u4')
    raw[:5], raw[5:9], raw[9] = 2, 300 | 7 << 16, 65535
    raw.tofile(files(root, scan)[1])
    data = dataset(root, split)
    with pytest.warns(UserWarning, match=r'2 \(5 points\), 300 \(4 points\), 65535 \(1 points\)') as caught:
        sample, again = data[0]['data_samples'], data[0]['data_samples']
    assert len(caught) == 1
    expected = [19] * 10 + [0] * 50
    assert sample.gt_pts_seg.pts_semantic_mask.tolist() == expected
    assert again.gt_pts_seg.pts_semantic_mask.tolist() == expected
    if split == 'val':
        assert sample.eval_ann_info['pts_semantic_mask'].tolist() == expected


def test_unknown_ids_of_the_multi_scan_task_and_another_ignore_index(root):
    raw = np.arange(60).astype('<u4')
    raw.tofile(files(root)[1])
    mapping = {0: 255, 10: 0, 11: 24, 252: 19}
    kind = semantickitti_multiscan.SemanticKittiMultiScanDataset
    names = dict(classes=kind.METAINFO['classes'], seg_label_mapping=mapping, max_label=259)
    data = dataset(root, kind=kind, metainfo=names, ignore_index=255)
    with pytest.warns(UserWarning, match='labels that seg_label_mapping'):
        labels = data[0]['data_samples'].gt_pts_seg.pts_semantic_mask
    assert labels[:10].tolist() == [255] * 10
    assert labels[10:12].tolist() == [0, 24]
    assert (labels[12:] == 255).all()


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('column', [0, 2, 3])
def test_points_that_are_not_finite_leave_with_their_labels(root, value, column):
    points, labels = files(root)
    table = np.fromfile(points, '<f4').reshape(-1, 4)
    table[[3, 59], column] = value
    table.tofile(points)
    raw = np.where(np.arange(60) == 4, 40, 10).astype('<u4')
    raw[[3, 59]] = 70
    raw.tofile(labels)
    with pytest.warns(UserWarning, match='2 of 60 points with NaN or inf'):
        sample = dataset(root)[0]
    np.testing.assert_array_equal(sample['inputs']['points'].numpy(), np.delete(table, [3, 59], 0))
    assert sample['data_samples'].gt_pts_seg.pts_semantic_mask.tolist() == [0] * 3 + [8] + [0] * 54
    assert np.flatnonzero(~sample['data_samples'].finite_points).tolist() == [3, 59]
    three = dataset(root, pipeline=[{**READ_POINTS, 'use_dim': 3}, *dataset(root).pipeline.transforms[1:]])
    assert len(three[0]['inputs']['points']) == (60 if column == 3 else 58)


def test_a_scan_without_a_finite_point_is_named(root):
    np.full((60, 4), np.nan, '<f4').tofile(files(root)[0])
    with pytest.raises(ValueError, match=r'000000\.bin has 60 points, all with NaN'):
        dataset(root)[0]


def test_heights_are_those_of_the_finite_points(root):
    table = np.zeros((10, 4), '<f4')
    table[:, 2] = np.arange(10)
    table[9] = np.nan
    table.tofile(files(root)[0])
    load = TRANSFORMS.build({**READ_POINTS, 'use_dim': 3, 'shift_height': True})
    points = load(dict(lidar_points=dict(lidar_path=str(files(root)[0]))))['points'].tensor
    assert points.shape == (9, 4)
    assert points.isfinite().all()


def test_instances_of_rooms_stay_aligned(tmp_path):
    root = write_tiny_s3dis(tmp_path, num_points=200)
    (points,) = sorted((root / 'points').glob('*.bin'))[:1]
    table = np.fromfile(points, '<f4').reshape(-1, 6)
    table[7, 1] = np.nan
    table.tofile(points)
    load = TRANSFORMS.build({**READ_POINTS, 'coord_type': 'DEPTH', 'load_dim': 6, 'use_dim': [0, 1, 2, 3, 4, 5]})
    masks = TRANSFORMS.build(
        dict(type='LoadAnnotations3D', with_bbox_3d=False, with_label_3d=False, with_mask_3d=True, with_seg_3d=True)
    )
    semantic = root / 'semantic_mask' / points.name
    instances = tmp_path / 'instances.bin'
    np.arange(200).astype(np.int64).tofile(instances)
    results = dict(
        lidar_points=dict(lidar_path=str(points)), pts_semantic_mask_path=str(semantic),
        pts_instance_mask_path=str(instances),
    )  # fmt: skip
    results = masks(load(results))
    assert len(results['points']) == len(results['pts_semantic_mask']) == 199
    assert results['pts_instance_mask'].tolist() == [i for i in range(200) if i != 7]
    np.arange(10).astype(np.int64).tofile(instances)
    with pytest.raises(ValueError, match=r'instances\.bin has 80 bytes = 10 labels'):
        masks(load(dict(results, lidar_points=dict(lidar_path=str(points)))))


def test_earlier_scans_lose_theirs(root):
    points, _ = files(root)
    table = np.fromfile(points, '<f4').reshape(-1, 4)
    table[:7, 0] = np.inf
    table.tofile(points)
    np.arange(60).astype('<u4').tofile(files(root)[1])
    current = np.fromfile(files(root, '00/000001')[0], '<f4').reshape(-1, 4)
    results = dict(
        lidar_points=dict(lidar_path=str(files(root, '00/000001')[0])),
        pts_semantic_mask_path=str(files(root, '00/000001')[1]),
        points=LiDARPoints(torch.from_numpy(current), points_dim=4), pts_semantic_mask=np.full(60, 10),
    )  # fmt: skip
    out = AddPreviousScans(2)(results)
    assert out['points'].tensor.isfinite().all()
    assert out['pts_semantic_mask'].tolist() == [10] * 60 + list(range(7, 60))
    assert out['current_points'] == 60
    bare = dict(results, points=LiDARPoints(torch.from_numpy(current), points_dim=4), pts_semantic_mask=np.full(60, 10))
    bare |= dict(seg_label_mapping=np.array([4, 5]), unknown_labels=dict(known=None, ignore=25))
    with pytest.raises(ValueError, match=r'raw label 0, which labels_map makes class 4; map 0 to ignore_index \(25\)'):
        AddPreviousScans(2, label_previous=False)(bare)


def test_a_test_split_without_labels_runs_to_its_end(root, tmp_path):
    write_infos(root / 'semantickitti_infos_test.pkl', root, ['08/000000', '08/000001'], with_labels=False)
    runner = build_tiny_runner(
        tmp_path / 'w', root, test_dataloader__dataset__ann_file='semantickitti_infos_test.pkl'
    )  # fmt: skip
    with pytest.warns(UserWarning, match='2 of 2 scans have no labels and were not evaluated'):
        assert runner.test() == {}
    with pytest.raises(ValueError, match=r'000000\.bin has no labels in its info file, which training needs'):
        dataset(root, ann_file='semantickitti_infos_test.pkl')[0]


def test_options_of_the_metric_that_do_nothing_are_refused():
    from mmdet3d.evaluation import SegMetric

    for name in ('submission_prefix', 'pklfile_prefix'):
        with pytest.raises(ValueError, match=f'{name} of SegMetric.*SemanticKittiSubmission'):
            SegMetric(**{name: 'x'})
    SegMetric()


@pytest.mark.parametrize('count', [0, 1])
def test_scans_of_which_nothing_is_left_are_named(root, count):
    crop = dict(type='PointsRangeFilter', point_cloud_range=[500, 500, -9, 600, 600, 9])
    table = np.zeros((60, 4), '<f4')
    table[:count, :2] = 550
    table.tofile(files(root)[0])
    pipeline = dataset(root).pipeline.transforms
    with pytest.raises(ValueError, match=rf'000000\.bin has {count} points? after the pipeline'):
        dataset(root, pipeline=[*pipeline[:-1], crop, pipeline[-1]])[0]


def test_a_missing_file_is_said_once(root):
    multi = semantickitti_multiscan.SemanticKittiMultiScanDataset
    mapping = dict(classes=multi.METAINFO['classes'], seg_label_mapping=LABEL_MAPPING, max_label=259)
    steps = dataset(root).pipeline.transforms
    data = multi(
        data_root=str(root), ann_file='semantickitti_infos_train.pkl', metainfo=mapping, ignore_index=25,
        pipeline=[*steps[:2], AddPreviousScans(2), *steps[2:]],
    )  # fmt: skip
    assert data[1]['inputs']['points'].shape == (120, 5)
    (root / 'sequences/00/poses.txt').unlink()
    from clusterplug.datasets.previous_scans import _poses_of

    _poses_of.cache_clear()
    with pytest.raises(FileNotFoundError) as caught:
        data[1]
    assert 'poses.txt is missing' in str(caught.value)
    assert 'data_root' not in str(caught.value)
    files(root, '00/000001')[0].unlink()
    with pytest.raises(FileNotFoundError, match=r'000001\.bin does not exist, but scan 1 of the info file.*data_root='):
        data[1]
