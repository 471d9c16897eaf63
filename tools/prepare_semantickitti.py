#!/usr/bin/env python
"""Write mmdet3d's info files for the scans that exist in a folder in SemanticKITTI layout, and check every file.

    python tools/prepare_semantickitti.py data/semantickitti                       # the official split
    python tools/prepare_semantickitti.py DATA --train 01/000000-000001 04 --val 08/000000 --out infos

A truncated or missing file is named with its byte counts, and no info file is written then.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.datasets.semantickitti_infos import find_scans, write_infos

OFFICIAL = {
    'train': [f'{sequence:02d}' for sequence in (0, 1, 2, 3, 4, 5, 6, 7, 9, 10)],
    'val': ['08'],
    'test': [f'{sequence:02d}' for sequence in range(11, 22)],
}


def main() -> int:
    """Write one info file per split that was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data_root', type=Path, help='folder that holds sequences/<sequence>/velodyne/<scan>.bin')
    for split in OFFICIAL:
        parser.add_argument(
            f'--{split}', nargs='+', metavar='SCANS',
            help='sequences (08), scans (08/000010) or ranges of scans (08/000010-000019)',
        )  # fmt: skip
    parser.add_argument('--out', type=Path, help='folder for the info files, by default the data root')
    parser.add_argument('--prefix', default='semantickitti', help='names are <prefix>_infos_<split>.pkl')
    args = parser.parse_args()
    out = args.out or args.data_root
    chosen = {split: getattr(args, split) for split in OFFICIAL if getattr(args, split)}
    try:
        for split, selection in (chosen or _existing_official(args.data_root)).items():
            path = out / f'{args.prefix}_infos_{split}.pkl'
            scans = find_scans(args.data_root, selection)
            print(f'{path}: {write_infos(path, args.data_root, scans, with_labels=split != "test")} scans')
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


def _existing_official(data_root: Path) -> dict[str, list[str]]:
    """The official split, as far as its sequences are there."""
    there = {scan.split('/')[0] for scan in find_scans(data_root)}
    split = {name: [sequence for sequence in sequences if sequence in there] for name, sequences in OFFICIAL.items()}
    return {name: sequences for name, sequences in split.items() if sequences}


if __name__ == '__main__':
    sys.exit(main())
