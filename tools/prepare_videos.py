#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Re-encode videos to few small frames, so that training reads ten times less.

    python tools/prepare_videos.py RAW --out data/msrvtt/videos                 # 3 frames a second, shorter side 224
    python tools/prepare_videos.py RAW --out data/msrvtt/videos --lmdb data/msrvtt/videos.lmdb

A run that was interrupted continues where it stopped; what was made with other settings, or of a file that was replaced
since, is made again. Files without a small version (videos that cannot be read, files whose suffix is not that of a
video) are listed at the end and in unreadable_videos.txt; the exit code is then still 0, as training skips them. It is
1 where something cannot be written.
"""

import argparse
import functools
import signal
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.core.command_line import add_out, exit_code, number, parse, tool_parser, whole_number
from clusterplug.core.outputs import refuse_source_targets
from clusterplug.datasets.video.prepare import ENCODERS, REPORT, one_line, prepare_videos, survey
from clusterplug.user_errors import run_tool


def main() -> int:
    """Re-encode; returns the exit code."""
    parser = tool_parser(__doc__)
    parser.add_argument('source', type=Path, help='folder with videos, at any depth; it is only read')
    add_out(parser, 'folder to write; keeps the folders of the source')
    parser.add_argument(
        '--fps', type=number(0.01, 1000), default=3, help='frames a second, 0.01 to 1000 (default: %(default)s)'
    )
    parser.add_argument(
        '--size',
        type=whole_number(2, 16384),
        default=224,
        help='pixels of the shorter side, at most (default: %(default)s)',
    )
    parser.add_argument(
        '--quality',
        type=whole_number(0, 51),
        default=23,
        help='rate factor of x264, 0 is best, 51 worst (default: %(default)s)',
    )
    parser.add_argument(
        '--encoder',
        choices=ENCODERS,
        default='auto',
        help='PyAV, the program ffmpeg, or what is installed (default: %(default)s)',
    )
    parser.add_argument(
        '--workers', type=whole_number(1, 4096), help='processes (default: one for each CPU that this process may use)'
    )
    parser.add_argument('--lmdb', type=Path, help='also put the files into this LMDB (default: none)')
    args = parse(parser)
    before = signal.signal(signal.SIGTERM, _stop)  # so that workers end and temporary files go
    try:
        return exit_code(functools.partial(_prepare, args), show=one_line)
    finally:
        signal.signal(signal.SIGTERM, before)


def _prepare(args: argparse.Namespace) -> int:
    if args.lmdb:
        refuse_source_targets(args.source, [args.lmdb])
    return _report(args, *_run(args))


def _stop(number, frame):
    sys.exit(128 + number)


def _run(args: argparse.Namespace) -> tuple[list, dict]:
    """Prepare; return what became of each file, and the planned names of the videos."""
    planned = survey(args.source).videos
    seen, total, number, unreadable = [], len(planned), 0, 0
    start, last = time.monotonic(), 0.0
    settings = (args.fps, args.size, args.quality, args.encoder, args.workers)
    for done in prepare_videos(args.source, args.out, *settings):
        seen.append(done)
        if done.kind == 'passed over':
            continue
        number += 1
        unreadable += bool(done.problem)
        now = time.monotonic() - start
        if now - last > 5 or number == total:
            last = now
            left = max(0.0, now / number * (total - number))
            state = f'{number} of {total} videos, {unreadable} without a small version, {left:.0f} s left'
            print(state, file=sys.stderr, flush=True)
    return seen, planned


def _report(args: argparse.Namespace, seen: list, planned: dict) -> int:
    if args.lmdb:
        _write_lmdb(args, [done.target for done in seen if done.target])
    made = sum(bool(done.target) for done in seen)
    print(f'{one_line(str(args.out))}: {made} of {len(planned)} videos')
    renamed = {name: small for name, small in planned.items() if name.with_suffix('.mp4') != small}
    if renamed:
        print(f'{len(renamed)} have names of their own, as others differ from them in the suffix alone:')
        print('\n'.join(f'  {one_line(str(name))}: {one_line(str(small))}' for name, small in renamed.items()))
    titles = {
        'video': f'could not be read ({one_line(str(args.out / REPORT))}):',
        'passed over': 'files were passed over:',
        'kept': 'were not made, as other files lie at their places:',
    }
    for kind, title in titles.items():
        missing = sorted((done.name, done.problem) for done in seen if done.kind == kind and done.problem)
        if missing:
            print(f'{len(missing)} {title}')
            print('\n'.join(f'  {one_line(name)}: {one_line(problem)}' for name, problem in missing))
    return int(any(done.kind == 'kept' for done in seen))


def _write_lmdb(args: argparse.Namespace, made: list[str]) -> None:
    from clusterplug.datasets.video import write_lmdb

    files = [args.out / name for name in sorted(made)]
    often = Counter(file.name for file in files)
    odd = [file for file in files if often[file.name] > 1 or not _is_text(file.name)]
    written = write_lmdb(args.lmdb, [file for file in files if file not in set(odd)])
    print(f'{one_line(str(args.lmdb))}: {written} videos')
    if odd:
        print(f'{len(odd)} are not in it, as their names are those of others or no UTF-8:')
        print('\n'.join(f'  {one_line(str(file.relative_to(args.out)))}' for file in odd))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


if __name__ == '__main__':
    sys.exit(run_tool(main, 'prepare_videos'))
