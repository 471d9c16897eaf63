# SPDX-License-Identifier: Apache-2.0
"""Installs mmcv 2.1.0: from a wheel that pip finds, else compiled here, resumably.

mmdet3d 1.4.0 accepts mmcv below 2.2 only, and mmcv has no wheel for a current torch (mmcv#3096, mmdetection#11763).
The compiler works in a folder that is kept, so that an interrupted build goes on where it stopped, and the wheel is
kept too, so that a new environment needs no second build.
"""

import os
import shutil
import subprocess
import sysconfig
import tarfile
from pathlib import Path

from installed import pins
from progress import CommandFailed, run

CORE_MINUTES = 25  # processor time of the whole build, ops for CPU only


class NoCompiler(Exception):
    """Something that the compilation needs is missing on this machine."""


def install(pip: list, python: Path, requirements: Path, work: Path, logs: Path, options: dict) -> None:
    """Install mmcv and prove that its compiled operations import.

    Args:
        pip (list): Command of pip's ``install`` with the constraints.
        python (Path): Python of the virtual environment.
        requirements (Path): Folder with ``mmcv.txt`` and ``torch.txt``.
        work (Path): Folder for sources, objects and wheels.
        logs (Path): Folder for logs.
        options (dict): Further arguments of ``progress.run``.

    Raises:
        CommandFailed: A download or the compilation failed.
        NoCompiler: No wheel was found and there is no C++ compiler or no Python header.
    """
    torch = pins(requirements / 'torch.txt')['torch']
    tag = f'torch-{torch}-{_output(python, "import sys; print(sys.implementation.cache_tag)")}'
    wheels = work / 'wheels' / tag
    wheels.mkdir(parents=True, exist_ok=True)
    command = [*pip, '--only-binary', 'mmcv', '--find-links', wheels, '-r', requirements / 'mmcv.txt']
    try:
        run(command, logs / 'mmcv-wheel.log', expected=30, **options)
        if _works(python):
            return
        print('      the wheel that pip found does not fit this torch', flush=True)
        for wheel in wheels.glob('mmcv-*.whl'):
            wheel.unlink()
    except CommandFailed as error:
        # Only "there is no wheel" is answered by a build; a dead network or a full disk is not.
        if 'No matching distribution found for mmcv' not in error.output:
            raise
    _build(python, requirements, work / 'build' / tag, wheels, logs, options)
    (wheel,) = wheels.glob('mmcv-*.whl')
    run([*pip, '--force-reinstall', '--no-deps', wheel], logs / 'mmcv-install.log', expected=10, **options)
    run(command, logs / 'mmcv-requirements.log', expected=20, **options)
    if not _works(python):
        raise CommandFailed([python, '-c', 'import mmcv.ops'], 1, logs / 'mmcv-build.log', _import_error(python))


def _build(python, requirements, folder, wheels, logs, options):
    _check_compiler(python)
    jobs = _jobs()
    print(f'      no wheel found (PIP_FIND_LINKS can name a folder): compiling with {jobs} jobs', flush=True)
    source = _source(python, requirements, folder, logs, options)
    env = {'CFLAGS': '-g0', 'MMCV_WITH_OPS': '1', 'MAX_JOBS': str(jobs), **_without_cuda(python)}
    # ninja is looked for on PATH.
    env['PATH'] = f'{python.parent}{os.pathsep}{os.environ.get("PATH", "")}'
    # Not through pip, which cleans up after a failure or an interruption: the objects shall stay.
    command = [python, '-u', 'setup.py', 'bdist_wheel', '-d', wheels / 'part']
    run(command, logs / 'mmcv-build.log', expected=60 * CORE_MINUTES / jobs, env=env, cwd=source, **options)
    (wheel,) = (wheels / 'part').glob('mmcv-*.whl')
    wheel.replace(wheels / wheel.name)
    shutil.rmtree(folder, ignore_errors=True)


def _source(python, requirements, folder, logs, options):
    """Source of mmcv in a folder that outlives this run; objects compiled earlier are found again."""
    name = f'mmcv-{pins(requirements / "mmcv.txt")["mmcv"]}'
    if (folder / 'complete').is_file():
        return folder / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [
        python,
        '-m',
        'pip',
        'download',
        '--no-deps',
        '--no-build-isolation',
        '--no-binary',
        'mmcv',
        '--require-hashes',
        '-r',
        requirements / 'mmcv-source.txt',
    ]
    run([*command, '-d', folder], logs / 'mmcv-source.log', expected=20, **options)
    with tarfile.open(folder / f'{name}.tar.gz') as archive:
        archive.extractall(folder, filter='data')
    (folder / 'complete').touch()
    return folder / name


def _check_compiler(python):
    compiler = os.environ.get('CXX', 'c++')
    if shutil.which(compiler) is None:
        raise NoCompiler(f'no C++ compiler ({compiler}): sudo apt install build-essential')
    headers = Path(_output(python, 'import sysconfig; print(sysconfig.get_path("include"))'))
    if not (headers / 'Python.h').is_file():
        version = sysconfig.get_python_version()
        raise NoCompiler(f'no {headers / "Python.h"}: sudo apt install python{version}-dev')


def _jobs():
    """Jobs for the compiler: one per core, and 1.5 GB of memory each."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1.5e9
    return int(os.environ.get('MAX_JOBS', max(1, min(cores, int(memory)))))


def _without_cuda(python):
    """Hide the CUDA devices from the build unless there is an nvcc of the version that torch was built with."""
    cuda = _output(python, 'import torch; print(torch.version.cuda if torch.cuda.is_available() else None)')
    if cuda == 'None':
        return {}
    nvcc = shutil.which('nvcc')
    found = subprocess.run([nvcc, '--version'], capture_output=True, text=True).stdout if nvcc else ''
    if f'release {cuda.split(".")[0]}.' in found:
        return {}
    print(
        f'      no nvcc of CUDA {cuda}: mmcv gets its operations for the CPU only',
        flush=True,
    )
    return {'CUDA_VISIBLE_DEVICES': '', 'FORCE_CUDA': '0'}


def _works(python):
    return _import_error(python) == []


def _import_error(python):
    result = subprocess.run([python, '-c', 'import mmcv.ops'], capture_output=True, text=True)
    return result.stderr.splitlines() or ['import mmcv.ops failed'] if result.returncode else []


def _output(python, code):
    return subprocess.run([python, '-c', code], capture_output=True, text=True, check=True).stdout.strip()
