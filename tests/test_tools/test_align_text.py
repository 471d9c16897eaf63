# SPDX-License-Identifier: Apache-2.0
"""align_text.py on a small city with a text encoder of its own, and the objects that it is made of."""

import hashlib
import json
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('open3d')

from clusterplug.datasets.lidar_city import city_objects, generate_lidar_city, shape_features, side_view

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / 'tools/align_text.py'))
TOOL = SCRIPT['main']


def words(sentences):
    """A sentence encoder without training: a fixed random vector a word, averaged."""
    rows = []
    for sentence in sentences:
        vectors = []
        for word in sentence.replace(',', ' ').split():
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], 'little')
            vectors.append(np.random.default_rng(seed).standard_normal(24))
        rows.append(np.mean(vectors, 0))
    return np.stack(rows)


@pytest.fixture(scope='module')
def city(tmp_path_factory):
    module = types.ModuleType('encoders_of_a_test')
    module.words, module.extents = words, lambda clouds: np.stack([np.ptp(each, axis=0) for each in clouds])
    sys.modules['encoders_of_a_test'] = module
    folder = tmp_path_factory.mktemp('city')
    generate_lidar_city(folder, num_train=6, num_val=1, columns=256, scans_per_street=1, progress=False, workers=1)
    yield folder
    del sys.modules['encoders_of_a_test']


def test_objects_are_cut_out_once(city):
    objects = city_objects(city, min_points=30)
    names = [each.name for each in objects]
    assert names == sorted(names)
    assert len({name.split('/')[0] + '/' + name.split('/')[2] for name in names}) == len(names)
    assert {each.class_name for each in objects}.isdisjoint({'road', 'sidewalk', 'terrain'})
    one = objects[0]
    sequence, frame, instance = one.name.split('/')
    labels = np.fromfile(city / f'sequences/{sequence}/labels/{frame}.label', '<u4') >> 16
    assert (labels == int(instance)).sum() == len(one.points) >= 30
    assert one.subtype.replace('_', ' ') in one.caption
    assert 'm long and' in one.caption
    cars = city_objects(city, min_points=30, classes=['car'])
    assert {each.class_name for each in cars} == {'car'}
    assert 0 < len(cars) < len(objects)
    for options, message in ((dict(classes=['cat']), 'classes'), (dict(min_points=10**6), 'lower min_points')):
        with pytest.raises(ValueError, match=message):
            city_objects(city, **options)
    with pytest.raises(FileNotFoundError, match='no scans'):
        city_objects(city / 'sequences')


def test_shape_does_not_change_with_the_heading(city):
    clouds = [each.points for each in city_objects(city, min_points=30)[:12]]
    found = shape_features(clouds)
    assert np.isfinite(found).all()
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]]
    np.testing.assert_allclose(shape_features([each @ turn.T for each in clouds]), found, atol=0.05)
    assert shape_features([np.zeros((1, 4))]).shape == (1, found.shape[1])
    with pytest.raises(ValueError, match='at least one'):
        shape_features([])
    with pytest.raises(ValueError, match='finite'):
        shape_features([np.full((3, 4), np.nan)])
    picture = side_view(clouds[0])
    assert picture.shape == (96, 96, 3)
    assert (picture < 255).any()


