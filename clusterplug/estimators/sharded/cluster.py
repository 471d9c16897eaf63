# SPDX-License-Identifier: Apache-2.0
"""Cluster a folder of shards: the order of the stages."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from clusterplug.core.files import write_json
from clusterplug.core.outputs import locked_folder
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

    A finished run is returned as it is, unless ``num_iters`` asks for more passes than were made: then it goes on.

    Raises:
        ValueError: If there are fewer rows than clusters, a row is not finite (with shard and row), ``out`` holds the
            checkpoint of a run with other options or shards (content is compared by size, time and samples) or files
            of other origin, or ``out`` or a file in it really lies in the folder of the shards.
        FolderInUse: If another run writes to ``out``.
        OSError: If ``out`` is a file or cannot be written.
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
    run = Run(shards, out, options, report)
    if options.algorithm == 'minibatch' and run.group.size > 1:
        raise ValueError("algorithm 'minibatch' runs in one process, since each step needs the last; use 'lloyd'")
    with contextlib.ExitStack() as lock:
        run.on_first_rank(lambda: _take_folder(run, lock))
        loaded = run.load_state()
        if loaded is not None and loaded[1]['stage'] == 'finished' and _is_complete(run, loaded[1]):
            report('already finished; choose another output folder for another run')
            return run.on_first_rank(lambda: json.loads((out / 'summary.json').read_text()))
        arrays, values = _STAGES[options.algorithm](run, loaded)
        summary = label_all(run, arrays, values)
        run.on_first_rank(lambda: _finish(run, arrays, values, summary))
    return summary


def _take_folder(run: Run, lock: contextlib.ExitStack) -> None:
    """Lock the output folder; raise, before anything is written, if that would change files of other origin."""
    run.shards.refuse_targets([run.out, *run.targets()])
    if run.out.exists() and not run.out.is_dir():
        raise NotADirectoryError(f'{run.out} is a file; choose a folder for the result')
    lock.enter_context(locked_folder(run.out))
    there = [path for path in run.targets() if os.path.lexists(path)]
    if there and not run.state_path.exists():
        raise ValueError(
            f'{there[0]} is there already and no run of this tool wrote it (there is no {run.state_path.name}); choose '
            'another output folder'
        )


def _is_complete(run: Run, header: dict) -> bool:
    """Return whether a finished run needs no more passes and all its files are there."""
    more = run.options.num_iters > header['iteration'] and not header['converged']
    files = [path for path in run.results() if run.options.algorithm == 'kmedoids' or path.stem != 'medoids']
    return not more and all(path.is_file() for path in files)


def _finish(run: Run, arrays: dict, values: dict, summary: dict) -> None:
    write_json(run.out / 'summary.json', summary)
    run.save_state('finished', arrays, **values)
    # What processes that were killed left behind; the folder is locked, so nobody is writing these.
    for pattern in ('checkpoint.rank*.npz', '.checkpoint*.part', '.*.npy.*.part', '.summary.json.*.part'):
        for path in run.out.glob(pattern):
            path.unlink(missing_ok=True)
