# SPDX-License-Identifier: Apache-2.0
"""Trees that divide the space of possible samples until every part is described by a few values."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

from clusterplug.core.checks import check_count, check_number
from clusterplug.core.files import write_json
from clusterplug.datasets.synthesis._calls import Calls, Cost, run_queue, session, total_cost
from clusterplug.datasets.synthesis._filling import LeafFiller, Synthesis, planned_calls
from clusterplug.datasets.synthesis._growing import divide, most_rounds
from clusterplug.datasets.synthesis._rebalancing import Rebalanced, rebalance
from clusterplug.datasets.synthesis._routing import Routed, route
from clusterplug.datasets.synthesis._tree_files import TREE, TreeFiles
from clusterplug.datasets.synthesis.node import INNER, OPEN, Node
from clusterplug.datasets.synthesis.protocol import identity_of, method_of

__all__ = ['PartitionTree']

# What a journal depends on: with other values, its answers belong to another tree.
_SHAPING = ('max_depth', 'n_pivots', 'max_values', 'samples_per_call', 'infinite_path_samples', 'seed')


def _optional(batch_size: int | None) -> int | None:
    return None if batch_size is None else check_count(batch_size, 'batch_size', 1)


class PartitionTree(TreeFiles):
    r"""A tree of criteria over a space of samples; its leaves exclude each other and cover the space.

    Every node of depth d < max_depth asks for ``n_pivots`` samples of its part, for the one new criterion in which they
    differ most, and for the missing values of that criterion. Up to ``max_values`` values become a child each
    ("exhaustive"); more become one child that carries the whole list ("sampled"), of which one is drawn for each call.
    A leaf with m sampled criteria on its path is filled with ``samples_per_call * infinite_path_samples ** m`` samples.

    Answers are checked; a refused one is asked for again, up to ``attempts`` times, then the node stays a leaf (its
    pivots count as samples). Calls without answer (time-out, server error) are repeated ``retries`` times after pauses
    that double; then the run ends with an error. With ``folder=`` every answer is in ``folder/journal.jsonl`` before
    anything is made of it: the same call goes on after a kill, an error or a budget, and gives the same tree as one
    that was never stopped. The same seed gives the same tree for any number of workers, if the generator draws from
    the ``rng`` it is given, or not at all.

    Args:
        max_depth: Criteria on a path, 0 for one leaf.
        n_pivots: Samples that a criterion is found from.
        max_values: Values of a criterion up to which each gets a child.
        attempts: Answers to one question that may be refused.
        samples_per_call: Samples asked for at once.
        infinite_path_samples: Factor on the samples of a leaf for each sampled criterion of its path.
        retries: Times that a call without answer is repeated.
        pause: First pause before that, seconds.
        seed: Of all draws.

    Attributes:
        root: The root :class:`Node`.
        cost: :class:`Cost` so far.

    Raises:
        TypeError, ValueError: An argument is out of range.

    Source:
        Wang et al., *TreeSynth: Synthesizing Diverse Data from Scratch via Tree-Guided Subspace Partitioning*, arXiv
        2503.17195, sections 3.1 to 3.3; official repository cpa2001/TreeSynth (Apache-2.0).

    **Differs from the authors' code**: samples of a leaf have one value only (theirs accepts a pivot under two values);
    the list of values ends (theirs asks for ever where no terminator comes); an answer is one line of a journal (theirs
    writes the whole tree after every node); no level waits for its slowest node; draws have a seed of their own node.

    Example:
        >>> from clusterplug.datasets.synthesis import AttributeGenerator, PartitionTree
        >>> shapes = AttributeGenerator({'color': ['red', 'blue'], 'size': ['small', 'large']})
        >>> tree = PartitionTree(max_depth=2, n_pivots=4).grow(shapes)
        >>> len(tree.leaves), len(tree.generate(shapes).samples)
        (4, 40)
        >>> tree.route([{'color': 'blue', 'size': 'small'}, {'color': 'green', 'size': 'small'}]).leaf[1]
        np.int64(-1)
    """

    def __init__(
        self, max_depth: int = 4, n_pivots: int = 10, max_values: int = 50, *, attempts: int = 5,
        samples_per_call: int = 10, infinite_path_samples: int = 10, retries: int = 5, pause: float = 1.0,
        seed: int = 0,
    ):  # fmt: skip
        self.max_depth = check_count(max_depth, 'max_depth', 0, 64)
        self.n_pivots = check_count(n_pivots, 'n_pivots', 1)
        self.max_values = check_count(max_values, 'max_values', 1)
        self.attempts = check_count(attempts, 'attempts', 1)
        self.samples_per_call = check_count(samples_per_call, 'samples_per_call', 1)
        self.infinite_path_samples = check_count(infinite_path_samples, 'infinite_path_samples', 1)
        self.retries = check_count(retries, 'retries', 0)
        self.pause = check_number(pause, 'pause', 0.0)
        self.seed = check_count(seed, 'seed', 0)
        self.root = Node()
        self._costs: dict[object, Cost] = {}
        self._generator = None

    @property
    def leaves(self) -> list[Node]:
        """Leaves from left to right; nodes that a budget left open count as leaves."""
        return [node for node in self.root.walk() if node.state != INNER]

    @property
    def is_complete(self) -> bool:
        """Whether no node is open."""
        return all(node.state != OPEN for node in self.root.walk())

    @property
    def cost(self) -> Cost:
        """What the generator has cost: the totals of the folders, and of the calls without one."""
        return total_cost(self._costs.values())

    def estimate(self, values: float = 5, sampled: int = 0, n_per_leaf: int | None = None) -> dict[str, int]:
        """Calls that growing and filling will take if every criterion has so many values; no call is made.

        Args:
            values: Values of a criterion, on average.
            sampled: How many criteria of each path have more than ``max_values`` values.
            n_per_leaf: As in :meth:`generate`.

        Returns:
            ``{'grow', 'grow_at_most', 'generate', 'leaves'}``; growing takes three calls a node where no answer is
            refused.
        """
        check_number(values, 'values', 1.0)
        sampled = check_count(sampled, 'sampled', 0, self.max_depth)
        divided = self.max_depth - sampled
        nodes = sum(values ** min(depth, divided) for depth in range(self.max_depth))
        leaves = values**divided
        found = {
            'grow': 3 * nodes,
            'grow_at_most': nodes * self.calls_per_node,
            'generate': leaves * planned_calls(self, sampled, n_per_leaf),
            'leaves': leaves,
        }
        return {name: math.ceil(number) for name, number in found.items()}

    @property
    def calls_per_node(self) -> int:
        """Calls that dividing one node can take at most, whatever the generator answers (without retries)."""
        return self.attempts * (2 + most_rounds(self))

    def grow(self, generator, *, folder=None, workers: int = 1, budget: int | None = None) -> PartitionTree:
        """Divide the space; returns the tree itself.

        Args:
            generator: A :class:`Generator`.
            folder: Keeps every answer, and the tree as ``tree.json``; the same call goes on with it. None: in memory.
            workers: Questions that are asked at the same time, in threads of this process.
            budget: Calls in total, those of earlier runs in the folder counted. When they are used up, the tree has
                open nodes (:attr:`is_complete` is False) and a warning says so.

        Raises:
            TypeError: The generator lacks a method, or samples cannot be kept in a folder.
            ValueError: The folder holds a tree of other settings.
            GeneratorUnavailable: No answer came, retries included; what was answered is kept.
            FolderInUse: Another process writes to the folder.
        """
        ask = [method_of(generator, name) for name in ('pivots', 'criterion', 'complete')]
        self.root, self._generator = Node(), generator
        with self._session(generator, folder, workers, budget) as calls:
            try:
                done = run_queue([self.root], lambda node: divide(self, node, calls, *ask), workers, calls)
            finally:
                self._keep(calls, folder)
        if not done:
            left = sum(node.state == OPEN for node in self.root.walk())
            self._warn(budget, f'{left} nodes of the tree are not divided')
        return self

    def generate(
        self, generator=None, n_per_leaf: int | None = None, *, folder=None, workers: int = 1,
        budget: int | None = None, unique: bool = False,
    ) -> Synthesis:  # fmt: skip
        """Fill every leaf.

        Args:
            generator: A :class:`Generator`; only ``samples`` is asked. None for the one that grew the tree.
            n_per_leaf: Samples of each leaf; None for ``samples_per_call * infinite_path_samples ** m``.
            folder, workers, budget: As in :meth:`grow`.
            unique: Refuse samples that the leaf has already.

        Returns:
            :class:`Synthesis`: samples, their leaf, and what is missing where a leaf could not be filled.

        Raises:
            TypeError: No generator, here or in :meth:`grow`.
            ValueError: Fewer than one sample a leaf.
        """
        if n_per_leaf is not None:
            n_per_leaf = check_count(n_per_leaf, 'n_per_leaf', 1)
        generator = self._generator if generator is None else generator
        if generator is None:
            raise TypeError('generator must be given: this tree was read from a file, not grown by one')
        ask, leaves = method_of(generator, 'samples'), self.leaves
        with self._session(generator, folder, workers, budget) as calls:
            filler = LeafFiller(self, calls, ask, unique)
            try:
                done = run_queue(
                    list(range(len(leaves))),
                    lambda index: filler.fill(index, leaves[index], n_per_leaf),
                    workers,
                    calls,
                )
            finally:
                self._keep(calls, folder)
        found = filler.result(leaves, n_per_leaf)
        if not done:
            self._warn(budget, f'{len(found.missing)} leaves are not full')
        return found

    def route(
        self, samples, generator=None, *, batch_size: int | None = None, folder=None, workers: int = 1,
        budget: int | None = None,
    ) -> Routed:  # fmt: skip
        """Find the leaf of each sample.

        Args:
            samples: A sequence of samples.
            generator: A :class:`Generator`, or a function ``(sample, criterion, values) -> value``. None for the
                one that grew the tree; where there is none, for samples that are dicts with the criteria as keys.
            batch_size: Samples of one question where the generator has ``route_batch``, and of one entry of a journal;
                by default the generator's own ``batch_size``, else 100.
            folder, workers, budget: As in :meth:`grow`.

        Returns:
            :class:`Routed`: index of the leaf of each sample, -1 where an answer was none of the values; such samples
            are counted, with the values.
        """
        generator = self._generator if generator is None else generator
        with self._session(generator, folder, workers, budget) as calls:
            try:
                found = route(self, samples, generator, _optional(batch_size), calls, workers, folder is not None)
            finally:
                self._keep(calls, folder)
        if not found.done:
            self._warn(budget, 'some samples are not routed')
        return found.routed

    def rebalance(
        self, samples, generator=None, n_per_leaf: int | None = None, *, router=None, fill: bool = True,
        batch_size: int | None = None, folder=None, workers: int = 1, budget: int | None = None,
    ) -> Rebalanced:  # fmt: skip
        """Make every leaf equally full: a random subset where there are too many, generated samples where too few.

        Args:
            samples: A sequence of samples.
            generator: Fills the leaves. None for the one that grew the tree; where there is none, and with
                ``fill=False``, leaves stay short, and the result says which.
            n_per_leaf: Samples of each leaf; None for ``samples_per_call * 5 ** m``, m sampled criteria on the path.
            router: As ``generator`` of :meth:`route`; None for the generator, where it can route.
            fill: Whether to generate what is missing.
            batch_size, folder, workers, budget: As in :meth:`route`.

        Returns:
            :class:`Rebalanced`: the samples, their leaves, where each comes from, and what is missing.
        """
        if n_per_leaf is not None:
            n_per_leaf = check_count(n_per_leaf, 'n_per_leaf', 1)
        generator = self._generator if generator is None else generator
        if router is None and any(callable(getattr(generator, name, None)) for name in ('route', 'route_batch')):
            router = generator
        with self._session(router, folder, workers, budget) as calls:
            try:
                routed, done = route(
                    self, samples, router, _optional(batch_size), calls, workers, folder is not None
                )  # fmt: skip
                calls.identity = identity_of(generator)
                found, filled = rebalance(
                    self, samples, routed, generator if done and fill else None, n_per_leaf, calls, workers
                )  # fmt: skip
            finally:
                self._keep(calls, folder)
        if not done or not filled:
            self._warn(budget, f'{len(found.missing)} leaves are not full')
        return found

    def _session(self, generator, folder, workers: int, budget: int | None):
        check_count(workers, 'workers', 1, 1024)
        if budget is not None:
            check_count(budget, 'budget', 0)
        options = dict(attempts=self.attempts, retries=self.retries, pause=self.pause, budget=budget)
        return session(folder, {name: getattr(self, name) for name in _SHAPING}, generator, **options)

    @property
    def settings(self) -> dict:
        """Arguments of the constructor."""
        return {name: getattr(self, name) for name in (*_SHAPING, 'attempts', 'retries', 'pause')}

    def _keep(self, calls: Calls, folder) -> None:
        self._costs[len(self._costs) if folder is None else os.path.realpath(folder)] = calls.cost()
        if folder is not None:
            write_json(Path(folder, TREE), self.to_dict())

    def _warn(self, budget: int | None, left: str) -> None:
        warnings.warn(
            f'the budget of {budget} calls is used up: {left}; with a folder, the same call with a larger budget goes '
            'on from here',
            RuntimeWarning,
            stacklevel=3,
        )

    def __repr__(self) -> str:
        return (
            f'PartitionTree(max_depth={self.max_depth}, n_pivots={self.n_pivots}, max_values={self.max_values}): '
            f'{len(self.leaves)} leaves, {self.cost.calls} calls'
        )
