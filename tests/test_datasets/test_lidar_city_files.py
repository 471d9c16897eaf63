# SPDX-License-Identifier: Apache-2.0
"""The files of a LiDAR city: layout, the same bytes again, read-back by mmdet3d, bad input."""

import importlib.util
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('open3d')

from _city_files import SETTINGS, SMALL, fingerprint

from clusterplug.core import files
from clusterplug.datasets import SUBTYPES, generate_lidar_city, load_subtypes
from clusterplug.datasets.lidar_city import generate as generate_module
from clusterplug.datasets.lidar_city.cli import main
from clusterplug.datasets.lidar_city.world.catalogue import CLASSES


@pytest.fixture(scope='module')
def city(tmp_path_factory):
    return generate_lidar_city(tmp_path_factory.mktemp('city'), seed=3, **SETTINGS)


def read(city, sequence, frame):
    points = np.fromfile(city / f'sequences/{sequence:02d}/velodyne/{frame:06d}.bin', np.float32).reshape(-1, 4)
    labels = np.fromfile(city / f'sequences/{sequence:02d}/labels/{frame:06d}.label', np.uint32)
    return points, labels


def test_layout(city):
    names = set(fingerprint(city))
    scans = {(0, 0), (0, 1), (1, 0), (8, 0), (8, 1)}
    expected = {f'semantickitti_infos_{split}.pkl' for split in ('train', 'val', 'test')} | {'lidar_city.json'}
    for sequence, frame in scans:
        folder = f'sequences/{sequence:02d}'
        expected |= {f'{folder}/velodyne/{frame:06d}.bin', f'{folder}/labels/{frame:06d}.label'}
        expected |= {f'{folder}/{name}' for name in ('calib.txt', 'poses.txt', 'times.txt', 'subtypes.json')}
    assert names == expected
    for sequence, frame in scans:
        points, labels = read(city, sequence, frame)
        assert len(points) == len(labels) > 0.8 * 64 * 128
        assert np.isfinite(points).all()
        distance = np.linalg.norm(points[:, :3], axis=1)
        assert distance.min() > 1.9
        assert distance.max() < 80.1
        assert 0 <= points[:, 3].min() <= points[:, 3].max() < 1


def test_labels_instances_and_sub_types_agree(city):
    for sequence, frame in ((0, 0), (0, 1), (8, 1)):
        _, labels = read(city, sequence, frame)
        path = city / f'sequences/{sequence:02d}/labels/{frame:06d}.label'
        table = json.loads((path.parent.parent / 'subtypes.json').read_text())
        subtypes = load_subtypes(path)
        assert subtypes.dtype == np.int64
        instance, label = labels >> 16, labels & 0xFFFF
        assert np.array_equal(subtypes == -1, instance == 0)
        assert np.array_equal(instance == 0, label == 1)
        assert instance.max() < 2**15
        for number in np.unique(instance[instance > 0]):
            entry, mine = table['instances'][str(number)], instance == number
            assert set(label[mine]) == {entry['label']}
            assert set(subtypes[mine]) == {entry['subtype_id']}
            kind = SUBTYPES[entry['subtype_id']]
            assert (kind.class_name, kind.name) == (entry['class'], entry['subtype'])
            assert entry['label'] in (*CLASSES[kind.class_name], 60)
        assert [entry['name'] for entry in table['subtypes']] == [entry.name for entry in SUBTYPES]
        assert len(np.unique(label)) >= 10


