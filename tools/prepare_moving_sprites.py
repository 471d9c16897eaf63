#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write generated videos with captions for text-video retrieval.

    python tools/prepare_moving_sprites.py data/moving_sprites

144 sprites (4 shapes, 6 colours, 6 motions), 6 training videos and 1 test video of each: 1,008 mp4 files in a minute.
A run that was interrupted continues where it stopped.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.datasets.moving_sprites import all_sprites, generate_moving_sprites


def main() -> int:
    """Generate; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='target folder, for example data/moving_sprites')
    parser.add_argument('--train', type=int, default=6, help='training videos of each sprite (default: %(default)s)')
    parser.add_argument('--test', type=int, default=1, help='test videos of each sprite (default: %(default)s)')
    parser.add_argument('--frames', type=int, default=12, help='frames of a video, 6 a second (default: %(default)s)')
    parser.add_argument('--size', type=int, default=48, help='height and width in pixels, even (default: %(default)s)')
    parser.add_argument(
        '--seed', type=int, default=0, help='a number; another one is another set (default: %(default)s)'
    )
    args = parser.parse_args()
    sys.stdout.reconfigure(errors='backslashreplace')  # names of files need not be UTF-8
    counts = {'train': args.train, 'test': args.test}
    try:
        for split, done, total in generate_moving_sprites(
            args.folder, counts, num_frames=args.frames, size=args.size, seed=args.seed
        ):
            if done % len(all_sprites()) == 0 or done == total:
                print(f'{split}: {done} of {total} videos', file=sys.stderr, flush=True)
    except (OSError, ValueError, RuntimeError, ModuleNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('stopped; the same command goes on', file=sys.stderr)
        return 130
    print(f'{args.folder}: train.csv, test.csv, vocabulary.txt, videos/')
    return 0


if __name__ == '__main__':
    sys.exit(main())
