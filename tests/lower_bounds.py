#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Run the tests that need torch alone in an environment with the oldest versions that are promised.

    python tests/lower_bounds.py --python python3.10 --out work_dirs/lower_bounds
    python tests/lower_bounds.py --python python3.12 --out work_dirs/lower_bounds --extra estimators

The environment is made in OUT/<python> and kept. The versions are the lower bounds of clusterplug/dependencies.py, or
the first release for that Python where it is later (FIRST). No part of the fast suite: the environment takes some GB.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.core.command_line import add_out, exit_code, parse, tool_parser
from clusterplug.dependencies import DEPENDENCIES

ROOT = Path(__file__).resolve().parents[1]
# The first releases with wheels for a Python, where they are later than the lower bound.
FIRST = {('3.12', 'numpy'): '1.26.0', ('3.12', 'scipy'): '1.11.2'}
TESTS = {
    'core': ('core', 'functional', 'layers', 'heads', 'losses', 'memory', 'optim'),
    'estimators': ('estimators',),
}


def main() -> int:
    """Make the environment and run; returns the exit code of pytest."""
    parser = tool_parser(__doc__)
    parser.add_argument('--python', required=True, help='interpreter to try, such as python3.10 (required)')
    parser.add_argument('--extra', choices=['none', 'estimators'], default='none', help='try these too (default: none)')
    parser.add_argument('--only', nargs='+', help='rooms whose tests are run (default: all that need nothing else)')
    add_out(parser, 'folder of the environments')
    args = parse(parser)
    return exit_code(lambda: _run(args))


def lower_bounds(python: str, extras: list[str]) -> list[str]:
    """Return ``torch==2.4.0``, ...: the oldest allowed version of each package of the extras.

    Example:
        >>> lower_bounds('3.12', ['core'])[1]
        'numpy==1.26.0'
    """
    found = []
    for each in DEPENDENCIES:
        bound = re.search(r'>=([\d.]+)', each.allowed)
        if each.extra in extras and bound:
            version = FIRST.get((python, each.package), bound[1] + '.0' * (2 - bound[1].count('.')))
            found.append(f'{each.package}=={version}')
    return found


def _run(args: argparse.Namespace) -> int:
    told = subprocess.run([args.python, '-c', 'import sys; print("%d.%d" % sys.version_info[:2])'],
                          capture_output=True, text=True, check=True)  # fmt: skip
    version = told.stdout.strip()
    extras = ['core'] if args.extra == 'none' else ['core', args.extra]
    folder = args.out.resolve() / version
    if not (folder / 'bin' / 'python').exists():
        subprocess.run([args.python, '-m', 'venv', str(folder)], check=True)
    python = str(folder / 'bin' / 'python')
    wanted = lower_bounds(version, extras)
    print(f'Python {version}: {", ".join(wanted)}', flush=True)
    subprocess.run([python, '-m', 'pip', 'install', '-q', *wanted, 'pytest', 'hypothesis'], check=True)
    rooms = args.only or [room for extra in extras for room in TESTS[extra]]
    command = [python, '-m', 'pytest', '-p', 'no:cacheprovider', '-m', 'not slow', '-W', 'ignore']
    paths = [str(ROOT / 'tests' / f'test_{room}') for room in rooms]
    return subprocess.run([*command, *paths], cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)}).returncode


if __name__ == '__main__':
    sys.exit(main())
