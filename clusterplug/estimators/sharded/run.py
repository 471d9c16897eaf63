# SPDX-License-Identifier: Apache-2.0
"""Options of a run over shards, and its state on disk."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.core.files import load_arrays, save_arrays
from clusterplug.estimators.sharded.group import ProcessGroup
from clusterplug.estimators.sharded.nearest import ENGINES, make_engine
from clusterplug.estimators.sharded.shards import ShardFolder

_Value = TypeVar('_Value')

ALGORITHMS = ('lloyd', 'minibatch', 'kmedoids')


@dataclasses.dataclass(frozen=True)
class ShardedOptions:
    """What a run does.

    Args:
        num_clusters: K.
        algorithm: ``'lloyd'``: exact k-means, every iteration a pass over all shards. ``'minibatch'``: k-means with
            a step after each block, in one process. ``'kmedoids'``: k-medoids of several samples, the best on all
            rows (CLARA); medoids are rows of the shards.
        engine: ``'torch'`` or ``'faiss'``: what finds first centers and nearest centers.
        device: Device of the torch engine; sums are always taken on the CPU in fp64.
        num_iters: Most passes of ``'lloyd'`` and ``'minibatch'``.
        tol: Ends when the centers move, in squared distance summed over the clusters, by at most ``tol`` times the
            mean variance of a coordinate; 0: when they stand still.
        seed: Seed of sample, first centers and order of blocks.
        block_rows: Rows read at once. Part of the result's definition: another number, other last bits.
        sample_rows: Rows in memory for the first centers (default 256 K, at least 10,000), or in each of the
            samples of ``'kmedoids'`` (default 10 K, at least 1,000; its square must fit in memory).
        num_samples: Samples of ``'kmedoids'``.
        checkpoint_blocks: Blocks between two checkpoints within a pass.
    """

    num_clusters: int
    algorithm: str = 'lloyd'
    engine: str = 'torch'
    device: str = 'cpu'
    num_iters: int = 100
    tol: float = 1e-4
    seed: int = 0
    block_rows: int = 16384
    sample_rows: int | None = None
    num_samples: int = 5
    checkpoint_blocks: int = 100

    def __post_init__(self):
        for name in ('num_clusters', 'num_iters', 'block_rows', 'num_samples', 'checkpoint_blocks'):
            self._keep(name, check_count(getattr(self, name), name, 1))
        self._keep('seed', check_count(self.seed, 'seed', 0))
        self._keep('tol', check_number(self.tol, 'tol', 0))
        check_choice(self.algorithm, 'algorithm', ALGORITHMS)
        check_choice(self.engine, 'engine', ENGINES)
        if self.sample_rows is not None:
            self._keep('sample_rows', check_count(self.sample_rows, 'sample_rows', 1))
        if self.sample_rows is not None and self.sample_rows < self.num_clusters:
            raise ValueError(f'sample_rows must be at least num_clusters, {self.num_clusters}, got {self.sample_rows}')

    def _keep(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # NumPy numbers become plain ones, which a checkpoint can hold


class Run:
    """One run: shards, options, processes, and its state in the folder ``out``."""

    def __init__(self, shards: ShardFolder, out: Path, options: ShardedOptions, report: Callable[[str], None]):
        self.shards, self.out, self.options = shards, out, options
        self.group = ProcessGroup()
        self.report = report if self.group.rank == 0 else lambda line: None
        self.engine = make_engine(options.engine, options.device)
        self.blocks = shards.blocks(options.block_rows)
        self.identity = {
            'options': {
                name: value
                for name, value in dataclasses.asdict(options).items()
                if name not in ('device', 'checkpoint_blocks', 'num_iters')
            },
            'normalize': shards.normalize,
            'shards': shards.describe(),
        }

    @property
    def state_path(self) -> Path:
        return self.out / 'checkpoint.npz'

    @property
    def pass_path(self) -> Path:
        return self.out / f'checkpoint.rank{self.group.rank}.npz'

    def results(self) -> list[Path]:
        """Return the files of a finished run."""
        names = ('centers.npy', 'counts.npy', 'medoids.npy', 'summary.json')
        labels = [self.out / 'labels' / f'{path.name}.npy' for path in self.shards.paths]
        return [*(self.out / name for name in names), *labels]

    def targets(self) -> list[Path]:
        """Return all files that are written, but for hidden ones of the moment."""
        return [*self.results(), self.state_path, self.pass_path]

    def load_state(self) -> tuple[dict, dict] | None:
        """Return arrays and header of the last finished pass on every rank, or None at the start."""
        loaded, error = None, None
        if self.group.rank == 0 and self.state_path.exists():
            try:
                loaded = load_arrays(self.state_path)
                self._compare(loaded[1])
                self._compare_passes(loaded[1])
            except (ValueError, OSError) as problem:
                error = problem
        self.group.raise_together(error)
        return self.group.broadcast(loaded)

    def _compare(self, header: dict) -> None:
        now, before = json.loads(json.dumps(self.identity)), header.get('identity')
        if now == before:
            return
        if not isinstance(before, dict) or not isinstance(before.get('options'), dict):
            raise ValueError(f'{self.state_path} was not written by this tool; choose another output folder')
        different = [name for name in now['options'] if now['options'][name] != before['options'].get(name)]
        different += [name for name in ('normalize', 'shards') if now[name] != before.get(name)]
        raise ValueError(
            f'{self.state_path} belongs to a run with other {", ".join(different)}; choose another output folder'
        )

    def _compare_passes(self, header: dict) -> None:
        done = header.get('iteration', 0)
        if self.options.algorithm != 'kmedoids' and done > self.options.num_iters:
            raise ValueError(
                f'num_iters must be at least {done}, the passes that the run in {self.out} has made, got '
                f'{self.options.num_iters}; choose another output folder for a shorter run'
            )

    def save_state(self, stage: str, arrays: dict[str, np.ndarray], **values: object) -> None:
        """Write the state after a pass (rank 0)."""
        if self.group.rank == 0:
            save_arrays(self.state_path, arrays, {'identity': self.identity, 'stage': stage, **values})

    def sample(self, num_rows: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers (ascending) and points of random rows; the same for the same seed and ``stream``."""
        draws = np.random.default_rng([self.options.seed, stream])
        rows = np.sort(draws.choice(len(self.shards), min(num_rows, len(self.shards)), replace=False))
        return rows, self.shards.take(rows)

    def on_first_rank(self, compute: Callable[[], _Value]) -> _Value:
        """Return what rank 0 computes on every rank; an error on rank 0 stops all."""
        value, error = None, None
        if self.group.rank == 0:
            try:
                value = compute()
            except Exception as problem:
                error = problem
        self.group.raise_together(error)
        return self.group.broadcast(value)
