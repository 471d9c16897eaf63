# SPDX-License-Identifier: Apache-2.0
"""--cfg-options: paths as they are, everything else as mmengine reads it."""

import argparse

import pytest

from clusterplug.core.config_options import ConfigOptions, parse_value


def parse(*options):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions)
    return parser.parse_args(['--cfg-options', *options]).cfg_options


PATHS = [
    'my data', '/a, b/c', 'a,b', '[x] data', 'data [v2]', '(old) data (1)', '[data]', "it's", '"x" and "y"',
    'Ünïcode ß', ' leading and trailing ', '2024', 'a=b', "x']", '1,2', 'C:\\data', 'a(b', '',
]  # fmt: skip


@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize(
    'key', ['data_root', 'train_dataloader.dataset.data_root', 'a.ann_file', 'load_from', 'data_prefix.pts', 'work_dir']
)
def test_paths_stay_as_they_are(key, path):
    assert parse(f'{key}={path}') == {key: path}


def test_paths_in_quotes_none_and_lists_of_files():
    assert parse_value('data_root', "'my data'") == 'my data'
    assert parse_value('data_root', '"[a, b]"') == '[a, b]'
    assert parse_value('load_from', 'None') is None
    assert parse_value('ann_file', '[a b.csv,"c,d.csv"]') == ['a b.csv', 'c,d.csv']


@pytest.mark.parametrize(
    'text',
    [
        '1', '-2', '1e-3', '0.5', 'true', 'False', 'None', 'word', 'clusterplug.X', '1,2,3', 'a,b', '[1,2]', '[a,b,c]',
        '(0.9,0.99)', '[(1,2),[a,b],c]', '[[1]]', '[]', '()', '(1,)', '[(V1,V2),(V3,V4)]', '1,', 'nan',
        'a:b', '10.0.0.1', 'mmdet3d::x', '[True,None]', '"[(1,2)]"', "'word'", 'SGD',
    ],
)  # fmt: skip
def test_everything_else_is_read_as_mmengine_does(text):
    config = pytest.importorskip('mmengine.config')
    expected, got = config.DictAction._parse_iterable(text), parse_value('x.y', text)
    assert repr(got) == repr(expected)


def test_blanks_stay_inside_and_not_around_items():
    assert parse_value('name', 'two words') == 'two words'
    assert parse_value('names', '[two words, three]') == ['two words', 'three']
    assert parse_value('text', 'first, second part') == 'first, second part'
    assert parse_value('lr', ' 3 ') == 3
    assert parse_value('text', '"5"') == '5'
    assert parse_value('x', '(1,2),(3,4)') == [(1, 2), (3, 4)]  # on which mmengine never ends


@pytest.mark.parametrize('key', ['dropout', 'model.drop_path', 'a.profile', 'backbone.layout', 'checkpoint.interval'])
def test_numbers_of_names_that_look_like_paths(key):
    assert parse(f'{key}=0.5') == {key: 0.5}
    assert parse(f'a.{key}=1') == {f'a.{key}': 1}
    assert parse_value('save_file', 'True') is True


def test_several_options_and_repeats():
    assert parse('a=1', 'b.c=x y', 'a=2') == {'a': 2, 'b.c': 'x y'}
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, default={})
    default = parser.get_default('cfg_options')
    assert parser.parse_args(['--cfg-options', 'a=1', '--cfg-options', 'b=2']).cfg_options == {'a': 1, 'b': 2}
    assert default == {}


@pytest.mark.parametrize('option', ['novalue', '=x', 'hooks=[dict(type="X", a=1)]'])
def test_what_it_is_not(option, capsys):
    with pytest.raises(SystemExit):
        parse(option)
    assert '--cfg-options' in capsys.readouterr().err
