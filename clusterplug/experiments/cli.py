# SPDX-License-Identifier: Apache-2.0
"""The command line of ``tools/analysis_tools/compare.py``."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from clusterplug.cli import load_config
from clusterplug.core.config_options import ConfigOptions
from clusterplug.core.files import whole_file
from clusterplug.core.outputs import locked_folder
from clusterplug.experiments.compare import check_metrics, comparison_table
from clusterplug.experiments.run import Run, write_json
from clusterplug.experiments.side_by_side import RunFailed, run_all
from clusterplug.user_errors import check_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, test, print the table and write it to the work folder; returns the exit code.

    Args:
        arguments: the command line without the program's name; by default the real one.
    """
    args = _parse(arguments)
    configs = {'baseline': args.baseline, **_names(args.methods)}
    runs = {
        f'{name}, seed {seed}': Run(config, _options(args, seed), args.work_dir / name / f'seed_{seed}')
        for seed in args.seeds
        for name, config in configs.items()
    }
    seeds = f'{len(args.seeds)} seed{"s" * (len(args.seeds) > 1)} ({", ".join(map(str, args.seeds))})'
    results = {}

    def finished(name: str, result: dict) -> None:
        results[name] = result
        write_json(args.work_dir / 'results.json', results)
        check_metrics(args.metrics, result['metrics'])

    try:
        check_folder(args.work_dir, '--work-dir')
        _check_known_metrics(args, configs.values())
        with locked_folder(args.work_dir):
            run_all(runs, jobs=args.jobs, threads=args.threads, say=_say, finished=finished)
    except KeyboardInterrupt:
        _say('stopped; the same command goes on')
        return 130
    except RunFailed as error:
        print(f'compare: {error}', file=sys.stderr)
        return 1
    metrics = {name: [results[f'{name}, seed {seed}']['metrics'] for seed in args.seeds] for name in configs}
    baseline = metrics.pop('baseline')
    table = comparison_table(baseline, metrics, args.metrics, args.factor)
    table += f'\n\n{seeds}; p: paired t-test, two-sided'
    with whole_file(args.work_dir / 'table.md') as file:
        file.write(table + '\n')
    print(f'\n{table}\n')
    return 0


def _check_known_metrics(args: argparse.Namespace, configs: Iterable[str]) -> None:
    """Check the names of --metrics before hours of training, where a config tells what its evaluator gives."""
    if args.metrics:
        for config in configs:
            loaded = load_config(config, _options(args, args.seeds[0]), str(args.work_dir))
            evaluator, dataset = (
                loaded.get('test_evaluator') or {},
                (loaded.get('test_dataloader') or {}).get('dataset'),
            )
            classes = ((dataset or {}).get('metainfo') or {}).get('classes')
            if isinstance(evaluator, dict) and evaluator.get('type') == 'SegMetric' and classes:
                check_metrics(args.metrics, [*classes, 'miou', 'acc', 'acc_cls'])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='compare.py', description='Train a baseline and methods over seeds; mean, spread and a paired test.'
    )
    parser.add_argument('baseline', help='config, or package::path')
    parser.add_argument('methods', nargs='+', help='configs to compare with it')
    parser.add_argument(
        '--seeds', type=int, nargs='+', default=[0, 1, 2], help='seeds of the trainings (default: 0 1 2)'
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/compare'),
        help='folder for runs and table (default: %(default)s)',
    )
    parser.add_argument('--jobs', type=int, default=1, help='trainings at the same time (default: 1)')
    parser.add_argument(
        '--threads', type=int, help='CPU threads of each training (default: the usable cores divided by the jobs)'
    )
    parser.add_argument('--metrics', nargs='+', help='metrics that become rows of the table (default: all)')
    parser.add_argument(
        '--factor', type=float, default=100.0, help='values are multiplied by this (default: %(default)s)'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', default={},
        help='replace values of all configs: a.b=1 a.c=[1,2] (default: none)',
    )  # fmt: skip
    args = parser.parse_args(arguments)
    if len(set(args.seeds)) < len(args.seeds):
        parser.error(f'--seeds must differ, got {args.seeds}')
    return args


def _names(configs: Sequence[str]) -> dict[str, str]:
    """A short name for each config: that of its file, with a number where two are alike."""
    names = {}
    for config in configs:
        stem = Path(config.rpartition('::')[2]).stem
        name, number = stem, 2
        while name in names or name == 'baseline':
            name, number = f'{stem}_{number}', number + 1
        names[name] = config
    return names


def _options(args: argparse.Namespace, seed: int) -> dict:
    return {**args.cfg_options, 'randomness.seed': seed}


def _say(text: str) -> None:
    print(f'[compare] {text}', flush=True)
