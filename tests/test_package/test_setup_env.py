# SPDX-License-Identifier: Apache-2.0
"""The set-up: what counts as installed, what an interruption leaves, when a step is skipped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools' / 'setup_env'


@pytest.fixture
def tools(monkeypatch):
    """Modules of the set-up, which are no package."""
    monkeypatch.syspath_prepend(str(TOOLS))
    names = ('installed', 'progress', 'install_mmcv')
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield {name: __import__(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def venv(tmp_path):
    (tmp_path / 'lib' / 'python3.11' / 'site-packages').mkdir(parents=True)
    return tmp_path


def install(venv, name, version, files=None, complete=True):
    """Lay out a package as pip does; an interrupted pip has not written INSTALLER yet."""
    site = venv / 'lib' / 'python3.11' / 'site-packages'
    info = site / f'{name}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Name: {name}\nVersion: {version}\n')
    rows = []
    for file, text in (files or {}).items():
        (site / file).parent.mkdir(exist_ok=True)
        (site / file).write_text(text)
        rows.append(f'{file},sha256=x,{len(text)}')
    (info / 'RECORD').write_text('\n'.join([*rows, f'{info.name}/RECORD,,']) + '\n')
    if complete:
        (info / 'INSTALLER').write_text('pip\n')
    return info


def test_pins_follow_included_files_and_skip_options(tools, tmp_path):
    (tmp_path / 'a.txt').write_text('# why\n--only-binary numpy\nNumPy==2.3.5  # comment\n-r b.txt\nscipy>=1\n')
    (tmp_path / 'b.txt').write_text('scikit_learn==1.9.0\n')
    assert tools['installed'].pins(tmp_path / 'a.txt') == {'numpy': '2.3.5', 'scikit-learn': '1.9.0'}


def test_missing_pins(tools, venv, tmp_path):
    install(venv, 'torch', '2.11.0+cpu')
    install(venv, 'scikit_learn', '1.9.0')
    install(venv, 'numpy', '2.4.0')
    install(venv, 'open3d', '0.19.0', complete=False)
    file = tmp_path / 'pins.txt'
    file.write_text('torch==2.11.0\nscikit-learn==1.9.0\nnumpy==2.3.5\nopen3d==0.19.0\nmmdet==3.3.0\n')
    assert tools['installed'].missing_pins(venv, [file]) == ['numpy==2.3.5', 'open3d==0.19.0', 'mmdet==3.3.0']


def test_an_environment_that_is_not_there_lacks_everything(tools, tmp_path):
    (tmp_path / 'pins.txt').write_text('torch==2.11.0\n')
    assert tools['installed'].missing_pins(tmp_path / 'none', [tmp_path / 'pins.txt']) == ['torch==2.11.0']


def test_remove_broken_finds_what_an_interruption_left(tools, venv):
    site = venv / 'lib' / 'python3.11' / 'site-packages'
    whole = install(venv, 'whole', '1', {'whole/__init__.py': 'x = 1'})
    unfinished = install(venv, 'unfinished', '2', {'unfinished/__init__.py': ''}, complete=False)
    short = install(venv, 'short', '3', {'short/__init__.py': 'x = 1', 'short/data.bin': '0123456789'})
    lost = install(venv, 'lost', '4', {'lost/__init__.py': ''})
    (site / 'short' / 'data.bin').write_text('0123')
    (site / 'lost' / '__init__.py').write_text('grown')
    lost_record = (lost / 'RECORD').read_text()
    (lost / 'RECORD').write_text(lost_record + 'lost/gone.py,sha256=x,12\n')
    (site / '~umpy').mkdir()
    assert tools['installed'].remove_broken(venv) == ['lost-4', 'short-3', 'unfinished-2']
    assert whole.exists()
    assert [path for path in (unfinished, short, lost, site / '~umpy') if path.exists()] == []
    assert tools['installed'].remove_broken(venv) == []


def test_bytecode_may_change(tools, venv):
    install(venv, 'compiled', '1', {'compiled/a.pyc': 'old'})
    (venv / 'lib' / 'python3.11' / 'site-packages' / 'compiled' / 'a.pyc').write_text('newer')
    assert tools['installed'].remove_broken(venv) == []


@pytest.mark.parametrize(
    ('line', 'text'),
    [
        ('Collecting torch==2.11.0 (from -r torch.txt)', 'looking for torch==2.11.0'),
        ('  Downloading torch-2.11.0-cp311-cp311-linux_x86_64.whl (530.6 MB)', 'torch-2.11.0 (530.6 MB)'),
        ('  Using cached addict-2.4.0-py3-none-any.whl (3.8 kB)', 'addict-2.4.0 (3.8 kB)'),
        ('Processing /some/folder/mmcv-2.1.0-cp311-cp311-linux_x86_64.whl', 'mmcv-2.1.0'),
        ('  [31/77] c++ -MMD -MF x', 'compiled 30 of 77 files'),
        ('Installing collected packages: a, b, c', 'installing 3 packages'),
        ('  warning: something', None),
    ],
)
def test_describe(tools, line, text):
    assert tools['progress'].describe(line) == text


def test_a_failed_command_tells_its_end_and_its_log(tools, tmp_path):
    log = tmp_path / 'logs' / 'step.log'
    with pytest.raises(tools['progress'].CommandFailed, match='code 3') as caught:
        tools['progress'].run([sys.executable, '-c', 'print("no space left"); raise SystemExit(3)'], log, expected=1)
    assert 'no space left' in str(caught.value)
    assert str(log) in str(caught.value)
    assert log.read_text() == 'no space left\n'


def test_an_interruption_ends_the_command_with_its_children(tmp_path):
    """What Ctrl-C or `kill` does to a set-up whose pip has started a compiler."""
    child = 'import time, pathlib; pathlib.Path("started").touch(); time.sleep(60); pathlib.Path("survived").touch()'
    parent = f'import subprocess, sys; subprocess.run([sys.executable, "-c", {child!r}])'
    driver = (
        f'import sys, signal; sys.path.insert(0, {str(TOOLS)!r})\n'
        'signal.signal(signal.SIGINT, signal.default_int_handler)\n'
        'from pathlib import Path; from progress import run\n'
        f'run([sys.executable, "-c", {parent!r}], Path("log"), expected=60)'
    )
    process = subprocess.Popen([sys.executable, '-c', driver], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / 'started').exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert 'KeyboardInterrupt' in error
    still = subprocess.run(['ps', '-eo', 'args'], capture_output=True, text=True).stdout
    assert 'pathlib.Path("survived")' not in still


class TestMain:
    """The steps themselves, on a copy of the set-up with a small requirement file and no network."""

    @pytest.fixture
    def house(self, tmp_path):
        for name in ('tools/setup_env', 'requirements'):
            (tmp_path / name).mkdir(parents=True)
        for file in TOOLS.glob('*.[ps][yh]'):
            (tmp_path / 'tools' / 'setup_env' / file.name).write_bytes(file.read_bytes())
        for file in (ROOT / 'requirements').glob('*.txt'):
            (tmp_path / 'requirements' / file.name).write_text('')
        return tmp_path

    def start(self, house, *groups, **env):
        command = ['sh', str(house / 'tools' / 'setup_env' / 'run.sh'), *groups]
        env = {**os.environ, 'PYTHON': sys.executable, 'PIP_NO_INDEX': '1', **env}
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=house)

    @pytest.mark.slow
    def test_second_start_does_nothing_and_a_changed_pin_does(self, house):
        first = self.start(house, 'lint')
        assert first.returncode == 0, first.stderr
        assert '[2/2] ruff and mypy' in first.stdout
        second = self.start(house, 'lint')
        assert (second.returncode, second.stdout) == (0, '')
        (house / 'requirements' / 'lint.txt').write_text('no-such-package-of-clusterplug==1.0\n')
        third = self.start(house, 'lint')
        assert third.returncode == 1
        assert '[1/2] virtual environment .venv: done before' in third.stdout
        assert 'No matching distribution found' in third.stderr
        assert 'the same command goes on from here' in third.stderr
        (house / 'requirements' / 'lint.txt').write_text('')
        assert self.start(house, 'lint').stdout == ''

    @pytest.mark.slow
    def test_a_half_made_environment_is_made_anew(self, house):
        (house / '.venv').mkdir()
        (house / '.venv' / 'pyvenv.cfg').write_text('home = nowhere\n')
        assert self.start(house, 'lint').returncode == 0
        assert (house / '.venv' / 'bin' / 'python').exists()

    def test_a_folder_that_is_no_environment_is_left_alone(self, house):
        (house / '.venv').mkdir()
        (house / '.venv' / 'thesis.tex').write_text('precious')
        result = self.start(house, 'lint')
        assert result.returncode == 1
        assert 'is no virtual environment; move it away' in result.stderr
        assert (house / '.venv' / 'thesis.tex').read_text() == 'precious'

    def test_unknown_groups_and_choices_are_named(self, house):
        result = self.start(house, 'everything')
        assert result.returncode == 2
        assert 'groups are host, test, lint, types, docs; got everything' in result.stderr
        result = self.start(house, 'host', CLUSTERPLUG_SPCONV='gpu')
        assert "CLUSTERPLUG_SPCONV is 'gpu'; allowed: cpu, cuda" in result.stderr

    def test_a_python_out_of_range_is_refused(self, house):
        old = house / 'python'
        old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1 && exit 0\nexit 1\n')
        old.chmod(0o755)
        result = self.start(house, 'lint', PYTHON=str(old))
        assert result.returncode == 1
        assert 'is Python 3.9.1; allowed: Python 3.11 or 3.12' in result.stderr


def test_ci_script_is_executable_and_parses():
    script = ROOT / '.ci' / 'run'
    assert os.access(script, os.X_OK)
    assert subprocess.run(['bash', '-n', str(script)]).returncode == 0
    assert 'set -euo pipefail' in Path(script).read_text()
