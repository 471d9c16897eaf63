# SPDX-License-Identifier: Apache-2.0
"""One pass over a process's share of the blocks, with checkpoints inside."""

import json
import time
from collections.abc import Callable

import numpy as np

from clusterplug.core.files import load_arrays, save_arrays
from clusterplug.estimators.sharded.ordered_sum import Node, OrderedSum
from clusterplug.estimators.sharded.run import Run
from clusterplug.estimators.sharded.shards import Block

_REPORT_SECONDS = 5.0


class Farthest:
    """The rows farthest from their centers in a pass, the same whatever the order in which blocks come."""

    keep = 16

    def __init__(self, dim: int):
        self.distances, self.rows = np.zeros(0), np.zeros(0, np.int64)
        self.points = np.zeros((0, dim), np.float32)

    def add(self, distances: np.ndarray, rows: np.ndarray, points: np.ndarray) -> None:
        """Take in rows; those of equal distance are ordered by their number."""
        distances = np.concatenate([self.distances, distances])
        rows, points = np.concatenate([self.rows, rows]), np.concatenate([self.points, points])
        order = np.lexsort((rows, -distances))[: self.keep]
        self.distances, self.rows, self.points = distances[order], rows[order], points[order]

    def state(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint needs."""
        return {'far_distances': self.distances, 'far_rows': self.rows, 'far_points': self.points}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Go back to :meth:`state`."""
        self.distances, self.rows, self.points = (arrays[name] for name in ('far_distances', 'far_rows', 'far_points'))


def sum_over_blocks(
    run: Run,
    tag: str,
    length: int,
    visit: Callable[[np.ndarray, Block], np.ndarray],
    *,
    farthest: Farthest | None = None,
    before_checkpoint: Callable[[], None] = lambda: None,
    may_resume: bool = True,
) -> np.ndarray:
    """Return the sum of ``visit(points, block)`` over all blocks of all ranks.

    Args:
        run: The run.
        tag: Name of the pass; a checkpoint within a pass of another name is not taken up.
        length: Length of the vectors that ``visit`` returns.
        visit: Called for each block with its points; returns an fp64 vector.
        farthest: State of the pass to be kept beside the sums.
        before_checkpoint: Called before the state is written, to flush what belongs to it.
        may_resume: False starts the pass anew.
    """
    share = run.group.share(len(run.blocks))
    partial, start = OrderedSum(), share.start
    if may_resume:
        partial, start = _resume(run, tag, share, farthest)
    error, clock, begin = None, time.monotonic(), time.monotonic()
    try:
        for number in range(start, share.stop):
            block = run.blocks[number]
            partial.add(Node(0, number, visit(run.shards.read(block), block)))
            if (number + 1 - share.start) % run.options.checkpoint_blocks == 0:
                before_checkpoint()
                _checkpoint(run, tag, share, number + 1, partial, farthest)
            if run.group.rank == 0 and time.monotonic() - clock > _REPORT_SECONDS:
                clock = time.monotonic()
                rate = (number + 1 - start) / (clock - begin)
                left = (share.stop - number - 1) / rate
                run.report(f'{tag}: block {number + 1 - share.start} of {len(share)}, {left:.0f} s to go')
        before_checkpoint()
    except Exception as problem:
        error = problem
    run.group.raise_together(error)
    return run.group.sum_nodes(partial, len(run.blocks), length)


def _checkpoint(
    run: Run, tag: str, share: range, following: int, partial: OrderedSum, farthest: Farthest | None
) -> None:
    arrays = {f'node{i}': node.value for i, node in enumerate(partial.nodes)}
    arrays |= farthest.state() if farthest else {}
    places = [list(node[:2]) for node in partial.nodes]
    header = {'tag': tag, 'share': [share.start, share.stop], 'following': following, 'nodes': places}
    save_arrays(run.pass_path, arrays, {**header, 'identity': run.identity})


def _resume(run: Run, tag: str, share: range, farthest: Farthest | None) -> tuple[OrderedSum, int]:
    """Return the sums and the next block of a pass that was cut short; the beginning if there is no such state."""
    try:
        arrays, header = load_arrays(run.pass_path)
    except FileNotFoundError:
        return OrderedSum(), share.start
    # Another tag is a pass that ended; another share is a run with another number of processes.
    same_run = header['identity'] == json.loads(json.dumps(run.identity))
    if not same_run or header['tag'] != tag or header['share'] != [share.start, share.stop]:
        return OrderedSum(), share.start
    if farthest:
        farthest.restore(arrays)
    nodes = [Node(level, index, arrays[f'node{i}']) for i, (level, index) in enumerate(header['nodes'])]
    return OrderedSum(nodes), header['following']
