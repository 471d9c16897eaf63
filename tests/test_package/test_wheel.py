# SPDX-License-Identifier: Apache-2.0
"""The wheel: what is in it, and that an installed package finds its configs without a checkout."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIG_PACKAGES = sysconfig.get_path('purelib')
PROBE = 'point_cluster/probe_of_the_wheel.py'

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of what is packaged, with one more config, so that building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp('source')
    for name in ('clusterplug', 'configs', 'tools'):
        ignored = shutil.ignore_patterns('__pycache__', '.mim')
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'NOTICE', 'model-index.yml'):
        shutil.copy(ROOT / name, folder / name)
    config = folder / 'configs' / PROBE
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("number = 41\nloss = dict(type='clusterplug.PointClusterLoss')\n")
    return folder


def build(source, target):
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', target, source]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = target.glob('clusterplug-*.whl')
    return wheel


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    return build(source, tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """Python of a fresh environment with the wheel; the big packages are borrowed from the one that runs the tests."""
    venv = tmp_path_factory.mktemp('installed') / 'venv'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', venv], check=True)
    (site,) = venv.glob('lib/python*/site-packages')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # A path file below site-packages: the wheel comes first, and an editable checkout is not followed.
    (site / 'big_packages.pth').write_text(BIG_PACKAGES + '\n')
    return venv / 'bin' / 'python'


def run(python, code, folder):
    result = subprocess.run([str(python), '-c', code], capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_wheel_holds_configs_tools_and_the_index(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {'clusterplug/.mim/model-index.yml', f'clusterplug/.mim/configs/{PROBE}'} <= names
    for folder in ('configs', 'tools'):
        for path in (ROOT / folder).rglob('*'):
            relative = path.relative_to(ROOT)
            if path.suffix in ('.py', '.sh', '.yml') and not {'__pycache__', 'setup_env'} & set(relative.parts):
                assert f'clusterplug/.mim/{relative}' in names
    assert not [name for name in names if '__pycache__' in name or 'setup_env' in name or name.startswith('tests')]


def test_the_wheel_holds_every_module(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / 'clusterplug').rglob('*.py'):
        if '.mim' not in path.parts:
            assert str(path.relative_to(ROOT)) in names


def test_the_metadata_asks_for_torch_and_numpy_alone(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
    lines = archive.read(name).decode().splitlines()
    needs = [line.split(': ')[1] for line in lines if line.startswith('Requires-Dist')]
    assert sorted(need for need in needs if 'extra ==' not in need) == ['numpy>=1.24', 'torch>=2.4']
    extras = {line.split(': ')[1] for line in lines if line.startswith('Provides-Extra')}
    assert extras == {'mmdet3d', 'vit', 'video', 'estimators', 'vis', 'test', 'docs', 'hosts', 'all'}


def test_licence_and_notice_are_in_the_wheel(wheel):
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    metadata = archive.read(next(name for name in names if name.endswith('METADATA'))).decode()
    assert 'License-Expression: Apache-2.0' in metadata
    for name in ('LICENSE', 'NOTICE'):
        (stored,) = (each for each in names if each.endswith(f'licenses/{name}'))
        assert archive.read(stored) == (ROOT / name).read_bytes()


def test_links_of_shipped_pages_resolve_in_the_source_distribution(tmp_path):
    listed = subprocess.run(['git', 'ls-files', '-z'], capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip('not a checkout: nothing tells which files belong to the project')
    files = [name for name in listed.stdout.split('\0') if (ROOT / name).is_file()]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    code = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    built = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    (archive,) = (tmp_path / 'dist').glob('*.tar.gz')
    with tarfile.open(archive) as content:
        shipped = {name.partition('/')[2] for name in content.getnames()}
    pages = [name for name in files if name.endswith('.md') and name in shipped]
    assert len(pages) > 10
    missing = []
    for page in pages:
        for link in re.findall(r'\]\(([^)#:\s]+)(?:#[^)]*)?\)', (ROOT / page).read_text()):
            target = os.path.normpath(os.path.join(os.path.dirname(page), link))
            if (ROOT / target).is_file() and target not in shipped:
                missing.append((page, target))
    assert missing == []
    assert {'LICENSE', 'NOTICE', 'CHANGELOG.md', 'SECURITY.md'} <= shipped


def test_a_second_build_forgets_what_was_removed(source, tmp_path):
    stale = source / 'configs' / 'stale.py'
    stale.write_text('x = 1\n')
    (tmp_path / 'first').mkdir()
    build(source, tmp_path / 'first')
    stale.unlink()
    (tmp_path / 'second').mkdir()
    second = build(source, tmp_path / 'second')
    assert 'clusterplug/.mim/configs/stale.py' not in zipfile.ZipFile(second).namelist()


def test_an_installed_package_is_the_one_that_is_imported(installed, tmp_path):
    place = Path(run(installed, 'import clusterplug; print(clusterplug.__file__)', tmp_path))
    assert ROOT not in place.parents


LOAD = """
import clusterplug.registry
from mmengine.config import Config
from mmengine.hub import get_config
cfg = get_config('clusterplug::{name}')
"""


def test_configs_of_an_installed_package_are_found_by_name(installed, tmp_path):
    pytest.importorskip('mmengine')
    (tmp_path / 'mine.py').write_text(f"_base_ = ['clusterplug::{PROBE}']\nnumber = 42\n")
    code = LOAD.format(name=PROBE) + "print(cfg.number, Config.fromfile('mine.py').number, cfg.loss.type)"
    assert run(installed, code, tmp_path) == '41 42 clusterplug.PointClusterLoss'


def bases_that_are_absent(path):
    """Packages of ``package::config`` bases that are not installed: mmsegmentation and mmpretrain need not be."""
    text = path.read_text()
    absent = [name for name in re.findall(r"'(\w+)::", text) if importlib.util.find_spec(name) is None]
    for base in re.findall(r"'(\.[\w./-]+\.py)'", text):
        absent += bases_that_are_absent((path.parent / base).resolve())
    return absent


def test_every_config_of_an_installed_package_loads(installed, tmp_path):
    pytest.importorskip('mmdet3d')
    paths = [path for path in sorted((ROOT / 'configs').glob('[a-z]*/*.py')) if not bases_that_are_absent(path)]
    names = [str(path.relative_to(ROOT / 'configs')) for path in paths]
    assert {'point_cluster', 'centerclip', 'fec'} <= {path.parent.name for path in paths}
    code = LOAD.format(name=PROBE) + f"for name in {names}: get_config('clusterplug::' + name)\nprint('loaded')"
    assert run(installed, code, tmp_path).splitlines()[-1] == 'loaded'


def test_the_command_line_works_without_a_checkout(installed, tmp_path):
    result = subprocess.run([installed, '-m', 'clusterplug', '--version'], capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout.strip() == run(sys.executable, 'import clusterplug; print(clusterplug.__version__)', ROOT)


def test_an_editable_checkout_finds_its_configs_too(source, tmp_path):
    """What `pip install -e .` leaves: links in the checkout, and a name of the distribution elsewhere on the path."""
    pytest.importorskip('mmengine')
    command = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-build-isolation', '--no-index']
    venv = tmp_path / 'venv'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', venv], check=True)
    (site,) = venv.glob('lib/python*/site-packages')
    (site / 'big_packages.pth').write_text(BIG_PACKAGES + '\n')
    prefixed = [command[0], '-m', 'pip', '--python', venv / 'bin' / 'python', *command[3:], '-e', source]
    result = subprocess.run(list(map(str, prefixed)), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (source / 'clusterplug' / '.mim' / 'configs').is_symlink()
    place = run(venv / 'bin' / 'python', 'import clusterplug; print(clusterplug.__file__)', tmp_path)
    assert Path(place) == source / 'clusterplug' / '__init__.py'
    code = LOAD.format(name=PROBE) + 'print(cfg.number)'
    assert run(venv / 'bin' / 'python', code, tmp_path) == '41'


# torch, numpy, and what they need themselves; the folders of `pip install torch numpy`.
CORE = (
    'torch', 'torchgen', 'functorch', 'numpy', 'numpy.libs', 'typing_extensions.py', 'sympy', 'mpmath', 'networkx',
    'jinja2', 'markupsafe', 'filelock', 'fsspec', 'nvidia', 'triton', 'cuda', 'packaging',
)  # fmt: skip


def test_the_pure_torch_part_works_with_torch_and_numpy_alone(wheel, tmp_path):
    """`pip install .` without extras: kernels and losses compute, the doctor is content and names what is missing."""
    borrowed = tmp_path / 'borrowed'
    borrowed.mkdir()
    for pattern in (*CORE, 'torch-*.dist-info', 'numpy-*.dist-info'):
        for path in Path(BIG_PACKAGES).glob(pattern):
            (borrowed / path.name).symlink_to(path)
    venv = tmp_path / 'venv'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', venv], check=True)
    (site,) = venv.glob('lib/python*/site-packages')
    (site / 'borrowed.pth').write_text(f'{borrowed}\n')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    python = venv / 'bin' / 'python'

    code = (
        'import sys, torch\nfrom clusterplug.losses import PointClusterLoss\n'
        'loss = PointClusterLoss(num_classes=2, in_channels=8, num_clusters=3)\n'
        'terms = loss(torch.randn(100, 8), torch.randint(0, 2, (100,)))\n'
        "print(len(terms), {'mmengine', 'scipy', 'sklearn'} & set(sys.modules))"
    )
    assert run(python, code, tmp_path) == '3 set()'

    result = subprocess.run(
        [python, '-m', 'clusterplug', 'doctor', '--json'], capture_output=True, text=True, cwd=tmp_path
    )
    found = json.loads(result.stdout)
    assert found['problems'] == []
    assert result.returncode == 0
    states = {part['name']: part['state'] for part in found['parts']}
    assert states['pure-torch kernels'] == states['losses and layers'] == 'works'
    assert states['mmdet3d hosts'] == states['LiDAR city'] == states['documentation'] == 'not installed'
