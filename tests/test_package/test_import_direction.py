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


# The rooms, from the ground up. A file imports rooms before its own, and its own.
ORDER = (
    'version', 'dependencies', 'core', 'files', 'functional', 'registry', 'user_errors', 'layers', 'heads', 'memory',
    'losses', 'optim', 'backbones', 'estimators', 'visualization', 'compat', 'checkpoints', 'patch', 'pretraining',
    'analysis', 'fusion', 'datasets', 'attach', 'segmentors', 'detectors', 'evaluation', 'retrieval', 'hooks', 'doctor',
    'cli', 'experiments', 'testing', '__main__',
)  # fmt: skip
# The topics of functional: a topic imports those of an earlier row, through their face.
TOPICS = (
    ('distance',),
    ('kmeans', 'transport', 'contrast', 'tokens', 'features', 'subspace', 'metrics'),
    ('kmedoids',),
    ('graph',),
)
# Rooms that others may look into only for a reason: who may import them.
GUESTS = {
    'visualization': {'compat', 'analysis', 'hooks', 'doctor', 'experiments', 'visualization'},
    'compat': {'checkpoints', 'attach', 'evaluation', 'doctor', 'cli', 'testing', 'compat'},
}


class Rule(NamedTuple):
    """What a room may import from outside: at module level, and what inside a function besides."""

    eager: set
    lazy: set | None = frozenset()


PURE = {'core', 'functional', 'losses', 'layers', 'memory', 'heads', 'optim', 'estimators', 'registry'}
RULES = {
    '__init__': Rule({'torch'}),
    '__main__': Rule(set()),
    'analysis': Rule({'torch', 'numpy'}, {*HOSTS, 'scipy', 'sklearn', 'tqdm'}),
    'attach': Rule({'torch', *MM}, HOSTS),
    'backbones': Rule({'torch'}, {'timm'}),
    'checkpoints': Rule({'torch', *MM}, HOSTS),
    'cli': Rule(set(), {'torch', *HOSTS}),
    'compat': Rule({'torch', 'numpy', *MM, 'spconv'}, HOSTS),
    'core': Rule({'torch', 'numpy'}),
    'datasets': Rule({'torch', 'numpy', *MM}, {*HOSTS, *VIDEO, 'nibabel', 'open3d', 'scipy', 'torchvision', 'tqdm'}),
    'dependencies': Rule(set()),
    'detectors': Rule(set()),
    'doctor': Rule(set(), EVERYTHING),
    'estimators': Rule({'torch', 'numpy'}, {'scipy', 'sklearn', 'tqdm'}),
    'evaluation': Rule({'torch', 'numpy', *MM}, {*HOSTS, 'scipy', 'sklearn'}),
    'experiments': Rule({'numpy', *MM}, {'scipy', *HOSTS}),
    'files': Rule(set()),
    'functional': Rule({'torch'}, {'numpy', 'scipy'}),
    'fusion': Rule({'torch'}, {*HOSTS, 'tqdm'}),
    'heads': Rule({'torch', *MM}),
    'hooks': Rule({'torch', 'numpy', *MM}, {*HOSTS, 'matplotlib', 'sklearn'}),
    'layers': Rule({'torch'}),
    'losses': Rule({'torch'}),
    'memory': Rule({'torch'}),
    'optim': Rule({'torch'}, {'mmengine'}),
    'patch': Rule({'torch'}),
    'pretraining': Rule({'torch', *MM}, {*HOSTS, 'diffusers', 'timm', 'torchvision'}),
    'registry': Rule({'mmengine'}),
    'retrieval': Rule({'torch', *MM}, {*HOSTS, 'faiss', 'open_clip', 'safetensors', 'transformers'}),
    'segmentors': Rule(set()),
    'testing': Rule({'torch', 'numpy', 'pytest', *MM}, EVERYTHING),
    'user_errors': Rule(set()),
    'version': Rule(set()),
    'visualization': Rule({'torch', 'numpy'}, {*HOSTS, 'matplotlib', 'open3d', 'rerun', 'sklearn'}),
}


class Import(NamedTuple):
    """One imported module, with the line, and whether it waits inside a function."""

    module: str
    line: int
    lazy: bool
    name: bool = False  # `from package import name`: a module or anything else of that name


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
                found.extend(Import(f'{base}.{alias.name}', node.lineno, lazy, True) for alias in node.names)
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


