# SPDX-License-Identifier: Apache-2.0
"""Give every row of a folder of features its several nearest of very many clusters, as labels to train on (MLCD).

    python tools/cluster_labels.py FOLDER --out OUT --num-clusters 100000
    python tools/cluster_labels.py FOLDER --out OUT --num-clusters 1000000 --engine faiss --num-iters 3
    python tools/cluster_labels.py FOLDER --out OUT --centers centers.npy --num-labels 4

FOLDER holds .npy, parquet, or raw files (.bin, .dat, .raw, .memmap with --dim and --dtype); rows are scaled to length
1. OUT gets labels.npy (rows, labels) int32, similarities.npy, centers.npy, labels.json, and the clustering in
clusters/. Load labels with numpy.load(..., mmap_mode='r'). The same command goes on after a kill.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.core.command_line import add_out, parse, tool_parser
from clusterplug.estimators.sharded import ALGORITHMS, ShardedOptions, ShardFolder, cluster_shards, label_shards
from clusterplug.user_errors import run_tool


def parse_arguments(arguments=None):
    parser = tool_parser(__doc__)
    parser.add_argument('folder', help='folder with the features')
    add_out(parser, 'folder for the result and the checkpoints')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--num-clusters', type=int, help='number of clusters (required without --centers)')
    source.add_argument('--centers', help='.npy file of centers to use as they are (default: cluster the features)')
    parser.add_argument('--num-labels', type=int, default=8, help='labels of a row (default: 8)')
    parser.add_argument(
        '--engine', choices=('torch', 'faiss'), default='torch', help='what finds nearest centers (default: torch)'
    )
    parser.add_argument('--device', default='cpu', help='device of the torch engine (default: cpu)')
    parser.add_argument(
        '--algorithm', choices=[each for each in ALGORITHMS if each != 'kmedoids'], default='lloyd',
        help='lloyd: exact k-means; minibatch: a step after each block (default: lloyd)',
    )  # fmt: skip
    parser.add_argument('--num-iters', type=int, default=20, help='passes of the clustering at most (default: 20)')
    parser.add_argument('--seed', type=int, default=0, help='seed of sample, start and order of blocks (default: 0)')
    parser.add_argument('--block-rows', type=int, default=8192, help='rows read at once (default: 8192)')
    parser.add_argument('--dim', type=int, help='numbers in a row of raw files (default: none, raw files need it)')
    parser.add_argument('--dtype', default='float32', help='type of raw files (default: float32)')
    parser.add_argument('--column', help='list column of parquet files (default: the only one, or all numbers)')
    parser.add_argument('--threads', type=int, help='threads (default: all)')
    return parse(parser, arguments)


def main(arguments=None):
    args = parse_arguments(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)

    def report(line):
        print(line, file=sys.stderr, flush=True)

    try:
        shards = ShardFolder(args.folder, dim=args.dim, dtype=args.dtype, column=args.column, normalize=True)
        report(f'{len(shards.paths)} shards, {len(shards)} rows of dimension {shards.dim}')
        if args.centers is None:
            if args.num_labels > args.num_clusters:
                raise ValueError(f'num_labels must be at most num_clusters, {args.num_clusters}, got {args.num_labels}')
            names = ('num_clusters', 'algorithm', 'engine', 'device', 'num_iters', 'seed', 'block_rows')
            options = ShardedOptions(**{name: getattr(args, name) for name in names})
            cluster_shards(shards, Path(args.out, 'clusters'), options, report)
        centers = np.load(args.centers or Path(args.out, 'clusters', 'centers.npy'), allow_pickle=False)
        summary = label_shards(
            shards, centers, args.out, args.num_labels, args.engine, args.device, args.block_rows, report
        )
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        named = isinstance(error, OSError) and error.strerror and error.filename
        print(f'error: {f"{error.filename}: {error.strerror}" if named else error}', file=sys.stderr)
        return 1
    means = ', '.join(f'{each:.3f}' for each in summary['mean_similarity'])
    print(
        f'{summary["num_rows"]} rows with {summary["num_labels"]} of {summary["num_clusters"]} clusters each, '
        f'{summary["empty"]} of them no first label; mean similarity {means}; result in {args.out}'
    )
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main, 'cluster_labels'))
