# SPDX-License-Identifier: Apache-2.0
"""The config text is the same program, in lines of a bearable length."""

import ast

import pytest
from hypothesis import given, strategies as st

from clusterplug.compat.mmengine import config_text
from clusterplug.compat.mmengine.config_text import WIDTH, format_config

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=60,
)


@given(values)
def test_values_stay_the_same(value):
    text = format_config(f'x = {value!r}')
    namespace = {}
    exec(text, namespace)
    assert namespace['x'] == value
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(f'x = {value!r}'))


def test_long_values_are_broken_one_element_a_line():
    text = format_config(f"model = dict(type='A', sizes={list(range(60))}, inner=dict(**{{'a b': 1}}, deep=(1, 2)))")
    lines = text.splitlines()
    assert lines[:3] == ['model = dict(', "    type='A',", '    sizes=[']
    assert lines[3:5] == ['        0,', '        1,']
    assert lines[-2:] == ["    inner=dict(**{'a b': 1}, deep=(1, 2)),", ')']
    assert max(map(len, lines)) <= WIDTH


def test_a_tuple_of_one_long_element_stays_a_tuple():
    value = ('a' * WIDTH,)
    assert ast.literal_eval(format_config(f'x = {value!r}').partition('=')[2].strip()) == value


def test_mmengine_writes_and_reads_it(tmp_path):
    config = pytest.importorskip('mmengine.config')
    config_text.WORKAROUND.apply()
    original = config.Config(
        dict(model=dict(type='A', classes=['class'] * 30, mapping={0: 19, 252: 0}, size=(1, 2)), lr=1e-3, name="it's")
    )
    original.dump(tmp_path / 'a.py')
    assert config.Config.fromfile(tmp_path / 'a.py')._cfg_dict == original._cfg_dict
    assert max(map(len, (tmp_path / 'a.py').read_text().splitlines())) <= WIDTH
    config_text.WORKAROUND.remove()
    yapf = original.pretty_text
    config_text.WORKAROUND.apply()
    assert ast.dump(ast.parse(original.pretty_text)) == ast.dump(ast.parse(yapf))


@pytest.mark.parametrize('ending', [KeyboardInterrupt, SystemExit(143)])
def test_an_interrupt_is_no_error_of_the_config(monkeypatch, ending):
    """Checkpoints hold the text, so that Ctrl-C often comes while it is made; mmengine called that a SyntaxError."""
    module = pytest.importorskip('mmengine.config.config')
    config_text.WORKAROUND.apply()

    def interrupted(*_, **__):
        raise ending

    monkeypatch.setattr(config_text, 'format_config', interrupted)
    with pytest.raises(ending if isinstance(ending, type) else SystemExit):
        _ = module.Config(dict(a=1)).pretty_text
    monkeypatch.setattr(config_text, 'format_config', lambda text: ast.parse('=') and text)
    monkeypatch.setattr(module, 'FormatCode', lambda *_, **__: ast.parse('='))
    with pytest.raises(SyntaxError, match='Failed to format'):
        _ = module.Config(dict(a=1)).pretty_text
