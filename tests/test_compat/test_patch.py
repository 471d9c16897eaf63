# SPDX-License-Identifier: Apache-2.0
"""The mechanism of the workarounds: before or after the import of the host, twice, and back."""

import importlib
import sys

import pytest

from clusterplug import compat
from clusterplug.compat.workaround import Workaround

HOST = 'toy_host_of_a_workaround'
SOURCE = """
def greet():
    return 'host'

class Child(dict):
    @classmethod
    def name(cls):
        return 'host ' + cls.__name__
"""


def make_workaround():
    def patch(module):
        return [
            (module, 'greet', lambda: 'patched'),
            (module.Child, 'name', classmethod(lambda cls: 'patched ' + cls.__name__)),
            (module.Child, 'keys', lambda self: 'patched'),  # inherited: absent in the class itself
            (module, 'open', lambda: 'patched'),  # a builtin: absent in the module itself
        ]

    return Workaround('toy', HOST, patch, thread='', noted='', until='')


@pytest.fixture
def toy_host(tmp_path, monkeypatch):
    (tmp_path / f'{HOST}.py').write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, HOST, raising=False)
    yield HOST
    sys.modules.pop(HOST, None)


def check(module, word):
    assert module.greet() == word
    assert module.Child.name() == f'{word} Child'
    assert (module.Child().keys() == 'patched') == (word == 'patched')
    assert ('open' in vars(module)) == (word == 'patched')


@pytest.mark.parametrize('loaded_before', [True, False])
def test_a_host_is_patched_whenever_it_is_imported_and_restored(toy_host, loaded_before):
    workaround = make_workaround()
    module = importlib.import_module(toy_host) if loaded_before else None
    workaround.apply()
    assert workaround.active == loaded_before
    module = module or importlib.import_module(toy_host)
    check(module, 'patched')
    workaround.apply()
    workaround.remove()
    check(module, 'host')
    workaround.remove()
    workaround.apply()
    check(module, 'patched')
    workaround.remove()


def test_a_workaround_removed_before_the_import_never_applies(toy_host):
    workaround = make_workaround()
    workaround.apply()
    workaround.remove()
    check(importlib.import_module(toy_host), 'host')
    assert not workaround.active


def test_a_host_that_fails_to_import_says_so_itself(toy_host, tmp_path):
    (tmp_path / f'{toy_host}.py').write_text('raise RuntimeError("broken host")')
    workaround = make_workaround()
    workaround.apply()
    with pytest.raises(RuntimeError, match='broken host'):
        importlib.import_module(toy_host)
    workaround.remove()


def test_every_workaround_tells_where_when_and_until():
    found = compat.workarounds()
    assert len({w.name for w in found}) == len(found)
    for workaround in found:
        host = workaround.host.split('.')[0]  # the folder it lies in
        module = importlib.import_module(f'clusterplug.compat.{host}.{workaround.name}')
        assert module.WORKAROUND is workaround
        assert len(module.__doc__.splitlines()[0]) > 40
        assert workaround.noted.startswith('20')
        assert workaround.until
        assert workaround.thread == '' or '#' in workaround.thread


def test_apply_all_imports_no_host():
    code = (
        'import sys; from clusterplug import compat; before = set(sys.modules)\n'
        'compat.apply_all(); compat.apply_all()\n'
        'new = {name.split(".")[0] for name in set(sys.modules) - before}\n'
        'assert not new & {"mmengine", "mmdet3d", "spconv", "mmcv"}, new'
    )
    importlib.import_module('subprocess').run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize(
    'build',
    [
        'WithClustering(model, dict(type="clusterplug.PointClusterLoss"))',
        'WithSampleWeights(model, likelihood="none.json")',
        'swap_classifier(model, dict(type="clusterplug.GrassmannHead"))',
    ],
)
def test_a_build_that_fails_leaves_no_workaround_behind(build):
    code = (
        'import warnings; warnings.simplefilter("ignore")\n'
        'from clusterplug import compat\n'
        'from clusterplug.attach import WithClustering, WithSampleWeights, swap_classifier\n'
        'model = dict(type="NoSuchModel")\n'
        'assert not compat.applied()\n'
        f'try:\n    {build}\n'
        'except KeyError:\n    pass\n'
        'assert not compat.applied() and not any(w.active for w in compat.workarounds())\n'
        'compat.apply_all()\n'
        f'try:\n    {build}\n'
        'except KeyError:\n    pass\n'
        'assert compat.applied()  # the caller switched them on, the caller switches them off'
    )
    importlib.import_module('subprocess').run([sys.executable, '-c', code], check=True)


def test_workarounds_that_are_switched_on_are_said_once_and_stay(monkeypatch):
    pytest.importorskip('mmengine')
    said = []
    monkeypatch.setattr('mmengine.logging.print_log', lambda text, **options: said.append(text))
    compat.remove_all()
    try:
        with compat.switched_on():
            assert compat.applied()
        with compat.switched_on():
            pass
        assert compat.applied()
        assert len(said) == 1
        assert 'remove_all() takes them back' in said[0]
    finally:
        compat.remove_all()
