# SPDX-License-Identifier: Apache-2.0
"""Several SemanticKITTI scans at once: poses, ages, labels, 25 classes, and real consecutive scans that meet."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')

from mmdet3d.structures import LiDARPoints
from mmengine.registry import init_default_scope

from clusterplug import compat
from clusterplug.cli import load_config
from clusterplug.datasets.previous_scans import AddPreviousScans
from clusterplug.datasets.scan_poses import read_poses
from clusterplug.datasets.semantickitti_infos import write_infos
from clusterplug.registry import DATASETS, TRANSFORMS
from clusterplug.testing import write_tiny_semantickitti

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/point_cluster/minkunet18_w16_spconv_8xb2-amp-15e_semantickitti-multiscan.py'
TO_CAMERA = np.array([[0.0, -1, 0, 0.1], [0, 0, -1, 0.2], [1, 0, 0, 0.3], [0, 0, 0, 1]])


def pose(angle, x, y):
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:2, 3] = x, y
    return matrix


LASER = [pose(0.0, 0, 0), pose(0.1, 1, 0.2), pose(0.3, 2.1, 0.5), pose(0.2, 3, 1)]


def text(matrices):
    return ''.join(' '.join(f'{v:.12e}' for v in m[:3].ravel()) + '\n' for m in matrices)


@pytest.fixture
def sequence(tmp_path):
    """Four scans of the same 50 landmarks, each seen from where the laser stood; raw class = 10 + 241 * moving."""
    folder = tmp_path / 'sequences/00'
    for name in ('velodyne', 'labels'):
        (folder / name).mkdir(parents=True)
    world = np.random.default_rng(0).uniform(-9, 9, (50, 3))
    for k, laser in enumerate(LASER):
        seen = (world - laser[:3, 3]) @ laser[:3, :3]
        points = np.append(seen, np.full((50, 1), 0.1 * k), 1)
        points.astype('<f4').tofile(folder / f'velodyne/{k:06d}.bin')
        labels = np.where(np.arange(50) < 5, 252, 40 + k).astype('<u4') | (7 << 16)
        labels.tofile(folder / f'labels/{k:06d}.label')
    (folder / 'poses.txt').write_text(text([TO_CAMERA @ m @ np.linalg.inv(TO_CAMERA) for m in LASER]))
    (folder / 'poses_lidar.txt').write_text(text(LASER))
    (folder / 'calib.txt').write_text('P0: ' + '0 ' * 12 + '\nTr: ' + text([TO_CAMERA]))
    return folder


def results(folder, k, columns=4):
    points = np.fromfile(folder / f'velodyne/{k:06d}.bin', '<f4').reshape(-1, 4)[:, :columns]
    labels = (np.fromfile(folder / f'labels/{k:06d}.label', '<u4') & 0xFFFF).astype(np.int64)
    return dict(
        lidar_points=dict(lidar_path=str(folder / f'velodyne/{k:06d}.bin')),
        pts_semantic_mask_path=str(folder / f'labels/{k:06d}.label'),
        points=LiDARPoints(torch.from_numpy(points), points_dim=columns),
        pts_semantic_mask=labels,
        eval_ann_info=dict(pts_semantic_mask=labels),
    )


@pytest.mark.parametrize('columns', [3, 4])
@pytest.mark.parametrize('files', [dict(), dict(poses='poses_lidar.txt', calib=None)])
def test_landmarks_meet_in_the_coordinates_of_the_last_scan(sequence, columns, files):
    out = AddPreviousScans(num_scans=3, **files)(results(sequence, 3, columns))
    points = out['points'].tensor
    assert points.shape == (150, columns + 1)
    for scan in points.split(50):
        torch.testing.assert_close(scan[:, :3], points[:50, :3], rtol=0, atol=1e-5)
    assert points[:, -1].tolist() == pytest.approx([0.0] * 50 + [0.1] * 50 + [0.2] * 50)
    assert out['points'].attribute_dims == {'age': columns}
    if columns == 4:
        assert points[:, 3].tolist() == pytest.approx([0.3] * 50 + [0.2] * 50 + [0.1] * 50)
    expected = np.concatenate([np.where(np.arange(50) < 5, 252, 40 + k) for k in (3, 2, 1)])
    assert np.array_equal(out['pts_semantic_mask'], expected)
    assert np.array_equal(out['eval_ann_info']['pts_semantic_mask'], expected)


def test_the_first_scan_stands_alone_and_the_second_has_one_before_it(sequence):
    assert len(AddPreviousScans(3)(results(sequence, 0))['points']) == 50
    assert len(AddPreviousScans(3)(results(sequence, 1))['points']) == 100
    assert len(AddPreviousScans(1)(results(sequence, 3))['points']) == 50
    (sequence / 'velodyne/000002.bin').unlink()  # a gap: the scan before it keeps its age
    points = AddPreviousScans(3)(results(sequence, 3))['points'].tensor
    assert points[:, -1].tolist() == pytest.approx([0.0] * 50 + [0.2] * 50)


def test_earlier_scans_without_labels_and_no_labels_at_all(sequence):
    out = AddPreviousScans(3, label_previous=False)(results(sequence, 3))
    assert (out['pts_semantic_mask'][50:] == 0).all()
    assert (out['pts_semantic_mask'][:50] > 0).all()
    bare = {k: v for k, v in results(sequence, 3).items() if k in ('lidar_points', 'points')}
    assert 'pts_semantic_mask' not in AddPreviousScans(3)(bare)


def test_bad_input(sequence):
    poses = sequence / 'poses.txt'
    lines = poses.read_text().splitlines()
    poses.write_text('\n'.join(lines[:3]))
    with pytest.raises(ValueError, match=r'poses\.txt has 3 poses, but the scans in .*go up to 000003, which needs 4'):
        AddPreviousScans(3)(results(sequence, 1))
    poses.write_text('\n'.join([*lines[:1], '1 2 3']))
    with pytest.raises(ValueError, match=r'poses\.txt:2 must hold 12 numbers.*got .1 2 3'):
        read_poses(poses)
    with pytest.raises(FileNotFoundError, match='poses of the scans'):
        read_poses(sequence / 'nothing.txt')
    poses.write_text('\n'.join(lines))
    (sequence / 'calib.txt').write_text('P0: 1\n')
    with pytest.raises(ValueError, match='no line Tr'):
        read_poses(poses, sequence / 'calib.txt')
    with pytest.raises(FileNotFoundError, match='set calib=None if'):
        read_poses(poses, sequence / 'none.txt')
    with pytest.raises(ValueError, match='num_scans must be an int of at least 1'):
        AddPreviousScans(0)
    with pytest.raises(ValueError, match='scan_period must be positive'):
        AddPreviousScans(2, scan_period=0)
    lidar = dict(poses='poses_lidar.txt', calib=None)
    label = sequence / 'labels/000002.label'
    label.write_bytes(label.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r'000002\.label has 196 bytes, but 50 points need 200'):
        AddPreviousScans(3, **lidar)(results(sequence, 3))
    label.unlink()
    with pytest.raises(FileNotFoundError, match='set label_previous=False'):
        AddPreviousScans(3, **lidar)(results(sequence, 3))
    scan = sequence / 'velodyne/000002.bin'
    scan.write_bytes(scan.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r'000002\.bin has 795 bytes, which is not a multiple of 16'):
        AddPreviousScans(3, **lidar)(results(sequence, 3))


def build(split, data_root, poses=None):
    """The data set of the config, on another folder."""
    compat.apply_all()
    init_default_scope('mmdet3d')
    dataset = load_config(str(CONFIG), work_dir='x')[f'{split}_dataloader'].dataset
    dataset.data_root, dataset.ann_file = str(data_root), 'semantickitti_infos_train.pkl'
    dataset.pipeline = [step for step in dataset.pipeline if step.type not in ('RandomFlip3D', 'GlobalRotScaleTrans')]
    for step in dataset.pipeline:
        if step.type == 'clusterplug.AddPreviousScans':
            step.update(poses or {})
    return DATASETS.build(dataset)


def test_the_config_gives_25_classes(sequence):
    root = sequence.parents[1]
    write_infos(root / 'semantickitti_infos_train.pkl', root, ['00/000002', '00/000003'], raw_labels=range(300))
    train, test = build('train', root), build('val', root)
    assert len(train.metainfo['classes']) == 25 == len(train.metainfo['palette'])
    assert train.metainfo['classes'][19] == 'moving-car'
    sample, held_out = train[1], test[1]
    assert sample['inputs']['points'].shape == (150, 5)
    labels = sample['data_samples'].gt_pts_seg.pts_semantic_mask
    # 40 (road) is 8; 41 to 43 are no classes of SemanticKITTI and ignored; the first five of each are moving cars
    assert [int((labels == 19).sum()), int((labels == 8).sum()), int((labels == 25).sum())] == [15, 0, 135]
    assert held_out['data_samples'].eval_ann_info['pts_semantic_mask'][:5].tolist() == [19] * 5
    assert (held_out['data_samples'].eval_ann_info['pts_semantic_mask'][50:] == 25).all()
    assert type(TRANSFORMS.build(dict(type='clusterplug.AddPreviousScans'))) is AddPreviousScans


def test_every_raw_label_has_its_class():
    from mmengine.config import Config

    mapping = Config.fromfile(str(ROOT / 'configs/_base_/datasets/semantickitti_multiscan.py')).labels_map
    single = Config.fromfile(str(ROOT / 'configs/_base_/datasets/semantickitti_layout.py')).labels_map
    assert set(mapping) == set(single)
    still = {raw: 25 if label == 19 else label for raw, label in single.items() if raw < 252}
    assert {raw: label for raw, label in mapping.items() if raw < 252} == still
    assert {raw: mapping[raw] for raw in range(252, 260)} == {
        252: 19, 253: 20, 254: 21, 255: 22, 256: 23, 257: 23, 258: 24, 259: 23,
    }  # fmt: skip


@pytest.fixture
def real(tmp_path):
    if not os.environ.get('CLUSTERPLUG_DATA'):
        pytest.skip('CLUSTERPLUG_DATA is not set: no real scans')
    root = Path(os.environ['CLUSTERPLUG_DATA']) / 'semantickitti'
    (tmp_path / 'sequences').mkdir()
    (tmp_path / 'sequences/01').symlink_to(root / 'sequences/01')
    write_infos(tmp_path / 'semantickitti_infos_train.pkl', tmp_path, ['01/000002'])
    return tmp_path


def test_real_consecutive_scans_meet(real):
    """With the poses, static structure of earlier scans lies on that of the last; without, it does not."""
    from scipy.spatial import cKDTree

    files = dict(poses='poses_lidar.txt', calib=None)
    sample = build('train', real, files)[0]
    points, labels = sample['inputs']['points'], sample['data_samples'].gt_pts_seg.pts_semantic_mask
    ages = points[:, -1]
    assert sorted(set(np.round(ages.tolist(), 6))) == [0.0, 0.1, 0.2]
    assert points.shape[1] == 5
    assert len(points) == len(labels) == sum(
        path.stat().st_size // 16 for path in (real / 'sequences/01/velodyne').glob('*.bin')
    )  # fmt: skip
    static = (labels != 25) & (labels < 19) & (points[:, :2].norm(dim=1) < 25)
    moved = np.linalg.inv(read_poses(real / 'sequences/01/poses_lidar.txt')[2])
    tree = cKDTree(points[static & (ages == 0)][:, :3].numpy())
    for age, back in ((0.1, 1), (0.2, 0)):
        earlier = points[static & ((ages - age).abs() < 1e-6)][:, :3].double().numpy()
        inverse = np.linalg.inv(moved @ read_poses(real / 'sequences/01/poses_lidar.txt')[back])
        unmoved = earlier @ inverse[:3, :3].T + inverse[:3, 3]
        aligned, apart = (np.median(tree.query(cloud)[0]) for cloud in (earlier, unmoved))
        assert aligned < 0.15
        assert apart > 1.3 * aligned, (aligned, apart)


def test_real_scans_with_too_few_poses(real, tmp_path):
    target = tmp_path / 'sequences/02'
    target.mkdir()
    for name in ('velodyne', 'labels'):
        (target / name).symlink_to(real / 'sequences/01' / name)
    lines = (real / 'sequences/01/poses_lidar.txt').read_text().splitlines()
    (target / 'poses_lidar.txt').write_text('\n'.join(lines[:2]))
    write_infos(real / 'semantickitti_infos_train.pkl', real, ['02/000002'])
    with pytest.raises(ValueError, match=r'has 2 poses, but the scans in .*go up to 000002, which needs 3'):
        build('train', real, dict(poses='poses_lidar.txt', calib=None))[0]


@pytest.mark.slow
@pytest.mark.parametrize('clustered', [False, True])
def test_the_config_trains(tmp_path, clustered):
    """Two steps and a validation on streets in SemanticKITTI layout, seen by a laser that moves."""
    from mmengine.runner import Runner

    compat.apply_all()
    root = write_tiny_semantickitti(tmp_path / 'data', num_scans=4, num_points=1500)
    for folder in (root / 'sequences').iterdir():
        (folder / 'poses.txt').write_text(text([TO_CAMERA @ m @ np.linalg.inv(TO_CAMERA) for m in LASER]))
        (folder / 'calib.txt').write_text('Tr: ' + text([TO_CAMERA]))
    name = CONFIG.name if not clustered else f'point-cluster_{CONFIG.name}'
    config = load_config(str(CONFIG.with_name(name)), work_dir=str(tmp_path / 'work'))
    for split in ('train', 'val', 'test'):
        loader = config[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(root)
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    config.param_scheduler, config.experiment_name = None, f'multiscan_{clustered}'
    config.log_processor = dict(by_epoch=False, window_size=1)
    config.default_hooks.update(checkpoint=None, logger=dict(type='LoggerHook', interval=1))
    runner = Runner.from_cfg(config)
    runner.train()
    scalars = runner.message_hub.log_scalars
    assert np.isfinite(scalars['train/loss'].data[0]).all()
    assert np.isfinite(scalars['val/miou'].current())
    assert hasattr(runner.model, 'clustering') == clustered
    if clustered:
        assert runner.model.clustering.loss.num_classes == 25
        assert runner.model.clustering.loss.memory.num_seeded.any()
