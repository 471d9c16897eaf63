#!/usr/bin/env python
"""Re-encode videos to few small frames, so that training reads ten times less.

    python tools/prepare_videos.py RAW data/msrvtt/videos                 # 3 frames a second, shorter side 224
    python tools/prepare_videos.py RAW data/msrvtt/videos --lmdb data/msrvtt/videos.lmdb

A run that was interrupted continues where it stopped. Videos that cannot be read are listed at the end and in
unreadable_videos.txt; the exit code is then still 0, as training skips them.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.datasets.video.prepare import ENCODERS, REPORT, find_videos, prepare_videos


def main() -> int:
    """Re-encode; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='folder with videos, at any depth')
    parser.add_argument('target', type=Path, help='folder to write; keeps the folders of the source')
    parser.add_argument('--fps', type=float, default=3, help='frames a second, at most (default: %(default)s)')
    parser.add_argument('--size', type=int, default=224, help='pixels of the shorter side (default: %(default)s)')
    parser.add_argument('--quality', type=int, default=23, help='rate factor of x264, less is better (%(default)s)')
    parser.add_argument('--encoder', choices=ENCODERS, default='auto', help='by default PyAV, else the program ffmpeg')
    parser.add_argument('--workers', type=int, help='processes (default: one for each core)')
    parser.add_argument('--lmdb', type=Path, help='also put the files into this LMDB')
    args = parser.parse_args()
    try:
        total = len(find_videos(args.source))
        problems = _run(args, total)
        if args.lmdb:
            from clusterplug.datasets.video import write_lmdb

            print(f'{args.lmdb}: {write_lmdb(args.lmdb, sorted(args.target.rglob("*.mp4")))} videos')
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('stopped; the same command goes on', file=sys.stderr)
        return 130
    print(f'{args.target}: {total - len(problems)} of {total} videos')
    if problems:
        print(f'{len(problems)} could not be read ({args.target / REPORT}):')
        print('\n'.join(f'  {name}: {problem}' for name, problem in sorted(problems.items())))
    return 0


def _run(args: argparse.Namespace, total: int) -> dict[str, str]:
    problems, start, last = {}, time.monotonic(), 0.0
    videos = prepare_videos(args.source, args.target, args.fps, args.size, args.quality, args.encoder, args.workers)
    for number, done in enumerate(videos, 1):
        if done.problem:
            problems[done.name] = done.problem
        now = time.monotonic() - start
        if now - last > 5 or number == total:
            last = now
            left = now / number * (total - number)
            state = f'{number} of {total} videos, {len(problems)} unreadable, {left:.0f} s left'
            print(state, file=sys.stderr, flush=True)
    return problems


if __name__ == '__main__':
    sys.exit(main())
