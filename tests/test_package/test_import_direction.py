# SPDX-License-Identifier: Apache-2.0
"""Maths knows no framework: every import of every file is read and compared with the table of the house."""

import ast
import functools
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'clusterplug'

MM = {'mmengine', 'mmcv', 'mmdet', 'mmdet3d', 'mmseg'}
HOSTS = {*MM, 'spconv'}
VIDEO = {'PIL', 'av', 'decord', 'lmdb', 'open_clip', 'pyarrow', 'torchcodec', 'transformers'}
EVERYTHING = None


class Rule(NamedTuple):
    """What an area may import from outside at module level, and what inside a function besides."""

    eager: set
    lazy: set | None = frozenset()
    inside: set | None = frozenset()  # areas of clusterplug


PURE = {'core', 'functional', 'losses', 'layers', 'memory', 'heads', 'estimators', 'registry'}
PLUGS = {*PURE, 'segmentors', 'detectors', 'retrieval', 'patch', 'hooks', 'datasets', 'evaluation', 'visualization'}
PLUGS |= {'backbones', 'checkpoints', 'compat'}
RULES = {
    '__init__': Rule({'torch'}, inside={'version'}),
    'version': Rule(set()),
    'dependencies': Rule(set()),
    '__main__': Rule(set(), inside={'version', 'doctor'}),
    'doctor': Rule(set(), EVERYTHING, {'doctor', 'dependencies', 'version', *PLUGS}),
    'core': Rule({'torch', 'numpy'}, inside={'core'}),
    'files': Rule(set(), inside={'core'}),
    'functional': Rule({'torch'}, {'numpy', 'scipy'}, {'core', 'functional'}),
    'losses': Rule({'torch'}, set(), PURE),
    'layers': Rule({'torch'}, set(), PURE),
    'memory': Rule({'torch'}, set(), PURE),
    'backbones': Rule({'torch'}, {'timm'}, {*PURE, 'backbones'}),
    'heads': Rule({'torch', *MM}, set(), PURE),
    'estimators': Rule({'torch', 'numpy'}, {'scipy', 'sklearn'}, {*PURE, 'version'}),
    'registry': Rule({'mmengine'}),
    'segmentors': Rule({'torch', *MM}, HOSTS, PLUGS),
    'detectors': Rule({'torch', *MM}, HOSTS, PLUGS),
    'patch': Rule({'torch'}, set(), {*PURE, 'patch'}),
    'retrieval': Rule({'torch', *MM}, {*HOSTS, 'faiss', 'open_clip', 'safetensors', 'transformers'}, PLUGS),
    'hooks': Rule({'torch', 'numpy', *MM}, {*HOSTS, 'matplotlib'}, PLUGS),
    'datasets': Rule({'torch', 'numpy', *MM}, {*HOSTS, *VIDEO, 'open3d', 'scipy', 'tqdm'}, PLUGS),
    'evaluation': Rule({'torch', 'numpy', *MM}, {*HOSTS, 'scipy', 'sklearn'}, PLUGS),
    'visualization': Rule({'torch', 'numpy'}, {*HOSTS, 'matplotlib', 'open3d', 'rerun'}, PLUGS),
    'compat': Rule(
        {'torch', 'numpy', *MM, 'spconv'}, HOSTS, {'compat', 'core', 'functional', 'version', 'visualization'}
    ),
    'user_errors': Rule(set(), inside={'core', 'dependencies'}),
    'checkpoints': Rule({'torch', *MM}, HOSTS, {'checkpoints', 'compat', 'core'}),
    'cli': Rule(set(), {'torch', *HOSTS}, {*PLUGS, 'dependencies', 'doctor', 'user_errors', 'version'}),
    'experiments': Rule({'numpy', *MM}, {'scipy', *HOSTS}, {*PLUGS, 'cli', 'experiments', 'user_errors', 'version'}),
    'testing': Rule({'torch', 'numpy', 'pytest', *MM}, EVERYTHING, {*PLUGS, 'testing'}),
}


class Import(NamedTuple):
    """One imported module, with the line, and whether it waits inside a function."""

    module: str
    line: int
    lazy: bool


@functools.cache
def imports_of(path, name):
    """Imports of a file; ``name`` is the dotted name of its module."""
    found = []

    def visit(node, lazy):
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                package = name.split('.') if path.name == '__init__.py' else name.split('.')[:-1]
                base = '.'.join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            found.append(Import(base, node.lineno, lazy))
            if base.split('.')[0] == 'clusterplug':  # `from clusterplug import compat`: the module is the second half
                found.extend(Import(f'{base}.{alias.name}', node.lineno, lazy) for alias in node.names)
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(path.read_text()), False)
    return found


