# SPDX-License-Identifier: Apache-2.0
"""Server files of SemanticKITTI: raw labels, as many as points, every scan, single- and multi-scan."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet3d', reason='needs mmdet3d: pip install clusterplug[mmdet3d]')

from mmengine.config import Config

from clusterplug import cli
from clusterplug.core.outputs import SourceOverwritten
from clusterplug.datasets.semantickitti_infos import write_infos
from clusterplug.datasets.semantickitti_submission import (
    check_submission,
    missing_scans,
    prediction_path,
    raw_labels,
    write_prediction,
)
from clusterplug.evaluation import SemanticKittiSubmission
from clusterplug.testing import build_tiny_runner, write_tiny_semantickitti

ROOT = Path(__file__).resolve().parents[2]
# learning_map_inv of the benchmark, without "ignored"
SINGLE = [10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81]
MULTI = [*SINGLE, 252, 253, 254, 255, 259, 258]


@pytest.mark.parametrize(('name', 'expected'), [('layout', SINGLE), ('multiscan', MULTI)])
def test_the_inverse_of_the_configs_is_that_of_the_benchmark(name, expected):
    mapping = Config.fromfile(str(ROOT / f'configs/_base_/datasets/semantickitti_{name}.py')).labels_map
    assert raw_labels(mapping, len(expected)).tolist() == expected
    for raw, label in zip(expected, range(len(expected)), strict=True):
        assert mapping[raw] == label


def test_the_inverse_of_a_map_of_ones_own():
    assert raw_labels({5: 1, 7: 0, 3: 1, 0: 9}, 2).tolist() == [7, 3]
    with pytest.raises(ValueError, match='no raw label class 1'):
        raw_labels({5: 0}, 2)


@pytest.fixture
def root(tmp_path):
    root = write_tiny_semantickitti(tmp_path / 'data', num_scans=1, num_points=50)
    (root / 'sequences/08').rename(root / 'sequences/11')
    write_infos(root / 'semantickitti_infos_test.pkl', root, ['11/000000', '11/000001'], with_labels=False)
    return root


def test_one_scan(root, tmp_path):
    scan = root / 'sequences/11/velodyne/000000.bin'
    finite = np.ones(50, bool)
    finite[[0, 7]] = False
    path = write_prediction(tmp_path / 'out', scan, np.arange(48) % 20, np.array(SINGLE), finite=finite)
    labels = np.fromfile(path, '<u4')
    assert path == tmp_path / 'out/sequences/11/predictions/000000.label'
    assert labels[[0, 7]].tolist() == [0, 0]
    expected = [0 if n % 20 == 19 else SINGLE[n % 20] for n in range(48)]  # the output for ignored points
    assert labels[finite].tolist() == expected
    for count in (49, 51, 0):
        with pytest.raises(ValueError, match=f'has 50 points, but {count} predictions'):
            write_prediction(tmp_path / 'out', scan, np.zeros(count, int), np.array(SINGLE))
    assert check_submission(tmp_path / 'out', {str(scan): 50}) == []
    path.write_bytes(path.read_bytes()[:-4])
    other = root / 'sequences/11/velodyne/000001.bin'
    (path.parent / '000009.label').write_bytes(b'')
    faults = check_submission(tmp_path / 'out', {str(scan): 50, str(other): 50})
    assert [fault.split('predictions/')[1].split(' ')[0] for fault in faults] == [
        '000000.label', '000001.label', '000009.label',
    ]  # fmt: skip
    assert missing_scans({str(scan): 50}) == {str(scan.parent): 1}
    with pytest.raises(ValueError, match='must lie in sequences'):
        prediction_path('out', 'x/y/z.bin')


def test_the_data_are_not_written_to(root, tmp_path):
    scan = root / 'sequences/11/velodyne/000000.bin'
    with pytest.raises(SourceOverwritten):
        write_prediction(root, scan, np.zeros(50, int), np.array(SINGLE))
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/sequences').symlink_to(root / 'sequences')
    with pytest.raises(SourceOverwritten):
        write_prediction(tmp_path / 'out', scan, np.zeros(50, int), np.array(SINGLE))
    assert not (root / 'sequences/11/predictions').exists()


def run_test(root, work, out):
    runner = build_tiny_runner(
        work, root, test_dataloader__dataset__ann_file='semantickitti_infos_test.pkl',
        test_evaluator=[dict(type='SegMetric'), dict(type='clusterplug.SemanticKittiSubmission', out=str(out))],
    )  # fmt: skip
    return runner, runner.test()


def test_a_test_run_writes_a_zip(root, tmp_path):
    scan = root / 'sequences/11/velodyne/000001.bin'
    points = np.fromfile(scan, '<f4').reshape(-1, 4)
    points[3] = np.nan
    points.tofile(scan)
    with pytest.warns(UserWarning, match='NaN'):
        runner, metrics = run_test(root, tmp_path / 'w', tmp_path / 'my out.zip')
    assert metrics == {'submission_scans': 2}
    with zipfile.ZipFile(tmp_path / 'my out.zip') as archive:
        names = archive.namelist()
        labels = np.frombuffer(archive.read(names[1]), '<u4')
    assert names == ['sequences/11/predictions/000000.label', 'sequences/11/predictions/000001.label']
    assert len(labels) == 50
    assert labels[3] == 0
    assert set(np.delete(labels, 3).tolist()) <= set(SINGLE)
    data = runner.test_dataloader.dataset[0]
    with torch.no_grad():
        predicted = runner.model.test_step(
            dict(inputs=dict(points=[data['inputs']['points']]), data_samples=[data['data_samples']])
        )
    first = np.fromfile(tmp_path / 'my out/sequences/11/predictions/000000.label', '<u4')
    assert first.tolist() == np.array(SINGLE)[predicted[0].pred_pts_seg.pts_semantic_mask.numpy()].tolist()
    with pytest.raises(FileExistsError, match='holds predictions already'):
        SemanticKittiSubmission(tmp_path / 'my out')


def sample(scan, classes, **more):
    return dict(
        lidar_path=str(scan), num_pts_feats=4, pred_pts_seg=dict(pts_semantic_mask=torch.tensor(classes)), **more
    )


def test_of_several_scans_the_current_one_is_written(root, tmp_path):
    metric = SemanticKittiSubmission(tmp_path / 'out')
    mapping = Config.fromfile(str(ROOT / 'configs/_base_/datasets/semantickitti_multiscan.py')).labels_map
    metric.dataset_meta = dict(classes=range(25), seg_label_mapping=mapping, ignore_index=25)
    scan = root / 'sequences/11/velodyne/000000.bin'
    metric.process({}, [sample(scan, [23] * 50 + [0] * 70, current_points=50)])
    labels = np.fromfile(tmp_path / 'out/sequences/11/predictions/000000.label', '<u4')
    assert labels.tolist() == [259] * 50
    with pytest.raises(ValueError, match='50 points, but 120 predictions'):
        metric.process({}, [sample(scan, [23] * 120)])
    with pytest.raises(ValueError, match='1 scans were predicted, but the split has 2'):
        metric.evaluate(2)


def test_where_it_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(FileExistsError, match='is a file'):
        SemanticKittiSubmission(tmp_path / 'file')
    with pytest.raises(ValueError, match='out must name a folder'):
        SemanticKittiSubmission('.zip')
    config = Config(dict(test_evaluator=dict(type='SegMetric')))
    cli._use_submission(config, 'x.zip')
    assert [each.type for each in config.test_evaluator] == ['SegMetric', 'clusterplug.SemanticKittiSubmission']
