#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write mmdet3d's info files for the scans that exist in a folder in SemanticKITTI layout, and check every file.

    python tools/prepare_semantickitti.py data/semantickitti                       # the official split
    python tools/prepare_semantickitti.py DATA --train 01/000000-000001 04 --val 08/000000 --out infos

Points and labels are read: a truncated or missing file is named with its byte counts, labels that the configs do not
know with their number of points, and no info file is written then. Points with NaN or inf are reported by file.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.core.command_line import add_out, add_splits, exit_code, parse, tool_parser
from clusterplug.core.outputs import LOCK, locked_folder
from clusterplug.datasets.semantickitti_infos import RAW_LABELS, find_scans, refuse_sources, write_infos
from clusterplug.user_errors import run_tool

OFFICIAL = {
    'train': [f'{sequence:02d}' for sequence in (0, 1, 2, 3, 4, 5, 6, 7, 9, 10)],
    'val': ['08'],
    'test': [f'{sequence:02d}' for sequence in range(11, 22)],
}


def main() -> int:
    """Write one info file per split that was asked for; returns the exit code."""
    args = parse(_parser())
    return exit_code(functools.partial(_prepare, args), interrupted='the same command writes what is missing')


def _prepare(args: argparse.Namespace) -> int:
    out = args.out or args.data_root
    chosen = {split: getattr(args, split) for split in OFFICIAL if getattr(args, split)}
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f'--out must be a folder, got the file {out}')
    if not args.prefix or not args.prefix.isprintable() or '/' in args.prefix:
        raise ValueError(f'--prefix must be the beginning of file names, without a folder, got {args.prefix!r}')
    splits = chosen or _existing_official(args.data_root)
    scans = {split: find_scans(args.data_root, selection) for split, selection in splits.items()}
    both = sorted({*scans.get('train', ())} & {*scans.get('val', ())})
    paths = {split: out / f'{args.prefix}_infos_{split}.pkl' for split in scans}
    for path in (*paths.values(), out / LOCK):
        refuse_sources(path, args.data_root)
    with locked_folder(out):
        for split, names in scans.items():
            path = paths[split]
            count = write_infos(path, args.data_root, names, split != 'test', _labels(args.labels), _Report())
            print(f'{path}: {count} scans')
    if both:
        print(f'note: {len(both)} scans are for training and for validation, {both[0]} first', file=sys.stderr)
    if 'train' in scans and 'val' not in scans:
        print(
            f'note: no validation split was written (--val); the configs read {args.prefix}_infos_val.pkl after every '
            'epoch',
            file=sys.stderr,
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument('data_root', type=Path, help='folder that holds sequences/<sequence>/velodyne/<scan>.bin')
    texts = {
        split: f'sequences (08), scans (08/000010) or ranges of scans (08/000010-000019) of the {split} split'
        f'{", without labels" * (split == "test")}; default, if no split is named: the official '
        f'{", ".join(sequences)}, as far as they exist'
        for split, sequences in OFFICIAL.items()
    }
    add_splits(parser, texts, 'SCANS')
    add_out(parser, 'folder for the info files (default: the data root)', required=False)
    parser.add_argument(
        '--prefix', default='semantickitti', help='names are <prefix>_infos_<split>.pkl (default: %(default)s)'
    )
    parser.add_argument(
        '--labels', nargs='+', metavar='LABELS',
        help="raw labels that may occur, numbers (40) or ranges (0-19): the keys of your config's labels_map (default: "
        "SemanticKITTI's)",
    )  # fmt: skip
    return parser


def _labels(texts: list[str] | None) -> set[int]:
    if texts is None:
        return set(RAW_LABELS)
    labels = set()
    for text in texts:
        first, _, last = text.partition('-')
        if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) > 0xFFFF:
            raise ValueError(f'--labels must be numbers (40) or ranges (0-19) up to 65535, got {text!r}')
        labels.update(range(int(first), int(last or first) + 1))
    return labels


class _Report:
    """Prints the first few notes at once, and the number of the others."""

    def __init__(self, most: int = 20):
        self._count, self._most, self._last = 0, most, time.monotonic()

    def __call__(self, note: str) -> None:
        self._count += 1
        if self._count <= self._most or time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            print(f'note {self._count}: {note}', file=sys.stderr, flush=True)


def _existing_official(data_root: Path) -> dict[str, list[str]]:
    """The official split, as far as its sequences are there."""
    there = {scan.split('/')[0] for scan in find_scans(data_root)}
    split = {name: [sequence for sequence in sequences if sequence in there] for name, sequences in OFFICIAL.items()}
    split = {name: sequences for name, sequences in split.items() if sequences}
    if not split:
        raise ValueError(
            f'{data_root} has no sequence of the official split, only {", ".join(sorted(there)) or "none"}; name them '
            'with --train and --val'
        )
    return split


if __name__ == '__main__':
    sys.exit(run_tool(main, 'prepare_semantickitti'))
