# SPDX-License-Identifier: Apache-2.0
"""Every tool that writes: a full disk, a kill, a second run, links into the source and foreign files lose nothing."""

import ast
import contextlib
import importlib.util
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from clusterplug.core.outputs import LOCK, locked_folder
from clusterplug.testing import run_forked
from clusterplug.user_errors import run_tool

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
SCRIPTS = sorted(
    path
    for pattern in ('*.py', 'analysis_tools/*.py', 'model_converters/*.py')
    for path in TOOLS.glob(pattern)
    if not path.name.startswith('_')
)
GENERATOR = 'def make():\n    return lambda z: z.reshape(z.shape[0], 1, 2, 2)\n'
WORDS = """def samples(desc, n, rng):
    return [dict(desc, number=int(rng.integers(1000))) for _ in range(n)]

def pivots(desc, n, rng):
    return [dict({'color': 'rgb'[i % 3], 'size': i % 2}, **desc) for i in range(n)]
"""
SYNTHESIS = """tree = dict(max_depth=1, n_pivots=6, seed=4)
generator = dict(type='CallableGenerator', samples='words_of_a_test:samples', pivots='words_of_a_test:pivots',
                 attributes=dict(color=['r', 'g', 'b'], size=[0, 1]))
n_per_leaf = 2
"""


def load(name):
    spec = importlib.util.spec_from_file_location(Path(name).stem, TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(number, seed=0):
    return np.random.default_rng(seed).normal(size=(number, 4)).astype(np.float32)


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A folder of sources for all tools below."""
    folder = tmp_path / 'source'
    folder.mkdir()
    for name, shift in (('base', 0), ('one', 1), ('other', 2)):
        torch.save({'fc.weight': torch.eye(8) + shift}, folder / f'{name}.pth')
    np.save(folder / 'rows.npy', rows(20))
    (folder / 'shards').mkdir()
    np.save(folder / 'shards/a.npy', rows(30))
    np.save(folder / 'shards/b.npy', rows(12, 1))
    (folder / 'generator_of_a_test.py').write_text(GENERATOR)
    monkeypatch.syspath_prepend(str(folder))
    (folder / 'words_of_a_test.py').write_text(WORDS)
    (folder / 'synthesis.py').write_text(SYNTHESIS)
    arrays = folder / 'arrays.npy'
    np.save(arrays, np.random.default_rng(0).normal(size=(6, 3, 32, 32)).astype(np.float32))
    (folder / 'bank.py').write_text(f'inputs = {str(arrays)!r}\nviews = dict(one=dict(type="timm.test_resnet"))\n')
    return folder


# name, arguments for a source and a target, what is written, the source that a link could lead to
FOLDERS = {
    'cluster_embeddings': (
        lambda source, out: [source / 'shards', out, '--num-clusters', 3],
        ('centers.npy', 'counts.npy', 'labels/a.npy'),
        'shards',
    ),
    'cluster_labels': (
        lambda source, out: [source / 'shards', out, '--centers', source / 'rows.npy', '--num-labels', 2],
        ('centers.npy', 'labels.npy'),
        'shards',
    ),
    'embed': (lambda source, out: [source / 'bank.py', '--out', out], ('one.npy', 'bank.json'), None),
    'synthesize': (lambda source, out: [source / 'synthesis.py', '--out', out], ('samples.jsonl', 'tree.txt'), None),
    'analysis_tools/view_fec': (
        lambda source, out: ['demo', '--out', out, '--size', 32],
        ('demo.html', 'demo.png'),
        None,
    ),
}
FILES = {
    'merge_models': lambda source, out: [
        source / 'base.pth',
        source / 'one.pth',
        source / 'other.pth',
        '--out',
        out,
    ],
    'latent_directions': lambda source, out: [
        '--generator',
        'generator_of_a_test:make',
        '--shape',
        4,
        '--rank',
        2,
        '--null-rank',
        1,
        '--out',
        out,
    ],
    'analysis_tools/view_confusability': lambda source, out: [
        source / 'base.pth',
        '--subspace-dim',
        2,
        '--out',
        out,
    ],
    'analysis_tools/phase_transition': lambda source, out: [
        '--width',
        8,
        '--dims',
        2,
        2,
        '--ratios',
        2,
        '--noises',
        1,
        '--draws',
        1,
        '--out',
        out,
    ],
    'train_perceptual_clusterer': lambda source, out: [
        out,
        '--steps',
        1,
        '--plots',
        4,
        '--batch-size',
        2,
        '--test-plots',
        1,
        '--embed-dims',
        8,
    ],
}
ALL = [*FOLDERS, *FILES]


def command(name, source, out):
    make = FOLDERS[name][0] if name in FOLDERS else FILES[name]
    return [str(each) for each in make(source, out)]


NEEDS = {'embed': 'timm', 'synthesize': 'mmengine', 'analysis_tools/view_fec': 'matplotlib'}


def run(name, arguments):
    """Exit code and last words of a tool, as its command line would have them; any other error comes out."""
    pytest.importorskip(NEEDS.get(name, 'numpy'))
    try:
        return run_tool(lambda: load(name).main(arguments), name) or 0, ''
    except SystemExit as stop:
        return (0 if stop.code is None else 1, str(stop.code)) if not isinstance(stop.code, int) else (stop.code, '')


def target_of(name, tmp_path):
    return tmp_path / 'out' if name in FOLDERS else tmp_path / 'out' / 'result.npz'


def visible(folder):
    """{file: content} of what a user sees below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and not path.name.startswith('.')
    }


def one_sentence(text, name):
    assert 'Traceback' not in text
    lines = [line for line in text.splitlines() if any(word in line for word in ('error', Path(name).stem))]
    assert len(lines) >= 1, text
    return text


