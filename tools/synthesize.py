#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Make data that covers a space evenly: grow a tree of criteria, fill its leaves, or balance a set you have.

    python tools/synthesize.py configs/synthesis/lidar-city_weather-tree.py --out data/lidar_city_tree
    python tools/synthesize.py CONFIG --out work_dirs/captions --budget 2000 --workers 8
    python tools/synthesize.py CONFIG --out work_dirs/captions --rebalance captions.jsonl --n-per-leaf 50

CONFIG has tree=dict(...) (arguments of PartitionTree), generator=dict(type=...), n_per_leaf, and for the LiDAR city
city=dict(...) (arguments of write_lidar_city). OUT gets journal.jsonl (every answer; the same command goes on after a
kill, an error or a budget), tree.json, tree.txt, tree.html, samples.jsonl and report.json, and city/ for scans.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.cli import find_config
from clusterplug.core.checks import check_choice
from clusterplug.core.files import write_bytes, write_json
from clusterplug.core.outputs import output_folder, settings_of
from clusterplug.datasets.synthesis import (
    GeneratorUnavailable,
    LidarCityGenerator,
    PartitionTree,
    build_generator,
    coverage,
    write_lidar_city,
)
from clusterplug.user_errors import run_tool

FILES = ('samples.jsonl', 'report.json', 'tree.txt', 'tree.html')
_KEYS = ('tree', 'generator', 'n_per_leaf', 'city')


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file: a path, or package::path for one of an installed package')
    parser.add_argument('--out', help='folder of answers, tree and samples (required but for --estimate)')
    parser.add_argument('--n-per-leaf', type=int, help='samples of each leaf (default: those of the config)')
    parser.add_argument('--workers', type=int, default=1, help='questions at the same time (default: 1)')
    parser.add_argument(
        '--city-workers', type=int, help='processes that cast scans (default: as many as the city chooses)'
    )
    parser.add_argument(
        '--budget', type=int, help='calls to the generator in total, earlier runs counted (default: any number)'
    )
    parser.add_argument('--unique', action='store_true', help='refuse samples that a leaf has already')
    parser.add_argument('--estimate', type=float, metavar='VALUES', help='only print how many calls a tree with so '
                        'many values a criterion takes (default: run)')  # fmt: skip
    parser.add_argument(
        '--rebalance', metavar='ROWS', help='JSON lines, a sample each, to balance instead (default: new samples only)'
    )
    parser.add_argument('--no-fill', action='store_true', help='with --rebalance: leave poor leaves as they are')
    return parser.parse_args(arguments)


def read_config(name):
    from mmengine.config import Config

    config = Config.fromfile(find_config(name))
    for key in config:
        check_choice(key, f'a key of {name}', _KEYS)
    content = config.to_dict()
    return {key: content.get(key) for key in _KEYS}


def read_rows(path):
    """One sample a line."""
    rows = []
    with open(path, encoding='utf-8') as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise ValueError(f'{path}, line {number}, must be JSON: {error}') from None
    if not rows:
        raise ValueError(f'{path} must have a sample a line, got none')
    return rows


def write_lines(path, rows):
    write_bytes(path, ''.join(json.dumps(row) + '\n' for row in rows).encode())


def report_of(tree, leaf, missing, **more):
    found = coverage(leaf, len(tree.leaves))
    return {
        'leaves': len(tree.leaves), 'complete': tree.is_complete, 'samples': len(leaf), 'covered': found.covered,
        'entropy': found.entropy, 'evenness': found.evenness, 'smallest': found.smallest, 'largest': found.largest,
        'missing': {str(index): number for index, number in missing.items()}, **more, 'cost': tree.cost._asdict(),
    }  # fmt: skip


def balance(tree, args, generator, n_per_leaf, options):
    rows = read_rows(args.rebalance)
    found = tree.rebalance(rows, generator, n_per_leaf, fill=not args.no_fill, **options)
    lines = [
        dict(leaf=leaf, source=source, sample=sample)
        for leaf, source, sample in zip(found.leaf, found.source, found.samples)
    ]
    routed = found.routed
    more = {'originals': len(rows), 'dropped': int((routed.leaf < 0).sum()), 'errors': routed.errors}
    return lines, found.leaf, {**found.missing}, more


def fill(tree, args, generator, n_per_leaf, options):
    found = tree.generate(generator, n_per_leaf, unique=args.unique, **options)
    lines = [
        dict(leaf=leaf, description=description, sample=sample)
        for leaf, description, sample in zip(found.leaf, found.descriptions, found.samples)
    ]
    return lines, found.leaf, found.missing, {}


def run(args):
    config = read_config(args.config)
    tree = PartitionTree(**(config['tree'] or {}))
    n_per_leaf = config['n_per_leaf'] if args.n_per_leaf is None else args.n_per_leaf
    if args.estimate is not None:
        print(json.dumps(tree.estimate(args.estimate, n_per_leaf=n_per_leaf), indent=1))
        return 0
    if not args.out:
        raise ValueError('--out must be a folder for answers, tree and samples; pass --out')
    sources = [args.rebalance] if args.rebalance else []
    options = dict(files=FILES, sources=sources, settings=settings_of(args), lock=False)
    with output_folder(args.out, 'synthesize', **options):
        return make(args, config, tree, n_per_leaf)


def make(args, config, tree, n_per_leaf):
    """Grow the tree, fill or balance it, and write what came of it."""
    generator, out = build_generator(config['generator']), Path(args.out)
    options = dict(folder=out, workers=args.workers, budget=args.budget)
    with warnings.catch_warnings(record=True) as stops:
        warnings.simplefilter('always', RuntimeWarning)
        tree.grow(generator, **options)
        fill_or_balance = fill if args.rebalance is None else balance
        lines, leaf, missing, more = fill_or_balance(tree, args, generator, n_per_leaf, options)
    stops = [str(each.message) for each in stops if 'budget' in str(each.message)]
    report = report_of(tree, leaf, missing, **more)
    write_lines(out / 'samples.jsonl', lines)
    write_json(out / 'report.json', report)
    counts = coverage(leaf, len(tree.leaves)).counts
    write_bytes(out / 'tree.txt', (tree.to_text(counts) + '\n').encode('utf-8', 'replace'))
    write_bytes(out / 'tree.html', tree.to_html(counts).encode('utf-8', 'replace'))
    cost = tree.cost
    print(
        f'{len(lines)} samples in {len(tree.leaves)} leaves (evenness {report["evenness"]:.3f}, {len(missing)} leaves '
        f'not full); {cost.calls} calls, {cost.invalid} refused answers, {cost.unavailable} without answer'
    )
    if stops:
        print(f'stopped: {stops[0]}', file=sys.stderr)
        return 3
    if isinstance(generator, LidarCityGenerator):
        city = {'workers': args.city_workers, **(config['city'] or {})}
        print(f'scans: {write_lidar_city([line["sample"] for line in lines], out / "city", **city)}')
    return 0


def main(arguments=None):
    args = parse_arguments(arguments)
    try:
        return run(args)
    except KeyboardInterrupt:
        print('\nstopped; run the same command again to go on', file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, GeneratorUnavailable) as error:
        named = isinstance(error, OSError) and error.strerror and error.filename
        print(f'error: {f"{error.filename}: {error.strerror}" if named else error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(run_tool(main, 'synthesize'))