def modules(package=PACKAGE):
    """{dotted name: file} of every module of the package."""
    found = {}
    for path in sorted(package.rglob('*.py')):
        parts = ['clusterplug', *path.relative_to(package).with_suffix('').parts]
        if '.mim' not in parts:
            found['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    return found


def area_of(module):
    parts = module.split('.')
    return parts[1] if len(parts) > 1 else '__init__'


def violations(name, path):
    """What a file imports although the table does not allow it."""
    rule, wrong = RULES[area_of(name)], []
    for module, line, lazy in imports_of(path, name):
        top = module.split('.')[0]
        if top == 'clusterplug':
            area = area_of(module)
            if area in RULES and area != '__init__' and rule.inside is not None and area not in rule.inside:
                wrong.append(f'{path}:{line} imports clusterplug.{area}; allowed: {sorted(rule.inside)}')
        elif top not in sys.stdlib_module_names and top not in rule.eager:
            if not lazy:
                wrong.append(f'{path}:{line} imports {top}; allowed at module level: {sorted(rule.eager)}')
            elif rule.lazy is not EVERYTHING and top not in rule.lazy:
                wrong.append(f'{path}:{line} imports {top}; allowed in a function: {sorted({*rule.eager, *rule.lazy})}')
    return list(dict.fromkeys(wrong))


def reached(name, files):
    """Modules that are executed when ``name`` is imported: its own imports, theirs, and all parent packages."""
    seen, todo = set(), [name]
    while todo:
        module = todo.pop()
        while module not in files and '.' in module:  # `from clusterplug.x import name`
            module = module.rpartition('.')[0]
        if module in seen or module not in files:
            continue
        seen.add(module)
        todo += ['.'.join(module.split('.')[:i]) for i in range(1, module.count('.') + 1)]
        todo += [each.module for each in imports_of(files[module], module) if not each.lazy]
    return seen


def test_every_file_keeps_to_the_table():
    files = modules()
    unknown = sorted({area_of(name) for name in files} - RULES.keys())
    assert unknown == [], 'a new area needs a row in the table of this test'
    assert [wrong for name, path in files.items() for wrong in violations(name, path)] == []


@pytest.mark.parametrize('area', ['functional', 'losses', 'layers', 'memory', 'estimators'])
def test_pure_areas_reach_mm_packages_through_the_registry_alone(area):
    files = modules()
    for name in files:
        if area_of(name) == area:
            for module in reached(name, files) - {'clusterplug.registry'}:
                hosts = {i.module.split('.')[0] for i in imports_of(files[module], module) if not i.lazy} & HOSTS
                assert not hosts, f'importing {name} executes {module}, which imports {hosts}'


@pytest.mark.parametrize(
    ('area', 'source', 'count'),
    [
        ('functional', 'import torch\nimport math\nfrom clusterplug.core.checks import check', 0),
        ('functional', 'def f():\n    import scipy.linalg', 0),
        ('functional', 'import scipy', 1),
        ('functional', 'import numpy as np', 1),
        ('functional', 'from clusterplug.losses import PointClusterLoss', 1),
        ('functional', 'from ..losses import PointClusterLoss', 1),
        ('functional', 'from clusterplug import losses', 1),
        ('functional', 'def f():\n    from clusterplug.registry import MODELS', 1),
        ('losses', 'from clusterplug.registry import MODELS\nfrom clusterplug.functional import sinkhorn', 0),
        ('losses', 'from mmengine.registry import MODELS', 1),
        ('losses', 'def f():\n    import mmengine', 1),
        ('losses', 'from clusterplug.hooks import X', 1),
        ('visualization', 'import matplotlib', 1),
        ('visualization', 'def f():\n    import matplotlib', 0),
    ],
)
def test_the_table_tells_good_from_bad(tmp_path, area, source, count):
    file = tmp_path / 'module.py'
    file.write_text(source)
    assert len(violations(f'clusterplug.{area}.module', file)) == count


def test_reached_follows_imports_through_packages(tmp_path):
    """The walk behind the test above finds a host three imports away, and not one that waits in a function."""
    sources = {
        '__init__.py': '',
        'losses/__init__.py': 'from clusterplug.losses.a import A',
        'losses/a.py': 'from ..heads import b',
        'heads/__init__.py': 'def f():\n    import clusterplug.hooks',
        'heads/b.py': 'import mmengine',
        'hooks/__init__.py': '',
    }
    for file, source in sources.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(source)
    files = modules(tmp_path)
    assert reached('clusterplug.losses', files) == {
        'clusterplug', 'clusterplug.losses', 'clusterplug.losses.a', 'clusterplug.heads', 'clusterplug.heads.b',
    }  # fmt: skip


def run(code):
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_importing_clusterplug_brings_torch_and_nothing_else():
    show = "; import sys; print(*{name.split('.')[0] for name in sys.modules})"
    added = run('import clusterplug' + show) - run('import torch' + show)
    assert added - set(sys.stdlib_module_names) == {'clusterplug'}


def test_pure_packages_import_without_any_host():
    blocked = sorted({*HOSTS, 'open3d', 'sklearn', 'scipy', 'matplotlib', 'pandas', 'cv2'})
    names = sorted({area_of(name) for name in modules()} & (PURE | {'compat'}))
    code = (
        f'import sys, importlib\nfor name in {blocked}: sys.modules[name] = None\n'
        f"for name in {names}: importlib.import_module('clusterplug.' + name); print(name)"
    )
    assert run(code) == set(names)
