# SPDX-License-Identifier: Apache-2.0
"""Makes or completes the virtual environment `.venv` with the pinned packages; started by `make`.

Usage: ``sh tools/setup_env/run.sh GROUP [GROUP ...]`` with the groups of ``GROUPS``; ``--lock`` writes
requirements/constraints.txt and requirements/hashes.txt from `.venv`.

Every step leaves a stamp when it is done: a hash of what went into it. A step whose stamp and packages are as they
should be is skipped. One set-up runs at a time; a killed one leaves nothing that counts as done.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import install_mmcv
from hashes import write_hashes
from installed import missing_pins, remove_broken, requirement_lines, site_packages, versions
from progress import CommandFailed, clock, run

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
REQUIREMENTS = ROOT / 'requirements'
CONSTRAINTS = REQUIREMENTS / 'constraints.txt'
HASHES = REQUIREMENTS / 'hashes.txt'
WORK = ROOT / '.setup'
STAMPS = VENV / '.clusterplug-setup'
# The whole environment takes 8 GB; compiling and downloading need room beside it.
DISK_GB = 12

GROUPS = {
    'host': ('environment', 'build', 'torch', 'mmcv', 'mmdet3d', 'spconv', 'package', 'doctor'),
    'test': ('environment', 'build', 'torch', 'mmcv', 'mmdet3d', 'spconv', 'test', 'package', 'doctor'),
    'lint': ('environment', 'lint'),
    'types': ('environment', 'torch', 'lint'),
    'docs': ('environment', 'docs'),
}


@dataclass(frozen=True)
class Step:
    """One part of the set-up: what it is called, which requirement file it installs, how long that takes."""

    title: str
    file: str = ''
    seconds: float = 5
    size: str = ''


STEPS = {
    'environment': Step('virtual environment .venv', seconds=10),
    'build': Step('build tools', 'build.txt', 10),
    'torch': Step('PyTorch', 'torch.txt', 150, '3 GB to download at most'),
    'mmcv': Step('mmcv', 'mmcv.txt', 60, 'about 14 minutes on 2 cores when it must be compiled'),
    'mmdet3d': Step('mmdet3d and Open3D', 'mmdet3d.txt', 120, '700 MB to download'),
    'spconv': Step('sparse convolution', 'spconv-cpu.txt', 15),
    'test': Step('test tools', 'test.txt', 30),
    'lint': Step('ruff and mypy', 'lint.txt', 15),
    'docs': Step('documentation tools', 'docs.txt', 20),
    'package': Step('clusterplug itself, editable', seconds=15),
    'doctor': Step('check: python -m clusterplug doctor', seconds=40),
}


def main() -> int:
    """Run the steps of the groups named on the command line; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    if sys.argv[1:] == ['--lock']:
        return lock_versions()
    unknown = sorted(set(sys.argv[1:]) - set(GROUPS))
    if unknown or not sys.argv[1:]:
        print(f'groups are {", ".join(GROUPS)}; got {" ".join(sys.argv[1:]) or "none"}', file=sys.stderr)
        return 2
    names = [name for name in STEPS if any(name in GROUPS[group] for group in sys.argv[1:])]
    WORK.mkdir(exist_ok=True)
    with (WORK / 'lock').open('w') as lock:
        _take(lock)
        try:
            return set_up(names, lock.fileno())
        except KeyboardInterrupt:
            print('\nInterrupted. What is done is kept: the same command goes on from here.', file=sys.stderr)
            return 130
        except (CommandFailed, install_mmcv.NoCompiler, RuntimeError) as error:
            print(
                f'\nSet-up stopped: {error}\nOnce that is mended the same command goes on from here.', file=sys.stderr
            )
            return 1


def set_up(names: list[str], lock: int) -> int:
    """Do those of the named steps that are not done; returns the exit code."""
    wants_cuda()  # a wrong choice shall be told at once
    todo = [name for name in names if not is_done(name)]
    if not todo:
        return 0
    _check_machine(todo)
    start = time.monotonic()
    total = sum(STEPS[name].seconds for name in todo)
    print(f'Setting up {VENV.name}: {len(todo)} of {len(names)} steps to do, about {clock(total)} min', flush=True)
    for number, name in enumerate(names, 1):
        step = STEPS[name]
        if is_done(name):
            print(f'[{number}/{len(names)}] {step.title}: done before', flush=True)
            continue
        size = f', {step.size}' if step.size else ''
        print(f'[{number}/{len(names)}] {step.title} (about {clock(step.seconds)} min{size})', flush=True)
        began = time.monotonic()
        do(name, {'keep_open': (lock,)})
        stamp(name)
        print(f'      done in {clock(time.monotonic() - began)} min', flush=True)
    print(f'Set-up complete after {clock(time.monotonic() - start)} min', flush=True)
    return 0


