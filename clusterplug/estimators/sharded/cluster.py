"""Cluster a folder of shards: the order of the stages."""

import json
from collections.abc import Callable
from pathlib import Path

from clusterplug.core.files import write_json
from clusterplug.estimators.sharded.kmeans_stages import lloyd, minibatch
from clusterplug.estimators.sharded.labels import label_all
from clusterplug.estimators.sharded.medoid_stages import medoids_of_samples
from clusterplug.estimators.sharded.run import Run, ShardedOptions
from clusterplug.estimators.sharded.shards import ShardFolder

_STAGES = {'lloyd': lloyd, 'minibatch': minibatch, 'kmedoids': medoids_of_samples}


def cluster_shards(
    shards: ShardFolder, out: str | Path, options: ShardedOptions, report: Callable[[str], None] = lambda line: None
) -> dict:
    """Cluster all rows of ``shards`` and write the result into ``out``; go on where a killed run stopped.

    The result does not depend on kills, and not on the number of processes: sums are taken in fp64 along one fixed
    tree over the blocks. (The products that find the nearest center may round differently with another number of
    threads or another device; keep those the same.) A cluster that a pass of ``'lloyd'`` leaves empty moves to the
    row farthest from its center, up to 16 of them in a pass.

    Args:
        shards: The input.
        out: Folder for ``centers.npy`` (K, D) fp32, ``counts.npy`` (K,), ``labels/<shard>.npy`` int32, for
            ``'kmedoids'`` ``medoids.npy`` (K,) row numbers in the whole matrix, ``summary.json``, and checkpoints.
        options: What to do.
        report: Gets a line of progress now and then (on rank 0).

    Returns:
        The summary: number of rows, iterations, inertia (sum of squared distances; for ``'kmedoids'`` of distances).

    Raises:
        ValueError: If there are fewer rows than clusters, a row is not finite (with shard and row), or ``out`` holds
            the checkpoint of another run.
        RuntimeError: On the other ranks when one has raised.

    Source: Lloyd 1982; Sculley 2010 (mini-batch); Kaufman and Rousseeuw, "Finding groups in data", 1990 (CLARA).

    Example:
        >>> import numpy as np, pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = pathlib.Path(folder, 'data')
        ...     data.mkdir()
        ...     np.save(data / 'a.npy', np.array([[0.0], [1.0], [10.0]]))
        ...     np.save(data / 'b.npy', np.array([[11.0], [0.5]]))
        ...     summary = cluster_shards(ShardFolder(data), pathlib.Path(folder, 'out'), ShardedOptions(2))
        ...     sorted(np.load(pathlib.Path(folder, 'out', 'centers.npy')).ravel().tolist()), summary['inertia']
        ([0.5, 10.5], 1.0)
    """
    if len(shards) < options.num_clusters:
        raise ValueError(f'num_clusters must not exceed the number of rows, {len(shards)}, got {options.num_clusters}')
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(shards, out, options, report)
    if options.algorithm == 'minibatch' and run.group.size > 1:
        raise ValueError("algorithm 'minibatch' runs in one process, since each step needs the last; use 'lloyd'")
    loaded = run.load_state()
    if loaded is not None and loaded[1]['stage'] == 'finished':
        report('already finished; delete the output folder to start anew')
        return json.loads((out / 'summary.json').read_text())
    arrays, values = _STAGES[options.algorithm](run, loaded)
    summary = label_all(run, arrays, values)
    if run.group.rank == 0:
        write_json(out / 'summary.json', summary)
        run.save_state('finished', {})
        for path in out.glob('checkpoint.rank*.npz'):
            path.unlink()
    run.group.gather(None)
    return summary
