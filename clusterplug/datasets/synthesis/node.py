# SPDX-License-Identifier: Apache-2.0
"""One node of a partition tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from clusterplug.datasets.synthesis.answers import digest, value_key

__all__ = ['Node']

OPEN, INNER, LEAF = 'open', 'inner', 'leaf'


@dataclass(eq=False)
class Node:
    """A part of the space: what its path says.

    Attributes:
        path: ((criterion, values), ...) from the root. One value where the part is one value's; the whole list where
            the criterion has more values than the tree allows ("sampled"): then one is drawn each time.
        state: ``'open'`` (not divided yet), ``'inner'`` or ``'leaf'``.
        criterion: What an inner node is divided by.
        sampled: Whether its values are in one child, to be drawn from.
        children: Parts of an inner node: one for each value, or one for all of them.
        reason: Why a leaf above the depth limit was not divided.
        pivots: Samples of such a leaf that were paid for already.
    """

    path: tuple[tuple[str, tuple], ...] = ()
    state: str = OPEN
    criterion: str | None = None
    sampled: bool = False
    children: list[Node] = field(default_factory=list)
    reason: str = ''
    pivots: list = field(default_factory=list)

    @property
    def depth(self) -> int:
        """Number of criteria on the path."""
        return len(self.path)

    @cached_property
    def key(self) -> str:
        """A short text that no other node has."""
        return digest(*([criterion, [value_key(value) for value in values]] for criterion, values in self.path))

    @property
    def num_sampled(self) -> int:
        """Number of sampled criteria on the path."""
        return sum(len(values) > 1 for _, values in self.path)

    @property
    def values(self) -> list:
        """Values that an inner node is divided into."""
        return [value for child in self.children for value in child.path[-1][1]]

    def description(self, rng: np.random.Generator | None = None) -> dict:
        """{criterion: value} of the path, values of sampled criteria drawn uniformly, or all as a tuple without rng."""
        found = {}
        for criterion, values in self.path:
            if len(values) == 1:
                found[criterion] = values[0]
            else:
                found[criterion] = values if rng is None else values[int(rng.integers(len(values)))]
        return found

    def divide(self, criterion: str, values: list, sampled: bool) -> list[Node]:
        """Make the node an inner one; returns its children."""
        parts = [tuple(values)] if sampled else [(value,) for value in values]
        self.children = [Node((*self.path, (criterion, part))) for part in parts]
        self.state, self.criterion, self.sampled = INNER, criterion, sampled
        return self.children

    def close(self, reason: str = '', pivots: list | None = None) -> None:
        """Make the node a leaf."""
        self.state, self.reason, self.pivots = LEAF, reason, list(pivots or [])

    def walk(self) -> Iterator[Node]:
        """The node and all below it, parents first, from left to right."""
        todo = [self]
        while todo:
            node = todo.pop()
            yield node
            todo += node.children[::-1]
