#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Probe the frozen features of a pre-trained model on its validation set: probe.py CONFIG CHECKPOINT."""

import argparse
import json
import sys
from pathlib import Path
from pickle import UnpicklingError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clusterplug.core.config_options import ConfigOptions
from clusterplug.core.files import write_json
from clusterplug.core.outputs import check_output_file
from clusterplug.user_errors import run_tool


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of pre-training, with a val_dataloader: a path, or package::path')
    parser.add_argument('checkpoint', help="checkpoint file, or 'none' for the weights at the start")
    parser.add_argument(
        '--field', choices=('features', 'embeddings'), default='features',
        help='of the backbone or of the head (default: features)',
    )  # fmt: skip
    parser.add_argument('--neighbors', type=int, default=20, help='neighbors that vote (default: 20)')
    parser.add_argument('--penalty', type=float, default=1e-3, help='of the linear classifier (default: 0.001)')
    parser.add_argument('--train-ratio', type=float, default=0.5, help='share fitted without splits (default: 0.5)')
    parser.add_argument('--ignore-index', type=int, help='label that is ignored (default: none)')
    parser.add_argument('--out', type=Path, help='write the numbers into this JSON file, too (default: none)')
    parser.add_argument('--work-dir', default='work_dirs/probe', help='folder for the log (default: work_dirs/probe)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', default={},
        help='replace values of the config (default: none)',
    )  # fmt: skip
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    if args.checkpoint != 'none' and not Path(args.checkpoint).is_file():
        sys.exit(f'probe: CHECKPOINT must be a file, got {args.checkpoint}, which does not exist')
    from clusterplug.checkpoints import load_checkpoint_into
    from clusterplug.cli import build_runner, load_config

    if args.out is not None:
        check_output_file(args.out, [each for each in (args.config, args.checkpoint) if Path(each).is_file()])
    config = load_config(args.config, args.cfg_options, args.work_dir)
    if config.get('val_dataloader') is None:
        sys.exit(f'probe: {args.config} has no val_dataloader, whose samples are probed')
    options = dict(field=args.field, train_ratio=args.train_ratio, ignore_index=args.ignore_index)
    config.val_evaluator = [
        dict(type='clusterplug.LinearProbe', penalty=args.penalty, **options),
        dict(type='clusterplug.NearestNeighborProbe', num_neighbors=args.neighbors, **options),
    ]
    config.val_cfg = dict(type='ValLoop')
    try:
        runner = build_runner(config)
        if args.checkpoint == 'none':
            runner._init_model_weights()
        else:
            load_checkpoint_into(runner.model, args.checkpoint)
        numbers = runner.val()
    except (OSError, ValueError, UnpicklingError) as error:
        sys.exit(f'probe: {error}')
    numbers = {name: float(value) for name, value in numbers.items()}
    if args.out is not None:
        write_json(args.out, numbers)
    print(json.dumps(numbers, indent=2))
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main, 'probe'))
