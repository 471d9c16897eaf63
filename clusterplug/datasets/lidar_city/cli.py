# SPDX-License-Identifier: Apache-2.0
"""Command line of the LiDAR city."""

from __future__ import annotations

import functools

from clusterplug.core.command_line import add_counts, add_out, exit_code, parse, tool_parser
from clusterplug.datasets.lidar_city.generate import generate_lidar_city


def main(arguments: list[str] | None = None) -> int:
    """Generate a city from command-line arguments; returns the exit code."""
    parser = tool_parser('Write a generated LiDAR city in the SemanticKITTI layout.', prog='prepare_lidar_city')
    add_out(parser, 'target folder, for example data/lidar_city')
    add_counts(parser, dict(train=160, val=40), 'scans')
    default = '(default: %(default)s)'
    parser.add_argument('--seed', type=int, default=0, help=f'a number; another one is another city {default}')
    parser.add_argument('--columns', type=int, default=1024, help=f'firings in a turn, 16 to 4096 {default}')
    parser.add_argument('--scans-per-street', type=int, default=20, help=f'scans on one street {default}')
    parser.add_argument('--spacing', type=float, default=5.0, help=f'meters between two scans, 0.1 to 20 {default}')
    parser.add_argument(
        '--workers', type=int, help='processes (default: OMP_NUM_THREADS, else the usable cores; 1 below 40 scans)'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace a city of other settings in OUT (default: it is refused)'
    )
    options = vars(parse(parser, arguments))
    run = functools.partial(_generate, options.pop('out'), options)
    return exit_code(run, name='prepare_lidar_city')


def _generate(out, options: dict) -> int:
    out = generate_lidar_city(out, **options)
    print(f'The LiDAR city is in {ascii(str(out)) if not str(out).isprintable() else out}')
    return 0