def room_may_import(area, other):
    """Whether a file of a room may import another room of the package."""
    if other == area or area == '__init__' or other not in ORDER:
        return True
    return ORDER.index(other) < ORDER.index(area) and area in GUESTS.get(other, ORDER)


def violations(name, path, known=None):
    """What a file imports although the lists above do not allow it. ``known``: names of all modules."""
    rule, wrong = RULES[area_of(name)], []
    for module, line, lazy, is_name in imports_of(path, name):
        top = module.split('.')[0]
        if top == 'clusterplug':
            area = area_of(module)
            if area in RULES and not room_may_import(area_of(name), area):
                wrong.append(f'{path}:{line} imports clusterplug.{area}, a room above its own or with few guests')
            wrong += folder_violations(name, path, module, line, known or (), is_name)
        elif top not in sys.stdlib_module_names and top not in rule.eager:
            if not lazy:
                wrong.append(f'{path}:{line} imports {top}; allowed at module level: {sorted(rule.eager)}')
            elif rule.lazy is not EVERYTHING and top not in rule.lazy:
                wrong.append(f'{path}:{line} imports {top}; allowed in a function: {sorted({*rule.eager, *rule.lazy})}')
    return list(dict.fromkeys(wrong))


def folder_violations(name, path, module, line, known, is_name):
    """A private file is for its folder; topics of functional meet through faces, from the bottom up."""
    folder = name if path.name == '__init__.py' else name.rpartition('.')[0]
    parts = module.split('.')
    for place, part in list(enumerate(parts))[-1 if is_name else 0 :]:
        private = part.startswith('_') and not part.endswith('__') and '.'.join(parts[: place + 1]) in known
        if private and not f'{folder}.'.startswith('.'.join(parts[:place]) + '.'):
            return [f'{path}:{line} imports {module}, which is private to its folder']
    rank = {topic: number for number, row in enumerate(TOPICS) for topic in row}
    if parts[:2] != ['clusterplug', 'functional'] or len(parts) < 3 or parts[2] not in rank:
        return []
    own = name.split('.')[2] if name.startswith('clusterplug.functional.') else None
    if own == parts[2] or name == 'clusterplug.functional':
        return []
    if len(parts) > 3 and module in known and not is_name:
        return [f'{path}:{line} imports {module}; from outside, import clusterplug.functional.{parts[2]}']
    if own is not None and rank[parts[2]] >= rank[own]:
        return [f'{path}:{line} imports the topic {parts[2]}, which is not below {own}']
    return []


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
    assert unknown == [], 'a new room needs a row in the table of this test, and a place in the order'
    assert {*RULES} == {*ORDER, '__init__'}
    assert {path.name for path in (PACKAGE / 'functional').iterdir() if path.is_dir()} - {'__pycache__'} == {
        topic for row in TOPICS for topic in row
    }
    assert [wrong for name, path in files.items() for wrong in violations(name, path, files)] == []


@pytest.mark.parametrize('area', ['functional', 'losses', 'layers', 'memory', 'optim', 'estimators'])
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


@pytest.mark.parametrize(
    ('name', 'source', 'count'),
    [
        ('functional.kmeans.kmeans', 'from clusterplug.functional.distance import pairwise_distances', 0),
        ('functional.kmeans.kmeans', 'from clusterplug.functional.distance.distances import pairwise_distances', 1),
        ('functional.kmeans.kmeans', 'from clusterplug.functional.kmeans._cpu import lloyd_cpu', 0),
        ('functional.kmeans.kmeans', 'from clusterplug.functional.graph import linkage', 1),
        ('functional.kmeans.kmeans', 'from clusterplug.functional.transport import sinkhorn', 1),
        ('functional.graph.spectral', 'from clusterplug.functional.transport import sinkhorn', 0),
        ('losses.x', 'from clusterplug.functional.transport import sinkhorn', 0),
        ('losses.x', 'from clusterplug.functional.transport.sinkhorn import sinkhorn', 1),
        ('losses.x', 'from clusterplug.functional.kmeans._cpu import lloyd_cpu', 1),
        ('losses.x', 'from clusterplug.layers._tokens import anything', 1),
        ('memory.x', 'from clusterplug.losses import PointClusterLoss', 1),
        ('evaluation.x', 'from clusterplug.visualization import anything', 1),
    ],
)
def test_private_files_and_topics_stay_behind_their_faces(tmp_path, name, source, count):
    file = tmp_path / 'module.py'
    file.write_text(source)
    assert len(violations(f'clusterplug.{name}', file, modules())) == count


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