@contextlib.contextmanager
def room(size):
    """Files of at most ``size`` bytes, what a full disk is to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize('name', ALL)
def test_a_full_disk_is_an_error_that_names_the_file(name, inputs, tmp_path, capsys):
    target = target_of(name, tmp_path)
    size = 400 if name == 'synthesize' else 200  # mmengine copies the config
    with room(size):
        code, said = run(name, command(name, inputs, target))
    said = one_sentence(said + capsys.readouterr().err, name)
    assert code != 0
    assert str(tmp_path / 'out') in said
    assert any(word in said for word in ('not written', 'File too large', 'ulimit'))
    written = visible(tmp_path / 'out') if (tmp_path / 'out').exists() else {}
    assert all(len(content) <= size for content in written.values())
    assert not any(path.name.endswith('.part') for path in (tmp_path / 'out').rglob('*'))
    assert run(name, command(name, inputs, target))[0] == 0, 'the same command goes on when there is room'


@pytest.mark.parametrize('name', ALL)
def test_a_killed_run_is_done_again(name, inputs, tmp_path, capsys, monkeypatch):
    assert run(name, command(name, inputs, target_of(name, tmp_path / 'whole')))[0] == 0
    whole = visible(tmp_path / 'whole' / 'out')
    assert whole
    target, replace = target_of(name, tmp_path), os.replace
    target.parent.mkdir(exist_ok=True)
    for number in (1, 2, 3) if name in FOLDERS else (1,):

        def killed_at_a_rename(number=number):
            left = [number]

            def killed(*args, **options):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return replace(*args, **options)

            os.replace = killed
            return run(name, command(name, inputs, target))[0]

        assert run_forked(killed_at_a_rename) in (0, -signal.SIGKILL)
    assert run(name, command(name, inputs, target))[0] == 0
    again = visible(tmp_path / 'out')
    assert set(again) == set(whole)
    for file, content in whole.items():
        if file.endswith(('.npy', '.png', '.html', '.csv')):
            assert again[file] == content, file
    left = [path.name for path in (tmp_path / 'out').rglob('*') if path.name.endswith(('.part', '.partial'))]
    assert not left


@pytest.mark.parametrize('name', FOLDERS)
def test_a_second_run_in_one_folder_is_refused(name, inputs, tmp_path, capsys):
    with locked_folder(tmp_path / 'out'):
        code, said = run(name, command(name, inputs, tmp_path / 'out'))
    assert code == 1
    assert 'being written by another process' in said + capsys.readouterr().err
    assert not visible(tmp_path / 'out')


@pytest.mark.parametrize('name', FOLDERS)
def test_what_others_wrote_is_kept(name, inputs, tmp_path, capsys):
    file = tmp_path / 'out' / FOLDERS[name][1][0]
    file.parent.mkdir(parents=True)
    file.write_bytes(b'of the user')
    code, said = run(name, command(name, inputs, tmp_path / 'out'))
    assert code == 1
    said += capsys.readouterr().err
    assert file.name in said
    assert 'another' in said
    assert visible(tmp_path / 'out') == {file.name: b'of the user'}


@pytest.mark.parametrize('name', [name for name in FOLDERS if FOLDERS[name][2]])
def test_the_source_through_a_link_is_refused(name, inputs, tmp_path, capsys):
    (tmp_path / 'out').symlink_to(inputs / FOLDERS[name][2])
    before = visible(inputs)
    code, said = run(name, command(name, inputs, tmp_path / 'out'))
    assert code == 1
    assert 'only read' in said + capsys.readouterr().err
    assert visible(inputs) == before
    assert not (inputs / FOLDERS[name][2] / LOCK).exists()


@pytest.mark.parametrize('name', ['merge_models', 'analysis_tools/view_confusability'])
def test_a_source_file_is_not_the_target(name, inputs, tmp_path, capsys):
    (tmp_path / 'link.pth').symlink_to(inputs / 'base.pth')
    before = visible(inputs)
    for out in (inputs / 'base.pth', tmp_path / 'link.pth'):
        code, said = run(name, command(name, inputs, out))
        assert code == 1
        assert 'only read' in said + capsys.readouterr().err
    assert visible(inputs) == before


@pytest.mark.parametrize('name', ALL)
def test_something_else_in_the_place_of_the_output(name, inputs, tmp_path, capsys):
    target = target_of(name, tmp_path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if name in FOLDERS:
        target.write_text('a file')
    else:
        target.mkdir()
    code, said = run(name, command(name, inputs, target))
    assert code == 1
    said += capsys.readouterr().err
    assert str(target) in said
    assert ('a folder' if name in FOLDERS else 'must be a file') in said


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.stem)
def test_every_tool_ends_in_one_sentence(path):
    tree = ast.parse(path.read_text())
    guard = [node for node in tree.body if isinstance(node, ast.If) and '__main__' in ast.unparse(node.test)]
    assert len(guard) == 1, 'no guard'
    assert 'run_tool(' in ast.unparse(guard[0]), f'{path.name} must run under clusterplug.user_errors.run_tool'


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.stem)
def test_every_tool_writes_through_the_shared_writer(path):
    """No tool opens files for writing by itself, makes its output folder by itself or renames."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, 'id', '')
        assert name not in ('write_text', 'write_bytes') or isinstance(node.func, ast.Name), ast.unparse(node)
        assert name not in ('rename', 'rmtree'), ast.unparse(node)
        if name == 'open' and isinstance(node.func, ast.Name):
            mode = (
                node.args[1] if len(node.args) > 1 else next((k.value for k in node.keywords if k.arg == 'mode'), None)
            )
            assert mode is None or 'r' in ast.literal_eval(mode), ast.unparse(node)
