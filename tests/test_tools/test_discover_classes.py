# SPDX-License-Identifier: Apache-2.0
"""discover_classes.py on the generated city: objects, clusters, crops, scores, and what is refused."""

import importlib.util
import json

import numpy as np
import pytest

pytest.importorskip('mmdet3d')
pytest.importorskip('spconv')
pytest.importorskip('open3d')
pytest.importorskip('sklearn')

import torch
from _untrained_city import CONFIG, ROOT, write_untrained_city
from mmdet3d.registry import MODELS

from clusterplug.analysis import scan_objects
from clusterplug.attach import PointFeatures
from clusterplug.cli import load_config
from clusterplug.visualization.object_crops import object_views


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('discover_classes', ROOT / 'tools/discover_classes.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def city(tmp_path_factory):
    root = tmp_path_factory.mktemp('city')
    write_untrained_city(root, num_train=1, num_val=2, columns=256)
    data = {f'{split}_dataloader.dataset.data_root': str(root / 'city') for split in ('train', 'val', 'test')}
    return root / 'start.pth', [f'{key}={value}' for key, value in data.items()]


@pytest.fixture
def discover(tool, city, tmp_path, capsys):
    def call(*arguments, checkpoint=None):
        code = tool.main([
            CONFIG, str(checkpoint or city[0]), '--out', str(tmp_path / 'out'), *map(str, arguments), '--cfg-options',
            *city[1],
        ])  # fmt: skip
        text = capsys.readouterr()
        return code, text.out, text.err, tmp_path / 'out'

    return call


@pytest.mark.slow
def test_hidden_classes_are_clustered_and_shown(discover, city):
    code, text, _, out = discover('--hidden', 'car', 'traffic-sign', '--n-clusters', 2, '--shown', 4)
    assert code == 0
    content = json.loads((out / 'objects.json').read_text())
    classes = content['classes']
    truth = [classes[found['truth']] if found['truth'] < len(classes) else '' for found in content['objects']]
    assert {'car', 'traffic-sign'} <= set(truth)
    assert not set(truth) - {'car', 'traffic-sign', ''}  # the others are known, or ignored
    assert {found['cluster'] for found in content['objects']} == {0, 1}
    for found in content['objects']:
        assert found['label'] == -1
        assert found['points'] >= 20
        assert max(found['size'][:2]) <= 12
    for name in ('cluster_0.png', 'cluster_1.png'):
        assert (out / name).stat().st_size > 1000
        assert name in text
    # the score is that of the objects in the file
    from clusterplug.functional import clustering_accuracy

    pairs = [(found['truth'], found['cluster']) for found in content['objects'] if found['truth'] < len(classes)]
    accuracy = clustering_accuracy(*torch.tensor(pairs).T)
    assert f'accuracy {float(accuracy):.3f}' in text
    # the same command, the same clusters
    discover('--hidden', 'car', 'traffic-sign', '--n-clusters', 2, '--shown', 4)
    assert json.loads((out / 'objects.json').read_text()) == content


@pytest.mark.slow
def test_errors_are_one_sentence(discover, tmp_path):
    for arguments, words in (
        (('--hidden', 'tram'), 'must name classes of the data set'),
        (('--scans', 9), '--scans must be from 1 to 2'),
        (('--hidden', 'car', '--min-points', 10**6), 'too few'),
        (('--layer', 'nothing'), 'nothing'),
    ):
        code, _, error, _ = discover(*arguments)
        assert code == 1
        assert error.splitlines()[-1].startswith('discover_classes: ')
        assert words in error
    code, _, error, _ = discover(checkpoint=tmp_path / 'none.pth')
    assert code == 1
    assert 'CHECKPOINT must be a file' in error


def test_features_are_those_of_the_voxel_of_each_point(city, tool):
    from mmengine.dataset import pseudo_collate

    config = load_config(CONFIG, {key: value for key, _, value in (each.partition('=') for each in city[1])}, '.')
    model = MODELS.build(config.model).train()
    dataset = tool.labelled_set(config, 'val')
    read = PointFeatures(model)
    (seen,) = read(pseudo_collate([dataset[0]]))
    assert model.training
    assert len(seen.features) == len(seen.points) == len(seen.predictions)
    # the classifier of these features is the prediction
    model.eval()
    assert torch.equal(model.decode_head.conv_seg(seen.features).argmax(1), seen.predictions)


def test_objects_by_ids_and_by_gaps():
    generator = np.random.default_rng(0)
    blob = [generator.normal(center, 0.1, (30, 3)) for center in ((0, 0, 0), (4, 0, 0), (0, 4, 0), (9, 9, 0))]
    points = np.concatenate([*blob, np.stack([np.linspace(0, 40, 200), *np.zeros((2, 200))], 1)])
    labels = np.repeat([3, 3, -1, -2, 5], [30, 30, 30, 30, 200])
    ids = np.repeat([7, 8, 0, 9, 1], [30, 30, 30, 30, 200])
    order = generator.permutation(len(points))
    found = scan_objects(points[order], labels[order], ids[order])
    assert [(each.label, len(each.rows)) for each in found] == [(-1, 30), (3, 30), (3, 30)]  # the road is too long
    for each, rows in zip(found, (range(60, 90), range(30), range(30, 60)), strict=True):
        assert set(order[each.rows]) == set(rows)
        np.testing.assert_allclose(each.size, np.ptp(points[list(rows)], axis=0))
    whole = scan_objects(points[order], labels[order], ids[order], max_size=None)
    assert [(each.label, len(each.rows)) for each in whole] == [(-1, 30), (3, 30), (3, 30), (5, 200)]
    assert len(scan_objects(points, labels)) == 3  # without ids by gaps
    assert len(scan_objects(points, labels, ids * 0, min_points=31)) == 0
    points[60:90] = np.nan
    assert [each.label for each in scan_objects(points, labels, ids)] == [3, 3]
    assert scan_objects(np.zeros((0, 3)), np.zeros(0, int)) == []
    with pytest.raises(ValueError, match='labels'):
        scan_objects(points, labels[:-1])
    with pytest.raises(ValueError, match='instances'):
        scan_objects(points, labels, ids[:-1])


def test_views_show_the_object_and_what_is_around():
    points = np.array([
        [10.0, 10.0, 0.0], [14.0, 10.0, 2.0], [15.0, 10.0, 0.0], [30.0, 0.0, 0.0], [12.0, 13.0, 1.0]
    ])  # fmt: skip
    picture, bar = object_views(points, np.array([0, 1]), size=101)
    assert picture.shape == (101, 206, 3)
    above, side = picture[:, :101], picture[:, 105:]
    # 4 m and a margin of 1.5 m: 3.5 m to each side of (12, 10, 1); x upwards and y to the left, z upwards
    scale = 50 / 3.5

    def color(view, up, right):
        return tuple(view[round(50 - up * scale), round(50 + right * scale)])

    assert [color(above, up, 0) for up in (-2, 2, 3)] == [(255, 170, 40), (255, 170, 40), (110, 116, 128)]
    assert color(above, 0, -3) == (110, 116, 128)
    assert [color(side, up, right) for up, right in ((-1, -2), (1, 2), (-1, 3))] == [
        (255, 170, 40), (255, 170, 40), (110, 116, 128),
    ]  # fmt: skip
    assert color(side, 0, 0) == (24, 24, 24)  # what is 3 m behind the object hides nothing
    assert bar == 2.0
    assert (above == 240).all(-1).sum() == 3 * round(2 * scale)
    with pytest.raises(ValueError, match='rows'):
        object_views(points, np.zeros(0, int))
    assert object_views(np.zeros((1, 3)), np.array([0]), size=9).picture[4, 4].tolist() == [255, 170, 40]