def test_tool_aligns_and_draws(city, tmp_path, capsys):
    arguments = [str(city), '--encoder', 'encoders_of_a_test:words', '--min-points', '20', '--out', str(tmp_path)]
    assert TOOL([*arguments, '--queries', '30', '--components', '6']) == 0
    captured = capsys.readouterr()
    assert '| affine | 6 | unseen |' in captured.out
    report = json.loads((tmp_path / 'alignment.json').read_text())
    assert {row['method'] for row in report['rows']} == {'affine', 'local_cka', 'cosine'}
    for row in report['rows']:
        assert 0 < row['chance_match'] <= row['chance_top5'] <= 1
        assert 0 <= row['match'] <= 1
    assert report['hold_out'] == 'class'
    seen = [row for row in report['rows'] if row['kinds'] == 'seen' and row['method'] == 'cosine']
    assert seen[0]['top5'] > seen[0]['chance_top5']
    assert len(report['held_out_correlations']) > 6
    assert (tmp_path / 'gallery.png').stat().st_size > 5000
    again = tmp_path / 'again'
    assert TOOL([*arguments[:-1], str(again), '--queries', '30', '--components', '6']) == 0
    assert (again / 'alignment.json').read_text() == (tmp_path / 'alignment.json').read_text()
    assert TOOL([*arguments, '--points', 'encoders_of_a_test:extents', '--components', '2', '--rows', '0']) == 0


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ([], 'pip install transformers'),
        (['--encoder', 'nowhere'], 'there is no folder nowhere'),
        (['--encoder', 'no_such_module:f'], 'must name a function'),
        (['--encoder', 'encoders_of_a_test:words', '--points', 'minkunet'], '--points must be'),
        (['--encoder', 'encoders_of_a_test:words', '--points', 'config.py'], 'needs --checkpoint'),
        (['--encoder', 'encoders_of_a_test:words', '--unseen', '1.5'], '--unseen must be'),
        (['--encoder', 'encoders_of_a_test:words', '--components', '500'], 'n_components must be at most'),
        (['--encoder', 'encoders_of_a_test:words', '--min-points', '100000000'], 'lower min_points'),
    ],
)
def test_what_is_refused(city, tmp_path, options, message):
    with pytest.raises(SystemExit) as stop:
        TOOL([str(city), '--out', str(tmp_path), *options])
    assert message in str(stop.value)
    assert not [each for each in tmp_path.iterdir() if not each.name.startswith('.')]


def test_what_is_held_out_is_in_no_anchor(city):
    objects = city_objects(city, min_points=20)
    split = SCRIPT['split']
    for hold_out, kind in (('class', lambda o: o.class_name), ('subtype', lambda o: (o.class_name, o.subtype))):
        anchors, unseen, seen, held = split(objects, 0.25, 30, 0, hold_out)
        kinds = {kind(objects[row]) for row in anchors}
        assert kinds.isdisjoint({kind(objects[row]) for row in unseen})
        assert {kind(objects[row]) for row in seen} <= {kind(each) for each in objects} - {
            kind(objects[row]) for row in unseen
        }
        assert not set(anchors) & set(seen)
        assert held == sorted(held)
        assert len(held) == max(1, round(0.25 * len({kind(each) for each in objects})))


@pytest.mark.slow
def test_features_of_a_segmentor(city, tmp_path):
    pytest.importorskip('mmdet3d')
    pytest.importorskip('spconv')
    objects = city_objects(city, min_points=20)
    config = ROOT / 'configs/point_cluster/minkunet18_w8_spconv_1xb1-5e_lidar-city.py'
    found = SCRIPT['segmentor_features'](str(config), 'none', city, objects)
    assert found.shape == (len(objects), 24)
    assert np.isfinite(found).all()
    assert (found.std(0) > 0).any()
    arguments = [str(city), '--encoder', 'encoders_of_a_test:words', '--min-points', '20', '--components', '4']
    arguments += ['--points', str(config), '--checkpoint', 'none', '--queries', '20', '--out', str(tmp_path)]
    assert TOOL(arguments) == 0
    assert (tmp_path / 'gallery.png').is_file()


@pytest.mark.slow
def test_a_folder_of_transformers(city, tmp_path):
    """A sentence encoder of random weights, saved and read as a user's would be."""
    transformers = pytest.importorskip('transformers')
    folder = tmp_path / 'model'
    folder.mkdir()
    sentences = [each.caption for each in city_objects(city, min_points=20)]
    vocabulary = [
        '[PAD]',
        '[UNK]',
        '[CLS]',
        '[SEP]',
        '[MASK]',
        *sorted({w for s in sentences for w in s.lower().replace(',', ' , ').split()}),
    ]
    (folder / 'vocab.txt').write_text('\n'.join(vocabulary))
    transformers.BertTokenizer(str(folder / 'vocab.txt')).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(folder)
    out = tmp_path / 'out'
    arguments = [str(city), '--encoder', str(folder), '--min-points', '20', '--components', '4', '--queries', '20']
    assert TOOL([*arguments, '--out', str(out)]) == 0
    assert (out / 'gallery.png').is_file()