def do(name: str, options: dict) -> None:
    """Carry out one step."""
    pip = [PYTHON, '-m', 'pip', 'install', '--disable-pip-version-check', '--no-input', '-c', CONSTRAINTS]
    logs, step = WORK / 'logs', STEPS[name]
    if name == 'environment':
        return make_environment(options)
    for package in remove_broken(VENV):
        print(f'      {package} was installed incompletely: once more', flush=True)
    if name == 'mmcv':
        install_mmcv.install(pip, PYTHON, REQUIREMENTS, WORK, logs, options)
    elif name == 'package':
        command = [*pip, '--no-deps', '--no-build-isolation', '-e', ROOT]
        run(command, logs / 'package.log', expected=step.seconds, **options)
    elif name == 'doctor':
        consult_doctor(logs / 'doctor.log', options)
    else:
        if name == 'spconv':
            _remove_other_spconv(options)
        command = [*pip, '-r', REQUIREMENTS / requirement_file(name)]
        run(command, logs / f'{name}.log', expected=step.seconds, **options)
        if missing := missing_pins(VENV, [REQUIREMENTS / requirement_file(name)]):
            raise RuntimeError(f'pip ended without installing {", ".join(missing)}; see {logs / name}.log')


def consult_doctor(log: Path, options: dict) -> None:
    """Have everything imported once. A fault of clusterplug's own code is for its tests to find, not for the set-up."""
    # The exit code is 1 when there are problems, which the answer itself tells better.
    with contextlib.suppress(CommandFailed):
        command = [PYTHON, '-m', 'clusterplug', 'doctor', '--json']
        run(command, log, expected=STEPS['doctor'].seconds, cwd=ROOT, **options)
    text = log.read_text()
    try:  # warnings of the packages may stand around the answer
        problems = json.JSONDecoder().raw_decode(text, text.index('{\n'))[0]['problems']
    except ValueError:
        raise RuntimeError(f'the doctor gave no answer; see {log}') from None
    for problem in problems:
        print(f'      {problem["what"]}\n        mend it with:  {problem["fix"]}', flush=True)
    if any(problem['kind'] == 'package' for problem in problems):
        raise RuntimeError('the doctor found the problems above')


def make_environment(options: dict) -> None:
    """Create `.venv`, or take over one that works; a half-made one is made anew."""
    if VENV.exists() and not (VENV / 'pyvenv.cfg').is_file() and any(VENV.iterdir()):
        raise RuntimeError(f'{VENV} exists and is no virtual environment; move it away')
    version = f'python{sys.version_info.major}.{sys.version_info.minor}'
    if PYTHON.exists() and subprocess.run([PYTHON, '-m', 'pip', '--version'], capture_output=True).returncode == 0:
        if site_packages(VENV).parent.name not in ('python3.11', 'python3.12'):
            raise RuntimeError(f'{VENV} has {site_packages(VENV).parent.name}; delete it and a new one is made')
        return
    command = [sys._base_executable, '-m', 'venv', '--clear', VENV]
    try:
        run(command, WORK / 'logs' / 'environment.log', expected=STEPS['environment'].seconds, **options)
    except CommandFailed as error:
        if 'ensurepip' in error.output:
            raise RuntimeError(f'Python has no ensurepip: sudo apt install {version}-venv') from error
        raise


def requirement_file(name: str) -> str:
    """Requirement file of a step; sparse convolution depends on the machine."""
    if name == 'spconv' and wants_cuda():
        return 'spconv-cuda.txt'
    return STEPS[name].file


def wants_cuda() -> bool:
    """Whether sparse convolution shall be the CUDA build: CLUSTERPLUG_SPCONV=cpu|cuda, else what nvidia-smi says."""
    choice = os.environ.get('CLUSTERPLUG_SPCONV', '')
    if choice not in ('', 'cpu', 'cuda'):
        raise RuntimeError(f'CLUSTERPLUG_SPCONV is {choice!r}; allowed: cpu, cuda')
    if choice or shutil.which('nvidia-smi') is None:
        return choice == 'cuda'
    try:
        return b'GPU' in subprocess.run(['nvidia-smi', '-L'], capture_output=True, timeout=5).stdout
    except subprocess.TimeoutExpired:
        return False


