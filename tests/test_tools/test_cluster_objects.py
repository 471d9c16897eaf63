# SPDX-License-Identifier: Apache-2.0
"""cluster_objects.py on a tiny city: files of every kind of unit, the same numbers again, what is refused."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mmdet3d')
pytest.importorskip('spconv')

from clusterplug.core.files import load_arrays
from clusterplug.testing.toy_data import write_tiny_semantickitti
from clusterplug.testing.toy_runner import tiny_config

ROOT = Path(__file__).resolve().parents[2]
LABELS = dict(
    type='LoadAnnotations3D', with_bbox_3d=False, with_label_3d=False, with_seg_3d=True, seg_3d_dtype='np.int32',
    seg_offset=2**16, dataset_type='semantickitti',
)  # fmt: skip


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('cluster_objects', ROOT / 'tools/cluster_objects.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp('city')
    write_tiny_semantickitti(root)
    made = tiny_config(root / 'log', root)
    pipeline = made.val_dataloader.dataset.pipeline
    assert any(each['type'] == 'LoadAnnotations3D' for each in pipeline)
    made.dump(root / 'config.py')
    return str(root / 'config.py')


@pytest.mark.slow
def test_units_of_every_kind(tool, config, tmp_path, capsys):
    out = tmp_path / 'superpoints'
    arguments = [config, 'none', '--estimator', 'KMeans', '--n-clusters', '3', '--units', 'superpoints']
    assert tool.main([*arguments, '--cell-size', '3', '--out', str(out)]) == 0, capsys.readouterr().err
    assert 'NMI with' in capsys.readouterr().out
    arrays, header = load_arrays(out / 'objects.npz')
    assert len(header['scans']) == 2
    assert set(arrays['label']) == {0, 1, 2}
    assert arrays['count'].min() >= 10
    first = 0
    for number, name in enumerate(header['scans']):
        points, _ = load_arrays(out / 'points' / f'{name}.npz')
        units = int((arrays['scan'] == number).sum())
        own = np.append(arrays['label'][first : first + units], -1)
        assert points['unit'].max() == units - 1
        assert np.array_equal(points['label'], own[points['unit']])
        sizes = np.bincount(points['unit'][points['unit'] >= 0], minlength=units)
        assert np.array_equal(sizes, arrays['count'][first : first + units])
        first += units
    for picture in (f'birds_eye_{header["scans"][0]}.png', 'contact_sheet.png'):
        assert (out / picture).stat().st_size > 2000
    # objects of the label files: their quality as objects is perfect only where the prediction is
    out = tmp_path / 'instances'
    arguments = [config, 'none', '--units', 'instances', '--classes', 'car', '--max-scans', '2']
    arguments += ['--estimator', 'PerceptualClusterer', '--option', 'projection=pca', '--out', str(out)]
    assert tool.main(arguments) == 0, capsys.readouterr().err
    arrays, _ = load_arrays(out / 'objects.npz')
    assert len(arrays['label']) == 6  # three cars a scan
    assert set(arrays['class']) == {0}
    assert ((arrays['size'][:, 0] > 3.5) & (arrays['size'][:, 0] < 4.3)).all()
    summary = json.loads((out / 'summary.json').read_text())
    assert sum(sum(each.values()) for each in summary['units_of_clusters'].values()) == 6
    # random weights: no thing is predicted as such, or the tool goes through
    code = tool.main([config, 'none', '--estimator', 'KMeans', '--n-clusters', '2', '--out', str(tmp_path / 'x')])
    assert code == 0 or 'nothing to cluster' in capsys.readouterr().err


def test_what_is_refused(tool, config, tmp_path, capsys):
    for arguments, message in (
        (['--estimator', 'KMean'], "--estimator must be one of .*'KMean'"),
        (['--estimator', 'KMeans', '--option', 'clusters=3'], "KMeans has no argument 'clusters'"),
        (['--estimator', 'HDBSCAN', '--n-clusters', '3'], 'takes no number of clusters'),
        (['--estimator', 'KMeans', '--min-points', '0'], '--min-points must be at least 1'),
        (['--estimator', 'KMeans'], 'CHECKPOINT must be a file'),
    ):
        assert tool.main([config, 'nowhere.pth', '--out', str(tmp_path), *arguments]) == 1
        import re

        assert re.search(message, capsys.readouterr().err)
