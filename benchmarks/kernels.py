# SPDX-License-Identifier: Apache-2.0
"""The clustering kernels against scikit-learn, faiss, torch-kmeans, POT, FasterPAM, scipy and dense forms: one table.

    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/kernels.py                 # everything, some minutes
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/kernels.py --only kmeans   # one part
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/kernels.py --page docs/benchmarks.md   # ... into the page

One CPU thread for everybody; medians of process time, ours and its peers run in turn so that all see the same machine.
Results are compared before anything is timed. ``theirs / ours`` above 1 means that ours is faster (or smaller). Peers
run at each of their settings that could be the fastest. Peers that are not installed are named.
"""

import argparse
import warnings

import _kernels_graphs
import _kernels_kmeans
import _kernels_kmedoids
import _kernels_sinkhorn
import torch
from _timing import describe_machine, one_thread_each, publish, table

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
    parser.add_argument('--page', help='page whose part between the marks "kernels" is replaced')
    options = parser.parse_args()
    if options.page and options.only != list(PARTS):
        parser.error('--page needs all parts: a page with rows of two runs cannot be read')
    torch.set_num_threads(options.threads)
    warnings.simplefilter('ignore')  # peers warn of graphs that fall apart and of iterations that ran out
    packages = ('scikit-learn', 'scipy', 'faiss-cpu', 'fast-pytorch-kmeans', 'torch-kmeans', 'POT', 'kmedoids', 'numpy')
    machine = describe_machine(packages)
    with one_thread_each():
        lines = [line for part in options.only for line in PARTS[part](options.repeats)]
    print('\n'.join([*machine, *table(lines)]))
    if options.page:
        publish(options.page, 'kernels', ['', *(f'{line}<br>' for line in machine), '', *table(lines), ''])


if __name__ == '__main__':
    main()
