# SPDX-License-Identifier: Apache-2.0
"""Tells what is installed in a virtual environment, completely installed, without starting its Python."""

import csv
import re
import shutil
from pathlib import Path


def canonical(name: str) -> str:
    """Bring a package name into the one form in which names compare equal."""
    return re.sub(r'[-_.]+', '-', name).lower()


def site_packages(venv: Path) -> Path:
    """Folder with the packages of a virtual environment; it may not exist yet."""
    found = sorted((venv / 'lib').glob('python3.*/site-packages'))
    return found[-1] if found else venv / 'lib' / 'site-packages'


def requirement_lines(path: Path) -> list[str]:
    """Lines of a requirement file and of the files that it includes, without comments."""
    lines = []
    for line in path.read_text().splitlines():
        line = line.split('#')[0].strip()
        if line.startswith('-r '):
            lines += requirement_lines(path.parent / line[3:].strip())
        elif line:
            lines.append(line)
    return lines


def pins(path: Path) -> dict[str, str]:
    """Packages and versions that a requirement file pins: {canonical name: version}."""
    pairs = (line.split('==', 1) for line in requirement_lines(path) if '==' in line)
    return {canonical(name): version.split(';')[0].split()[0] for name, version in pairs}


def versions(venv: Path) -> dict[str, str]:
    """Completely installed packages of an environment: {canonical name: version}.

    pip writes INSTALLER after the files of a package, so that a package without one was interrupted.
    """
    found = {}
    for folder in site_packages(venv).glob('*.dist-info'):
        name, _, version = folder.name[: -len('.dist-info')].rpartition('-')
        if (folder / 'INSTALLER').is_file() and (folder / 'METADATA').is_file():
            found[canonical(name)] = version
    return found


def missing_pins(venv: Path, files: list[Path]) -> list[str]:
    """Pins that are not installed completely in exactly that version, e.g. ``['torch==2.11.0']``."""
    have = versions(venv)
    wanted = [pair for path in files for pair in pins(path).items()]
    # torch reports a local version such as 2.11.0+cpu when it comes from PyTorch's own index.
    return [f'{name}=={version}' for name, version in wanted if have.get(name, '').split('+')[0] != version]


def remove_broken(venv: Path) -> list[str]:
    """Forget packages whose files are missing or cut short, so that pip installs them again; returns their names.

    The thorough counterpart of ``versions``: compares the size of every file with pip's own RECORD.
    """
    site = site_packages(venv)
    for left_over in site.glob('~*'):  # what an interrupted pip moved aside
        shutil.rmtree(left_over, ignore_errors=True)
    broken = [folder for folder in sorted(site.glob('*.dist-info')) if not _is_whole(folder)]
    for folder in broken:
        shutil.rmtree(folder)
    return [folder.name[: -len('.dist-info')] for folder in broken]


def _is_whole(dist_info: Path) -> bool:
    record = dist_info / 'RECORD'
    if not (dist_info / 'INSTALLER').is_file() or not record.is_file():
        return False
    with record.open(newline='') as file:
        for path, _, size in (row for row in csv.reader(file) if len(row) == 3):
            if size and not path.endswith('.pyc'):  # Python writes those anew when it likes
                try:
                    if (dist_info.parent / path).stat().st_size != int(size):
                        return False
                except OSError:
                    return False
    return True
