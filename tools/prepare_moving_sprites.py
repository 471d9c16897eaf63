#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write generated videos with captions for text-video retrieval.

    python tools/prepare_moving_sprites.py --out data/moving_sprites

144 sprites (4 shapes, 6 colors, 6 motions), 6 training videos and 1 test video of each: 1,008 mp4 files in a minute.
A run that was interrupted continues where it stopped.
"""

import argparse
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.core.command_line import add_counts, add_out, exit_code, parse, tool_parser
from clusterplug.datasets.moving_sprites import all_sprites, generate_moving_sprites
from clusterplug.user_errors import run_tool


def main() -> int:
    """Generate; returns the exit code."""
    parser = tool_parser(__doc__)
    add_out(parser, 'target folder, for example data/moving_sprites')
    add_counts(parser, dict(train=6, test=1), 'videos of each sprite', train='--train', test='--test')
    parser.add_argument('--frames', type=int, default=12, help='frames of a video, 6 a second (default: %(default)s)')
    parser.add_argument('--size', type=int, default=48, help='height and width in pixels, even (default: %(default)s)')
    parser.add_argument(
        '--seed', type=int, default=0, help='a number; another one is another set (default: %(default)s)'
    )
    return exit_code(functools.partial(_generate, parse(parser)))


def _generate(args: argparse.Namespace) -> int:
    counts = {'train': args.num_train, 'test': args.num_test}
    options = dict(num_frames=args.frames, size=args.size, seed=args.seed)
    for split, done, total in generate_moving_sprites(args.out, counts, **options):
        if done % len(all_sprites()) == 0 or done == total:
            print(f'{split}: {done} of {total} videos', file=sys.stderr, flush=True)
    print(f'{args.out}: train.csv, test.csv, vocabulary.txt, videos/')
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main, 'prepare_moving_sprites'))
