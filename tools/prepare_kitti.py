#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write mmdet3d's KITTI info files, reduced point files and ground-truth database from the raw KITTI layout.

    python tools/prepare_kitti.py data/kitti                                  # the lists in data/kitti/ImageSets
    python tools/prepare_kitti.py RAW --out data/kitti --train 000000-000007 --val 000008-000009

RAW holds training/{velodyne,calib,label_2} and image_2, unless there was no camera; with --out it is only read. A
broken file is named with its line, and nothing is written then. A run that was interrupted continues where it stopped.
"""

import argparse
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.core.command_line import add_out, add_splits, exit_code, parse, tool_parser
from clusterplug.datasets.kitti_converters import IMAGE_SIZE
from clusterplug.datasets.kitti_frames import find_frames
from clusterplug.user_errors import run_tool

SPLITS = ('train', 'val', 'test')


def main() -> int:
    """Prepare the splits that were asked for; returns the exit code."""
    parser = tool_parser(__doc__)
    parser.add_argument('root', type=Path, help='raw KITTI: the folder that holds training (and testing)')
    text = (
        'frames (000008), ranges (000000-000007) or a text file of the {0} split (default, if no split is named: '
        'ROOT/ImageSets/{0}.txt)'
    )
    add_splits(parser, {split: text.format(split) for split in SPLITS}, 'FRAMES')
    add_out(parser, 'the data_root to write (default: ROOT itself)', required=False)
    parser.add_argument('--prefix', default='kitti', help='names are <prefix>_infos_<split>.pkl (default: %(default)s)')
    parser.add_argument(
        '--dont-care', nargs='+', default=[], metavar='CLASS',
        help="classes besides KITTI's to take for DontCare regions (default: none)",
    )  # fmt: skip
    parser.add_argument(
        '--image-size', nargs=2, type=int, default=IMAGE_SIZE, metavar=('WIDTH', 'HEIGHT'),
        help='view of the camera in pixels for data without image_2 (default: %(default)s)',
    )  # fmt: skip
    args = parse(parser)
    out = args.out or args.root
    if min(args.image_size) < 1:
        parser.error(f'--image-size must be two positive numbers of pixels, got {args.image_size}')
    if args.dont_care and out.resolve() == args.root.resolve():
        parser.error('--dont-care rewrites label files, so it needs --out with another folder than the raw one')
    return exit_code(functools.partial(_prepare, args, out))


def _prepare(args: argparse.Namespace, out: Path) -> int:
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f'--out must be a folder, got the file {out}')
    splits = _splits(args)
    from clusterplug import compat
    from clusterplug.datasets.kitti_convert import prepare_kitti

    compat.apply_all()
    options = dict(prefix=args.prefix, dont_care=args.dont_care, image_size=tuple(args.image_size))
    done = prepare_kitti(args.root, out, splits, say=print, **options)
    for split, summary in done.items():
        objects = ', '.join(f'{count} {name}' for name, count in sorted(summary.objects.items())) or 'no objects'
        print(f'{out / args.prefix}_infos_{split}.pkl: {summary.frames} frames, {objects}')
        if summary.without_points:
            empty = ', '.join(f'{count} {name}' for name, count in sorted(summary.without_points.items()))
            print(f'  boxes without a point: {empty}')
        if summary.without_objects and split != 'test':
            print(f'  frames without an object: {summary.without_objects}')
    return 0


def _splits(args: argparse.Namespace) -> dict[str, list[str]]:
    """The frames asked for, or those of KITTI's own lists."""
    chosen = {name: getattr(args, name) for name in SPLITS if getattr(args, name)}
    if not chosen:
        lists = {name: args.root / 'ImageSets' / f'{name}.txt' for name in SPLITS}
        chosen = {name: [str(path)] for name, path in lists.items() if path.is_file()}
        if not (args.root / 'testing' / 'velodyne').is_dir():
            chosen.pop('test', None)
    if not chosen:
        raise ValueError(f'{args.root} has no ImageSets/train.txt; name the frames with --train and --val')
    return {name: find_frames(args.root, frames, name != 'test') for name, frames in chosen.items()}


if __name__ == '__main__':
    sys.exit(run_tool(main, 'prepare_kitti'))