def fingerprint(name: str) -> str:
    """Hash of everything that decides what a step installs."""
    parts = [name, platform.machine(), site_packages(VENV).parent.name]
    if file := requirement_file(name):
        parts += requirement_lines(REQUIREMENTS / file) + requirement_lines(CONSTRAINTS)
    if name in ('package', 'doctor'):
        parts += [str(ROOT), *((ROOT / file).read_text() for file in ('setup.py', 'pyproject.toml'))]
    if name == 'doctor':
        parts += [fingerprint(other) for other in GROUPS['host'] if other != 'doctor']
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


def is_done(name: str) -> bool:
    """Whether a step's stamp fits and its packages are there."""
    try:
        done = json.loads((STAMPS / f'{name}.json').read_text())['fingerprint'] == fingerprint(name)
    except (OSError, ValueError, KeyError):
        return False
    if name == 'package':
        return done and 'clusterplug' in versions(VENV) and (ROOT / 'clusterplug' / '.mim' / 'configs').exists()
    file = requirement_file(name)
    return done and PYTHON.exists() and not (file and missing_pins(VENV, [REQUIREMENTS / file]))


def stamp(name: str) -> None:
    """Mark a step as done, in one atomic move."""
    STAMPS.mkdir(parents=True, exist_ok=True)
    part = STAMPS / f'{name}.part'
    part.write_text(json.dumps({'fingerprint': fingerprint(name), 'time': time.strftime('%Y-%m-%d %H:%M:%S')}))
    part.replace(STAMPS / f'{name}.json')


def lock_versions() -> int:
    """Write requirements/constraints.txt from what `.venv` holds."""
    apart = ('clusterplug', 'mmcv', 'pip', 'setuptools', 'wheel')
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if line.startswith('#')]
    frozen = {name: version for name, version in versions(VENV).items() if name not in apart}
    CONSTRAINTS.write_text('\n'.join([*lines, *(f'{name}=={frozen[name]}' for name in sorted(frozen))]) + '\n')
    print(f'{len(frozen)} versions written to {CONSTRAINTS.relative_to(ROOT)}')
    try:
        asked = write_hashes(CONSTRAINTS, HASHES, _ask_pip)
    except (OSError, ValueError, CommandFailed) as error:
        print(f'Sums not written: {error}', file=sys.stderr)
        return 1
    print(f'{len(frozen)} sums in {HASHES.relative_to(ROOT)}, {len(asked)} of them new')
    return 0


def _ask_pip(requirements: list[str]) -> dict:
    """Pip's report of what it would install, with the sum of each file; what it does not know yet it downloads."""
    report = WORK / 'report.json'
    report.unlink(missing_ok=True)
    command = [PYTHON, '-m', 'pip', 'install', '--dry-run', '--ignore-installed', '--no-deps', '--report', report]
    log = WORK / 'logs' / 'lock.log'
    run([*command, '--only-binary', ':all:', *requirements], log, expected=10 * len(requirements))
    return json.loads(report.read_text())


def _remove_other_spconv(options):
    """Only one build of spconv (and of cumm under it) may be there: they share their import name."""
    wanted = {line.split('==')[0] for line in requirement_lines(REQUIREMENTS / requirement_file('spconv'))}
    others = [name for name in versions(VENV) if name.startswith('spconv') and name not in wanted]
    if others:
        others += [name for name in versions(VENV) if name.startswith('cumm')]
        run([PYTHON, '-m', 'pip', 'uninstall', '-y', *others], WORK / 'logs' / 'uninstall.log', expected=5, **options)


def _check_machine(todo):
    if platform.system() != 'Linux':
        raise RuntimeError(
            f'the pinned packages exist for Linux; this is {platform.system()}. '
            'The pure-torch part installs everywhere with: pip install .'
        )
    free = shutil.disk_usage(ROOT).free / 1e9
    if 'torch' in todo and free < DISK_GB:
        raise RuntimeError(f'{free:.1f} GB free in {ROOT}; the set-up needs {DISK_GB} GB')


def _take(lock):
    """Wait for another set-up of this folder. Its pip inherits the lock, so that a killed set-up's pip counts too."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print('Another set-up is at work in this folder; waiting for it (Ctrl-C stops waiting).', flush=True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except KeyboardInterrupt:
            sys.exit(130)


if __name__ == '__main__':
    sys.exit(main())
