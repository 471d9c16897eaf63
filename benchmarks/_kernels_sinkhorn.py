# SPDX-License-Identifier: Apache-2.0
"""Sinkhorn on 10,000 x 600 (prototype assignment) and on many small problems, against the matrix form and POT."""

import statistics

import torch
import torch.nn.functional as F
from _timing import Row, copy_rate, interleaved, optional, rows

from clusterplug.functional.transport import sinkhorn

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
        'our log form': lambda: sinkhorn(scores, epsilon=EPSILON, num_iters=num_iters, form='log'),
        'matrix form': lambda: matrix_form(scores, num_iters),
    }
    if ot is not None:
        runs['POT, log form'] = pot_candidate(ot, scores, num_iters, 'sinkhorn_log')
        runs['POT, plain form'] = pot_candidate(ot, scores, num_iters, 'sinkhorn')
    reference = runs['clusterplug']().double()
    apart = {name: (run().double() - reference).abs().max() * reference.numel() for name, run in runs.items()}
    remarks = {name: f'plans differ by {error:.0e} of a mean entry' for name, error in apart.items()}
    times = interleaved(runs | {'copy': copy_rate()}, repeats)
    # read scores, write kernel, read it once an iteration, write the plan
    limit = statistics.median(times.pop('copy')) * scores.numel() * 4 * (3 + num_iters) / (128 * 2**20)
    kernel = f'sinkhorn 10,000 x 600, {num_iters} iterations'
    lines = rows(kernel, times, 'clusterplug', {'matrix form': 1.25, 'POT, log form': 7.0}, remarks)
    return [*lines, Row(kernel, 'memory limit', lines[0].ours, limit, None, 'exponentials not counted')]


def small(ot, repeats, generator):
    scores, num_iters = cosines(19, 200, 40, generator=generator), 50
    runs = {
        'clusterplug': lambda: sinkhorn(scores, epsilon=EPSILON, num_iters=num_iters),
        'our log form': lambda: sinkhorn(scores, epsilon=EPSILON, num_iters=num_iters, form='log'),
    }
    if ot is not None:
        loops = [pot_candidate(ot, problem, num_iters, 'sinkhorn_log') for problem in scores]
        runs['POT, log form, loop'] = lambda: [loop() for loop in loops]
    return rows('sinkhorn 19 x 200 x 40, 50 iterations', interleaved(runs, repeats), 'clusterplug', {})


def measure(repeats):
    """Return the rows of Sinkhorn."""
    ot = optional('ot')
    generator = torch.Generator().manual_seed(0)
    return large(ot, repeats, generator) + small(ot, repeats, generator)