def test_poses_and_calibration_put_still_things_in_one_place(city):
    folder = city / 'sequences/00'
    calibration = dict(line.split(':', 1) for line in (folder / 'calib.txt').read_text().splitlines())
    assert list(calibration) == ['P0', 'P1', 'P2', 'P3', 'Tr']
    tr = np.vstack([np.array(calibration['Tr'].split(), dtype=float).reshape(3, 4), [0, 0, 0, 1]])
    poses = np.loadtxt(folder / 'poses.txt').reshape(-1, 3, 4)
    assert len(poses) == 2
    np.testing.assert_allclose(poses[0], np.eye(4)[:3], atol=1e-9)
    assert poses[1][2, 3] == pytest.approx(5.0, abs=0.1), 'the camera looks along z, and the car drives that way'
    np.testing.assert_allclose(np.loadtxt(folder / 'times.txt'), [0.0, 0.625])
    clouds = []
    for frame in range(2):
        points, labels = read(city, 0, frame)
        pose = np.linalg.inv(tr) @ np.vstack([poses[frame], [0, 0, 0, 1]]) @ tr  # the loader of semantic-kitti-api
        clouds.append((points[:, :3] @ pose[:3, :3].T + pose[:3, 3], labels))
    compared = 0
    for number in np.intersect1d(*[labels[np.isin(labels & 0xFFFF, (71, 80))] for _, labels in clouds]):
        one, two = (xyz[labels == number][:, :2] for xyz, labels in clouds)
        if min(len(one), len(two)) >= 8:
            compared += 1
            np.testing.assert_allclose(one.mean(axis=0), two.mean(axis=0), atol=0.6)
            assert np.abs(one.mean(axis=0) - two.mean(axis=0)).max() < 0.6
    assert compared >= 2


def test_same_seed_same_bytes_other_seed_other_bytes(small, tmp_path):
    again = generate_lidar_city(tmp_path / 'again', seed=5, **SMALL)
    assert fingerprint(again) == fingerprint(small)
    other = generate_lidar_city(tmp_path / 'other', seed=6, **SMALL)
    mine, theirs = fingerprint(small), fingerprint(other)
    assert all(mine[name] != theirs[name] for name in mine if name.endswith(('.bin', '.label')))


@pytest.mark.slow
def test_workers_do_not_change_the_bytes(small, tmp_path):
    shared = generate_lidar_city(tmp_path, seed=5, **{**SMALL, 'workers': 3})
    assert fingerprint(shared) == fingerprint(small)


@pytest.mark.slow
def test_a_worker_passes_its_error_on(tmp_path):
    (tmp_path / 'city/sequences/00').mkdir(parents=True)
    (tmp_path / 'city/sequences/00/velodyne').write_text('in the way')
    files.write_bytes(tmp_path / 'city' / generate_module.MARKER, settings_bytes(seed=5))
    with pytest.raises(OSError, match='velodyne'):
        generate_lidar_city(tmp_path / 'city', seed=5, **{**SMALL, 'workers': 2})


def settings_bytes(seed):
    kept = {key: SMALL[key] for key in ('num_train', 'num_val', 'columns', 'scans_per_street')}
    return json.dumps({'generator': generate_module.GENERATOR, 'seed': seed, 'spacing': 5.0, **kept}).encode()


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        ({'num_train': 0}, ValueError, 'num_train must be from 1'),
        ({'num_val': -1}, ValueError, 'num_val must be from 1 .* got -1'),
        ({'num_train': 1.5}, TypeError, 'num_train must be an integer, got 1.5'),
        ({'seed': -1}, ValueError, 'seed must be from 0'),
        ({'seed': True}, TypeError, 'seed must be an integer, got True'),
        ({'columns': 8}, ValueError, 'columns must be from 16 to 4096, got 8'),
        ({'scans_per_street': 0}, ValueError, 'scans_per_street must be from 1'),
        ({'spacing': 0.0}, ValueError, 'spacing must be a number of meters from 0.1 to 20'),
        ({'spacing': float('nan')}, ValueError, 'spacing'),
        ({'workers': 0}, ValueError, 'workers must be from 1'),
    ],
)
def test_bad_arguments(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        generate_lidar_city(tmp_path / 'city', **{**SMALL, **change})
    assert not (tmp_path / 'city').exists()


def test_load_subtypes_refuses_what_it_cannot_read(small, tmp_path):
    with pytest.raises(FileNotFoundError, match='no such label file'):
        load_subtypes(tmp_path / 'labels/000000.label')
    city = shutil.copytree(small, tmp_path / 'city')
    label = city / 'sequences/00/labels/000000.label'
    whole = label.read_bytes()
    label.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f'truncated: {len(whole) - 1} bytes'):
        load_subtypes(label)
    label.write_bytes(np.array([40 | 30_000 << 16], dtype=np.uint32).tobytes())
    with pytest.raises(ValueError, match='names instance 30000'):
        load_subtypes(label)
    (city / 'sequences/00/subtypes.json').write_text('{')
    with pytest.raises(ValueError, match='not a sub-type table'):
        load_subtypes(label)
    (city / 'sequences/00/subtypes.json').unlink()
    with pytest.raises(FileNotFoundError, match=r'subtypes\.json is missing'):
        load_subtypes(label)


