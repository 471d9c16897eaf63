# SPDX-License-Identifier: Apache-2.0
"""Command line of the LiDAR city."""

from __future__ import annotations

import argparse
import sys

from clusterplug.datasets.lidar_city.generate import generate_lidar_city


def main(arguments: list[str] | None = None) -> int:
    """Generate a city from command-line arguments; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='prepare_lidar_city', description='Write a generated LiDAR city in the SemanticKITTI layout.'
    )
    parser.add_argument('out_dir', metavar='OUT', help='target folder, for example data/lidar_city')
    default = '(default: %(default)s)'
    parser.add_argument('--num-train', type=int, default=160, help=f'training scans {default}')
    parser.add_argument('--num-val', type=int, default=40, help=f'validation scans {default}')
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
    options = vars(parser.parse_args(arguments))
    try:
        out_dir = generate_lidar_city(options.pop('out_dir'), **options)
    except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
        print(f'prepare_lidar_city: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nprepare_lidar_city: interrupted; run the same command again to go on', file=sys.stderr)
        return 130
    print(f'The LiDAR city is in {ascii(str(out_dir)) if not str(out_dir).isprintable() else out_dir}')
    return 0
