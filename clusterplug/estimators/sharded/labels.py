# SPDX-License-Identifier: Apache-2.0
"""The last pass: a label for every row."""

from pathlib import Path

import numpy as np

from clusterplug.core.files import mapped_array, whole_file
from clusterplug.estimators.sharded.passes import sum_over_blocks
from clusterplug.estimators.sharded.run import Run
from clusterplug.estimators.sharded.shards import Block


def label_all(run: Run, arrays: dict, values: dict) -> dict:
    """Write labels, centers and counts; return the summary."""
    centers = arrays['centers'].astype(np.float32).astype(np.float64)  # as they are written
    num_clusters = len(centers)
    is_medoids = run.options.algorithm == 'kmedoids'
    partial = [run.out / 'labels' / f'.{path.name}.partial' for path in run.shards.paths]
    fresh = run.on_first_rank(lambda: _prepare(run, partial))
    opened: dict[int, np.memmap] = {}

    def visit(points: np.ndarray, block: Block) -> np.ndarray:
        labels, squared = run.engine.nearest(points, centers)
        if block.shard not in opened:
            _flush(opened)
            opened[block.shard] = np.lib.format.open_memmap(partial[block.shard], mode='r+')
        opened[block.shard][block.start : block.stop] = labels.numpy()
        counts = np.bincount(labels.numpy(), minlength=num_clusters).astype(np.float64)
        distances = squared.double().sqrt() if is_medoids else squared.double()
        return np.append(counts, float(distances.sum()))

    total = sum_over_blocks(
        run,
        f'labels after {values["iteration"]} passes',  # a run that goes on with more passes has other centers
        num_clusters + 1,
        visit,
        before_checkpoint=lambda: _flush(opened),
        may_resume=not fresh,
    )
    summary = {
        'algorithm': run.options.algorithm,
        'engine': run.options.engine,
        'num_rows': len(run.shards),
        'dim': run.shards.dim,
        'num_clusters': num_clusters,
        'iterations': values['iteration'],
        'converged': values['converged'],
        'inertia': float(total[-1]),
        'history': values['history'],
    }
    run.on_first_rank(lambda: _publish(run, arrays, total[:-1], partial))
    run.report(f'{summary["num_rows"]} rows labelled, inertia {summary["inertia"]:.8g}')
    return summary


def _prepare(run: Run, partial: list[Path]) -> bool:
    """Create the label files unless all are there already; tell whether they are new."""
    (run.out / 'labels').mkdir(exist_ok=True)
    done = [run.out / 'labels' / f'{path.name}.npy' for path in run.shards.paths]
    if all(path.exists() for path in partial):
        return False
    for path in done:
        path.unlink(missing_ok=True)
    for path, rows in zip(partial, run.shards.rows):
        mapped_array(path, np.int32, (rows,)).flush()
    return True


def _flush(opened: dict[int, np.memmap]) -> None:
    """Write what was labeled; a shard that is left behind is closed."""
    for array in opened.values():
        array.flush()
    opened.clear()


def _publish(run: Run, arrays: dict, counts: np.ndarray, partial: list[Path]) -> None:
    found = {'centers': arrays['centers'].astype(np.float32), 'counts': counts.astype(np.int64)}
    if 'medoids' in arrays:
        found['medoids'] = arrays['medoids']
    for name, array in found.items():
        with whole_file(run.out / f'{name}.npy', 'wb') as file:
            np.save(file, array)
    for path, source in zip(run.shards.paths, partial):
        source.rename(run.out / 'labels' / f'{path.name}.npy')