def test_command_line(small, tmp_path, capsys):
    arguments = [str(tmp_path / 'city'), '--num-train', '2', '--num-val', '1', '--seed', '5', '--columns', '32']
    arguments += ['--scans-per-street', '2', '--workers', '1']
    assert main(arguments) == 0
    assert fingerprint(tmp_path / 'city') == fingerprint(small)
    error = capsys.readouterr().err
    assert '3/3 scans' in error
    assert '\r' not in error, 'plain lines when nobody watches a terminal'
    assert main([*arguments, '--seed', '9']) == 1
    assert '--overwrite' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, '--columns', 'many'])


def test_info_files_equal_those_of_the_converter_of_mmdet3d(city, monkeypatch):
    mmdet3d = pytest.importorskip('mmdet3d')
    path = Path(mmdet3d.__file__).parent / '.mim/tools/dataset_converters/semantickitti_converter.py'
    if not path.is_file():
        pytest.skip('this mmdet3d was installed without its tools')
    spec = importlib.util.spec_from_file_location('semantickitti_converter', path)
    converter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(converter)
    monkeypatch.setattr(converter, 'total_num', {0: 2, 1: 1, 8: 2})
    monkeypatch.setattr(converter, 'fold_split', {'train': [0, 1], 'val': [8]})
    for split in ('train', 'val'):
        mine = pickle.loads((city / f'semantickitti_infos_{split}.pkl').read_bytes())
        assert mine == converter.get_semantickitti_info(split)


def test_mmdet3d_reads_the_city(city):
    pytest.importorskip('mmdet3d')
    from mmdet3d.datasets import SemanticKittiDataset
    from mmdet3d.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules(init_default_scope=True)
    import mmdet3d

    base = Path(mmdet3d.__file__).parent / '.mim/configs/_base_/datasets/semantickitti.py'
    if not base.is_file():
        pytest.skip('this mmdet3d was installed without its configs')
    config = Config.fromfile(str(base))
    for split, scans in (('train', [(0, 0), (0, 1), (1, 0)]), ('val', [(8, 0), (8, 1)])):
        dataset = SemanticKittiDataset(
            data_root=str(city),
            ann_file=f'semantickitti_infos_{split}.pkl',
            pipeline=config.test_pipeline,
            metainfo=config.metainfo,
            modality=config.input_modality,
            ignore_index=19,
        )
        assert len(dataset) == len(scans)
        for index, (sequence, frame) in enumerate(scans):
            item = dataset[index]
            points, labels = read(city, sequence, frame)
            np.testing.assert_array_equal(item['inputs']['points'].numpy(), points)
            mapped = item['data_samples'].gt_pts_seg.pts_semantic_mask
            expected = np.array([config.labels_map[int(label)] for label in labels & 0xFFFF])
            np.testing.assert_array_equal(np.asarray(mapped), expected)
            assert (expected < 19).mean() > 0.95
    train = SemanticKittiDataset(
        data_root=str(city),
        ann_file='semantickitti_infos_train.pkl',
        pipeline=config.train_pipeline,
        metainfo=config.metainfo,
        modality=config.input_modality,
        ignore_index=19,
    )
    assert train[0]['inputs']['points'].shape[1] == 4
