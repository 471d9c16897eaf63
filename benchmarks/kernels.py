"""The clustering kernels against scikit-learn, faiss, torch-kmeans, POT, FasterPAM, scipy and dense forms: one table.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/kernels.py                 # everything, some minutes
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/kernels.py --only kmeans   # one part

One CPU thread; medians of process time, ours and its peers run in turn so that all see the same machine. Results are
compared before anything is timed. ``theirs / ours`` above 1 means that ours is faster (or smaller); against a limit it
is the share of the limit that is reached. Peers that are not installed are left out, and named.
"""

import argparse
import warnings

import _kernels_graphs
import _kernels_kmeans
import _kernels_kmedoids
import _kernels_sinkhorn
import torch
from _timing import header, print_table

PARTS = {
    'kmeans': _kernels_kmeans.measure,
    'sinkhorn': _kernels_sinkhorn.measure,
    'kmedoids': _kernels_kmedoids.measure,
    'graphs': _kernels_graphs.measure,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=PARTS, nargs='+', default=list(PARTS))
    parser.add_argument('--repeats', type=int, default=7, help='at least 3')
    parser.add_argument('--threads', type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter('ignore')  # peers warn of graphs that fall apart and of iterations that ran out
    header(('scikit-learn', 'scipy', 'faiss-cpu', 'fast-pytorch-kmeans', 'torch-kmeans', 'POT', 'kmedoids', 'numpy'))
    print_table([line for part in options.only for line in PARTS[part](options.repeats)])


if __name__ == '__main__':
    main()
