# SPDX-License-Identifier: Apache-2.0
"""Cluster a folder of embeddings that is larger than memory.

    python tools/cluster_embeddings.py FOLDER --out OUT --num-clusters 1000
    python tools/cluster_embeddings.py FOLDER --out OUT --num-clusters 1000 --algorithm minibatch --num-iters 5
    python tools/cluster_embeddings.py FOLDER --out OUT --num-clusters 1000 --engine faiss
    torchrun --nproc-per-node 4 tools/cluster_embeddings.py FOLDER --out OUT --num-clusters 1000

FOLDER holds .npy, parquet, or raw files (.bin, .dat, .raw, .memmap with --dim and --dtype). OUT gets centers.npy,
counts.npy, labels/<shard>.npy, summary.json and checkpoints. The same command goes on after a kill, and its result is
the same to the last bit as that of a run that was left alone; so is the result of several processes with the same
number of threads each.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusterplug.core.command_line import add_out, parse, tool_parser
from clusterplug.estimators.sharded import ALGORITHMS, ShardedOptions, ShardFolder, cluster_shards
from clusterplug.user_errors import run_tool


def parse_arguments(arguments=None):
    parser = tool_parser(__doc__)
    parser.add_argument('folder', help='folder with the shards')
    add_out(parser, 'folder for the result and the checkpoints')
    parser.add_argument('--num-clusters', type=int, required=True, help='number of clusters (needed; no default)')
    parser.add_argument(
        '--algorithm', choices=ALGORITHMS, default='lloyd',
        help='lloyd: exact k-means; minibatch: a step after each block; kmedoids: rows as centers (default: lloyd)',
    )  # fmt: skip
    parser.add_argument(
        '--engine', choices=('torch', 'faiss'), default='torch', help='what finds nearest centers (default: torch)'
    )
    parser.add_argument('--device', default='cpu', help='device of the torch engine (default: cpu)')
    parser.add_argument('--num-iters', type=int, default=100, help='at most so many passes; more go on (default: 100)')
    parser.add_argument(
        '--tol', type=float, default=1e-4,
        help='stop when the centers move by less (squared), as a share of the variance (default: 0.0001)',
    )  # fmt: skip
    parser.add_argument('--seed', type=int, default=0, help='seed of sample, start and order of blocks (default: 0)')
    parser.add_argument('--block-rows', type=int, default=16384, help='rows read at once (default: 16384)')
    parser.add_argument(
        '--sample-rows', type=int,
        help='rows in memory for the start (default: 256 per cluster, at least 10000; kmedoids: 10, at least 1000)',
    )  # fmt: skip
    parser.add_argument('--num-samples', type=int, default=5, help='samples of kmedoids (default: 5)')
    parser.add_argument('--checkpoint-blocks', type=int, default=100, help='blocks between checkpoints (default: 100)')
    parser.add_argument(
        '--normalize', action='store_true', help='scale every row to length 1 when it is read (default: as it is)'
    )
    parser.add_argument('--dim', type=int, help='numbers in a row of raw files (default: none, raw files need it)')
    parser.add_argument('--dtype', default='float32', help='type of raw files (default: float32)')
    parser.add_argument('--column', help='list column of parquet files (default: the only one, or all numbers)')
    parser.add_argument('--threads', type=int, help='threads of a process (default: 1 under torchrun, else all)')
    return parse(parser, arguments)


def main(arguments=None):
    args = parse_arguments(arguments)
    under_launcher = int(os.environ.get('WORLD_SIZE', '1')) > 1
    if args.threads or under_launcher:
        torch.set_num_threads(args.threads or 1)
    if under_launcher:
        dist.init_process_group('gloo')
    rank = dist.get_rank() if under_launcher else 0

    def report(line):
        if rank == 0:
            print(line, file=sys.stderr, flush=True)

    try:
        shards = ShardFolder(args.folder, dim=args.dim, dtype=args.dtype, column=args.column, normalize=args.normalize)
        report(f'{len(shards.paths)} shards, {len(shards)} rows of dimension {shards.dim}')
        names = (
            'num_clusters', 'algorithm', 'engine', 'device', 'num_iters', 'tol', 'seed', 'block_rows', 'sample_rows',
            'num_samples', 'checkpoint_blocks',
        )  # fmt: skip
        options = ShardedOptions(**{name: getattr(args, name) for name in names})
        summary = cluster_shards(shards, args.out, options, report)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        named = isinstance(error, OSError) and error.strerror and error.filename
        print(f'error: {f"{error.filename}: {error.strerror}" if named else error}', file=sys.stderr)
        return 1
    finally:
        if under_launcher:
            dist.destroy_process_group()
    if rank == 0:
        print(f'inertia {summary["inertia"]:.8g} after {summary["iterations"]} iterations; result in {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main, 'cluster_embeddings'))
