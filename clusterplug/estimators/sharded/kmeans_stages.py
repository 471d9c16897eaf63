# SPDX-License-Identifier: Apache-2.0
"""k-means over shards: exact passes, or a step after each block."""

from typing import Any

import numpy as np
import torch

from clusterplug.estimators.minibatch_kmeans import minibatch_step
from clusterplug.estimators.sharded.passes import Farthest, sum_over_blocks
from clusterplug.estimators.sharded.run import Run
from clusterplug.estimators.sharded.shards import Block

# Movement (squared, relative to the variance) that is only rounding of the fp64 sums.
_STILL = 1e-20


def _first_centers(run: Run) -> tuple[np.ndarray, float]:
    """Return first centers (K, D) fp64 of a sample, and the mean variance of a coordinate of it."""

    def compute() -> tuple[np.ndarray, float]:
        num_rows = run.options.sample_rows or max(10_000, 256 * run.options.num_clusters)
        _, sample = run.sample(num_rows, stream=0)
        run.report(f'first centers from {len(sample)} rows')
        centers = run.engine.first_centers(sample, run.options.num_clusters, run.options.seed)
        return centers, float(sample.var(0, dtype=np.float64).mean())

    return run.on_first_rank(compute)


def lloyd(run: Run, loaded: tuple[dict, dict] | None) -> tuple[dict, dict]:
    """Iterate until the centers stand still; return arrays and values of the result."""
    if loaded is None:
        centers, variance = _first_centers(run)
        values: dict[str, Any] = {'iteration': 0, 'variance': variance, 'history': [], 'converged': False}
        run.save_state('lloyd', {'centers': centers}, **values)
    else:
        centers = loaded[0]['centers']
        values = {name: loaded[1][name] for name in ('iteration', 'variance', 'history', 'converged')}
        run.report(f'going on after pass {values["iteration"]}')
    while values['iteration'] < run.options.num_iters and not values['converged']:
        centers, inertia, shift = _lloyd_pass(run, centers, values['iteration'] + 1)
        values['iteration'] += 1
        values['history'] = [*values['history'], inertia]
        # The sample behind the variance may be rows that are all equal.
        scale = max(values['variance'], inertia / (len(run.shards) * run.shards.dim))
        values['converged'] = bool(shift <= max(run.options.tol, _STILL) * scale)
        run.save_state('lloyd', {'centers': centers}, **values)
        run.report(f'pass {values["iteration"]}: inertia {inertia:.8g}, centers moved {shift:.3g}')
    return {'centers': centers}, values


def _lloyd_pass(run: Run, centers: np.ndarray, number: int) -> tuple[np.ndarray, float, float]:
    num_clusters, dim = centers.shape
    farthest = Farthest(dim)

    def visit(points: np.ndarray, block: Block) -> np.ndarray:
        labels, squared = run.engine.nearest(points, centers)
        value = np.empty(num_clusters * (dim + 1) + 1)
        sums = torch.from_numpy(value[: num_clusters * dim].reshape(num_clusters, dim))
        # Around the centers the sums stay small: no digits are lost to an offset of the data.
        sums.zero_().index_add_(0, labels, torch.from_numpy(points - centers[labels.numpy()]))
        value[num_clusters * dim : -1] = np.bincount(labels.numpy(), minlength=num_clusters)
        value[-1] = float(squared.double().sum())
        top = squared.topk(min(Farthest.keep, len(squared))).indices.numpy()
        farthest.add(squared.numpy()[top].astype(np.float64), block.first + top, points[top])
        return value

    total = sum_over_blocks(run, f'pass {number}', num_clusters * (dim + 1) + 1, visit, farthest=farthest)
    counts = total[num_clusters * dim : -1]
    moves = total[: num_clusters * dim].reshape(num_clusters, dim) / counts.clip(1)[:, None]
    updated = centers + moves
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        everywhere = Farthest(dim)
        for part in run.group.gather(farthest.state()):
            everywhere.add(part['far_distances'], part['far_rows'], part['far_points'])
        replaced = empty[: len(everywhere.points)]
        updated[replaced] = everywhere.points[: len(replaced)]
        run.report(f'{len(empty)} empty clusters, {len(replaced)} moved to the farthest rows')
    return updated, float(total[-1]), float(np.square(updated - centers).sum())


def minibatch(run: Run, loaded: tuple[dict, dict] | None) -> tuple[dict, dict]:
    """Step after each block, in a new random order in each pass; return arrays and values of the result."""
    if loaded is None:
        first, variance = _first_centers(run)
        arrays: dict[str, Any] = {'centers': first.astype(np.float32), 'counts': np.zeros(len(first))}
        arrays['before'] = arrays['centers']
        values: dict[str, Any] = {'iteration': 0, 'position': 0, 'inertia': 0.0, 'variance': variance, 'history': []}
        values['converged'] = False
    else:
        arrays = loaded[0]
        names = ('iteration', 'position', 'inertia', 'variance', 'history', 'converged')
        values = {name: loaded[1][name] for name in names}
        run.report(f'going on in pass {values["iteration"] + 1} at block {values["position"]}')
    centers, counts = torch.from_numpy(arrays['centers'].copy()), torch.from_numpy(arrays['counts'].copy())
    before = arrays['before']
    while values['iteration'] < run.options.num_iters and not values['converged']:
        order = np.random.default_rng([run.options.seed, 1, values['iteration']]).permutation(len(run.blocks))
        for position in range(values['position'], len(order)):
            points = torch.from_numpy(run.shards.read(run.blocks[order[position]]))
            centers, counts, cost = minibatch_step(centers, counts, points)
            values['inertia'] += float(cost)
            values['position'] = position + 1
            if values['position'] % run.options.checkpoint_blocks == 0:
                state = {'centers': centers.numpy(), 'counts': counts.numpy(), 'before': before}
                run.save_state('minibatch', state, **values)
        shift = float((centers.double() - torch.from_numpy(before).double()).square().sum())
        values |= {
            'iteration': values['iteration'] + 1,
            'position': 0,
            'history': [*values['history'], values['inertia']],
            'inertia': 0.0,
            'converged': shift <= run.options.tol * values['variance'],
        }
        # Counts start anew with each pass: old positions lose their say, and the passes converge.
        counts, before = torch.zeros_like(counts), centers.numpy().copy()
        run.save_state('minibatch', {'centers': before, 'counts': counts.numpy(), 'before': before}, **values)
        run.report(f'pass {values["iteration"]}: inertia {values["history"][-1]:.8g}, centers moved {shift:.3g}')
    return {'centers': before, 'counts': counts.numpy(), 'before': before}, values
