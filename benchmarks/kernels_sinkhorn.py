"""Sinkhorn on 10,000 x 600 (prototype assignment) and on many small problems, against the matrix form and POT.

OMP_NUM_THREADS=1 python benchmarks/kernels_sinkhorn.py [--repeats 7] [--threads 1]
"""

import argparse
import statistics
import warnings

import torch
import torch.nn.functional as F
from _timing import copy_rate, header, interleaved, table, target

from clusterplug.functional import sinkhorn

EPSILON = 0.05


def matrix_form(scores, num_iters):
    """Return the plan by normalising the whole matrix over and over, the usual published loop."""
    plan = torch.exp(scores / EPSILON).T
    plan /= plan.sum()
    for _ in range(num_iters):
        plan /= plan.sum(1, keepdim=True)
        plan /= plan.shape[0]
        plan /= plan.sum(0, keepdim=True)
        plan /= plan.shape[1]
    return plan.T


def pot_candidate(ot, scores, num_iters, method):
    rows = torch.full(scores.shape[:1], 1.0 / scores.shape[0])
    cols = torch.full(scores.shape[1:], 1.0 / scores.shape[1])
    return lambda: ot.sinkhorn(
        rows, cols, -scores, EPSILON, method=method, numItermax=num_iters, stopThr=0.0, warn=False
    )


def cosines(*shape, generator):
    *lead, num_rows, num_cols = shape
    x = F.normalize(torch.randn(*lead, num_rows, 64, generator=generator), dim=-1)
    return x @ F.normalize(torch.randn(*lead, num_cols, 64, generator=generator), dim=-1).mT


def large(ot, repeats, generator):
    scores, num_iters = cosines(10_000, 600, generator=generator), 3
    runs = {
        'clusterplug': lambda: sinkhorn(scores, epsilon=EPSILON, num_iters=num_iters),
        'clusterplug, log form': lambda: sinkhorn(scores, epsilon=EPSILON, num_iters=num_iters, form='log'),
        'matrix form': lambda: matrix_form(scores, num_iters),
    }
    if ot is not None:
        runs['POT, log form'] = pot_candidate(ot, scores, num_iters, 'sinkhorn_log')
        runs['POT, plain form'] = pot_candidate(ot, scores, num_iters, 'sinkhorn')
    reference = runs['matrix form']().double()
    for name, run in runs.items():
        error = (run().double() - reference).abs().max() * reference.numel()
        print(f'  {name:34s} largest difference x N K: {error:.1e}')
    times = interleaved(runs | {'copy': copy_rate()}, repeats)
    rate = 128 * 2**20 / statistics.median(times.pop('copy')) * 1e3
    # read scores, write kernel, read it once an iteration, write the plan
    traffic = scores.numel() * 4 * (3 + num_iters)
    roof = f'{traffic / 1e6:.0f} MB at {rate / 1e9:.1f} GB/s (exponentials not counted)'
    table('10,000 x 600, 3 iterations', times, ours='clusterplug', roof_ms=traffic / rate * 1e3, roof=roof)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians['matrix form'] / medians['clusterplug']
    target(f'at least 1.25 x faster than the matrix form (here {ratio:.2f} x)', ratio >= 1.25)
    if ot is not None:
        ratio = medians['POT, log form'] / medians['clusterplug']
        target(f"at least 7 x faster than POT's log form (here {ratio:.1f} x)", ratio >= 7.0)


def small(ot, repeats, generator):
    scores, num_iters = cosines(19, 200, 40, generator=generator), 50
    runs = {
        'clusterplug': lambda: sinkhorn(scores, epsilon=EPSILON, num_iters=num_iters),
        'clusterplug, scaling form': lambda: sinkhorn(scores, epsilon=EPSILON, num_iters=num_iters, form='scaling'),
    }
    if ot is not None:
        loops = [pot_candidate(ot, problem, num_iters, 'sinkhorn_log') for problem in scores]
        runs['POT, log form, loop'] = lambda: [loop() for loop in loops]
    times = interleaved(runs | {'copy': copy_rate()}, repeats)
    rate = 128 * 2**20 / statistics.median(times.pop('copy')) * 1e3
    traffic = scores.numel() * 4 * 4 * num_iters
    roof = f'{traffic / 1e6:.0f} MB (two reads and writes an iteration) at {rate / 1e9:.1f} GB/s'
    table('19 x 200 x 40, 50 iterations', times, ours='clusterplug', roof_ms=traffic / rate * 1e3, roof=roof)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--threads', type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter('ignore')
    try:
        import ot
    except ImportError:
        print('skipped: POT is not installed')
        ot = None
    header(('POT', 'numpy'))
    generator = torch.Generator().manual_seed(0)
    large(ot, options.repeats, generator)
    small(ot, options.repeats, generator)


if __name__ == '__main__':
    main()
