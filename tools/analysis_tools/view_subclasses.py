#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Draw the subclasses that a trained model has found: view_subclasses.py CONFIG CHECKPOINT [--scans 0 1 2]."""

import argparse
import sys
from pathlib import Path
from pickle import UnpicklingError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clusterplug.core.config_options import ConfigOptions
from clusterplug.core.outputs import output_folder, refuse_source_targets, settings_of
from clusterplug.user_errors import run_tool


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config with WithClustering: a path, or package::path')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/subclasses'), help='folder for the files (default: %(default)s)'
    )
    parser.add_argument('--scans', type=int, nargs='+', default=[0], help='numbers of validation scans (default: 0)')
    parser.add_argument(
        '--true-classes',
        action='store_true',
        help='subclasses within the true class of a point (default: the predicted one)',
    )
    parser.add_argument(
        '--rerun', action='store_true', help='also write one recording for the rerun viewer, scans.rrd (default: none)'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', default={},
        help='replace values of the config (default: none)',
    )  # fmt: skip
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    from clusterplug.cli import data_folders, load_config

    if not Path(args.checkpoint).is_file():
        sys.exit(f'view_subclasses: CHECKPOINT must be a file, got {args.checkpoint}, which does not exist')
    config = load_config(args.config, args.cfg_options, str(args.out / 'log'))
    names = ['subclass_sizes.png', 'centers.png', *(f'scan_{number}[._]*' for number in args.scans), 'scans.rrd']
    options = dict(sources=[args.checkpoint, *data_folders(config)], settings=settings_of(args), keep=True)
    with output_folder(args.out, 'view_subclasses', files=names, **options):
        files = draw(args, config)
    print('\n'.join(str(file) for file in files))
    return 0


def draw(args, config) -> list[Path]:
    from mmengine.dataset import pseudo_collate

    from clusterplug.attach import check_predictable, predict_subclasses, true_classes
    from clusterplug.checkpoints import load_checkpoint_into
    from clusterplug.cli import build_runner
    from clusterplug.visualization import save_rerun
    from clusterplug.visualization.subclass_views import save_memory_views, save_scan_views, scan_colorings

    runner = build_runner(config)
    model = runner.model
    try:
        check_predictable(model)
    except ValueError as error:
        sys.exit(f'view_subclasses: {args.config}: {error}')
    if runner.cfg.get('val_dataloader') is None:
        sys.exit(f'view_subclasses: {args.config} has no val_dataloader, whose scans are drawn')
    try:
        load_checkpoint_into(model, args.checkpoint)
    except (OSError, ValueError, UnpicklingError) as error:
        sys.exit(f'view_subclasses: {error}')
    dataset = runner.build_dataloader(runner.cfg.val_dataloader).dataset
    if max(args.scans) >= len(dataset) or min(args.scans) < 0:
        sys.exit(f'view_subclasses: --scans must be from 0 to {len(dataset) - 1}, got {args.scans}')
    folders = {Path(dataset.get_data_info(n)['lidar_points']['lidar_path']).parent for n in args.scans}
    try:
        refuse_source_targets(folders, [args.out])
    except ValueError as error:
        sys.exit(f'view_subclasses: {error}')
    names, memory = dataset.metainfo.get('classes', ()), model.clustering.loss.memory
    known = names if len(names) == memory.num_classes else None
    files, recorded = save_memory_views(args.out, memory, known), []
    for number in args.scans:
        data = pseudo_collate([dataset[number]])
        mask = true_classes(data['data_samples'][0])
        truth = None if mask is None else mask.cpu().numpy()
        if args.true_classes and truth is None:
            sys.exit(f'view_subclasses: --true-classes needs labels, and scan {number} has none')
        (scan,) = predict_subclasses(model, data, use_labels=args.true_classes)
        colorings, points = scan_colorings(scan, memory.num_clusters, truth), scan.points.cpu().numpy()
        files += save_scan_views(args.out, f'scan_{number}', points, colorings, names)
        recorded.append((points, colorings))
    if args.rerun:
        save_rerun(args.out / 'scans.rrd', recorded)
        files.append(args.out / 'scans.rrd')
    return files


if __name__ == '__main__':
    sys.exit(run_tool(main, 'view_subclasses'))
