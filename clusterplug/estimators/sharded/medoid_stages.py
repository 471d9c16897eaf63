# SPDX-License-Identifier: Apache-2.0
"""k-medoids over shards: medoids of several samples, compared on all rows."""

from typing import Any

import numpy as np
import torch

from clusterplug.estimators.sharded.passes import sum_over_blocks
from clusterplug.estimators.sharded.run import Run
from clusterplug.estimators.sharded.shards import Block
from clusterplug.functional.kmedoids import kmedoids, kmedoids_swap

# Swaps cost a multiple of the alternation: up to this many rows they end within seconds.
_SWAP_ROWS = 2000


def medoids_of_samples(run: Run, loaded: tuple[dict, dict] | None) -> tuple[dict, dict]:
    """Return the medoids, of those of each sample, that have the smallest sum of distances over all rows."""
    if loaded is None:
        rows, centers = run.on_first_rank(lambda: _candidates(run))
        arrays: dict[str, Any] = {'medoids': rows, 'centers': centers}
        values: dict[str, Any] = {'best': -1, 'costs': []}
        run.save_state('samples', arrays, **values)
    else:
        arrays, values = loaded[0], {name: loaded[1][name] for name in ('best', 'costs')}
        run.report('going on with the medoids of the samples')
    if values['best'] < 0:
        costs = sum_over_blocks(run, 'comparison', len(arrays['centers']), _distances_to(run, arrays['centers']))
        values = {'best': int(costs.argmin()), 'costs': costs.tolist()}
        run.save_state('compared', arrays, **values)
        run.report(f'sample {values["best"] + 1} of {len(costs)} is best: cost {costs.min():.8g}')
    best = values['best']
    result = {'centers': arrays['centers'][best].astype(np.float64), 'medoids': arrays['medoids'][best]}
    return result, {
        **values, 'iteration': len(values['costs']), 'history': values['costs'], 'converged': True,
    }  # fmt: skip


def _candidates(run: Run) -> tuple[np.ndarray, np.ndarray]:
    num_clusters = run.options.num_clusters
    num_rows = run.options.sample_rows or max(1000, 10 * num_clusters)
    chosen, points = [], []
    for number in range(run.options.num_samples):
        rows, sample = run.sample(num_rows, stream=2 + number)
        method = kmedoids_swap if len(sample) <= _SWAP_ROWS else kmedoids
        medoids = method(torch.from_numpy(sample), num_clusters).medoids.numpy()
        run.report(f'sample {number + 1} of {run.options.num_samples}: medoids of {len(sample)} rows')
        chosen.append(rows[medoids])
        points.append(sample[medoids])
    return np.stack(chosen), np.stack(points)


def _distances_to(run: Run, candidates: np.ndarray):
    def visit(points: np.ndarray, block: Block) -> np.ndarray:
        squared = [run.engine.nearest(points, centers.astype(np.float64))[1] for centers in candidates]
        return np.array([float(each.double().sqrt().sum()) for each in squared])

    return visit
