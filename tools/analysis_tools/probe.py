#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Probe the frozen features of a pre-trained model on its validation set: probe.py CONFIG CHECKPOINT."""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from pickle import UnpicklingError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clusterplug.core.config_options import ConfigOptions
from clusterplug.core.files import write_json
from clusterplug.core.outputs import check_output_file, output_folder, settings_of
from clusterplug.user_errors import run_tool

PICTURES = ('embeddings.png', 'prototypes.png', 'training.png')


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
    parser.add_argument(
        '--pictures', type=Path,
        help='folder for embeddings.png, prototypes.png (nearest samples of each) and, of a training whose log lies '
        'next to CHECKPOINT, training.png (default: none)',
    )  # fmt: skip
    parser.add_argument(
        '--map', choices=('pca', 'tsne'), default='pca', help='how embeddings.png is laid out (default: pca)'
    )
    parser.add_argument('--class-names', nargs='+', help='of the labels, for the pictures (default: those of the data)')
    parser.add_argument('--out', type=Path, help='write the numbers into this JSON file, too (default: none)')
    parser.add_argument('--work-dir', default='work_dirs/probe', help='folder for the log (default: work_dirs/probe)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', default={},
        help='replace values of the config (default: none)',
    )  # fmt: skip
    return parser.parse_args()


def pictures_of(args: argparse.Namespace) -> dict:
    """The hook that draws while the samples are probed."""
    return dict(
        type='clusterplug.EmbeddingPicturesHook', out_dir=str(args.pictures), field=args.field, method=args.map,
        class_names=args.class_names, ignore_index=args.ignore_index,
    )  # fmt: skip


def draw_training(args: argparse.Namespace) -> None:
    """Draw the log of the training next to the checkpoint, if there is one."""
    from clusterplug.experiments.progress import log_lines
    from clusterplug.visualization import save_training_curves

    lines = log_lines(Path(args.checkpoint).parent)
    if any('loss' in line for line in lines):
        save_training_curves(args.pictures / 'training.png', lines)
    else:
        print(f'no training.png: there is no log of a training next to {args.checkpoint}', file=sys.stderr)


def main() -> int:
    args = parse_arguments()
    if args.checkpoint != 'none' and not Path(args.checkpoint).is_file():
        sys.exit(f'probe: CHECKPOINT must be a file, got {args.checkpoint}, which does not exist')
    if args.pictures is None and (args.map != 'pca' or args.class_names):
        sys.exit('probe: --map and --class-names are of the pictures; give their folder with --pictures')
    from clusterplug.cli import load_config

    sources = [each for each in (args.config, args.checkpoint) if Path(each).is_file()]
    if args.out is not None:
        check_output_file(args.out, sources)
    config = load_config(args.config, args.cfg_options, args.work_dir)
    if config.get('val_dataloader') is None:
        sys.exit(f'probe: {args.config} has no val_dataloader, whose samples are probed')
    options = dict(field=args.field, train_ratio=args.train_ratio, ignore_index=args.ignore_index)
    config.val_evaluator = [
        dict(type='clusterplug.LinearProbe', penalty=args.penalty, **options),
        dict(type='clusterplug.NearestNeighborProbe', num_neighbors=args.neighbors, **options),
    ]
    config.val_cfg = dict(type='ValLoop')
    config.custom_hooks = [] if args.pictures is None else [pictures_of(args)]
    folder = contextlib.nullcontext()
    if args.pictures is not None:
        about = dict(files=PICTURES, sources=sources, settings=settings_of(args), option='--pictures')
        folder = output_folder(args.pictures, 'probe', **about)
    with folder:
        numbers = probed(config, args)
        if args.pictures is not None and args.checkpoint != 'none':
            draw_training(args)
    if args.out is not None:
        write_json(args.out, numbers)
    print(json.dumps(numbers, indent=2))
    return 0


def probed(config, args: argparse.Namespace) -> dict[str, float]:
    from clusterplug.checkpoints import load_checkpoint_into
    from clusterplug.cli import build_runner

    try:
        runner = build_runner(config)
        if args.checkpoint == 'none':
            runner._init_model_weights()
        else:
            load_checkpoint_into(runner.model, args.checkpoint)
        numbers = runner.val()
    except (OSError, ValueError, UnpicklingError) as error:
        sys.exit(f'probe: {error}')
    return {name: float(value) for name, value in numbers.items()}


if __name__ == '__main__':
    sys.exit(run_tool(main, 'probe'))
