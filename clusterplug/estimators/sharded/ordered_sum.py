# SPDX-License-Identifier: Apache-2.0
"""A sum over numbered blocks whose rounding does not depend on who adds which block."""

from typing import NamedTuple

import numpy as np


class Node(NamedTuple):
    """The sum of the blocks ``number * 2^level`` to ``(number + 1) * 2^level - 1``."""

    level: int
    number: int
    value: np.ndarray


class OrderedSum:
    """Adds fp64 vectors as the leaves of one fixed binary tree over the block numbers.

    Neighbors (2i, 2i + 1) of a level are added as soon as both are there; whatever part of the blocks a process
    has, it holds at most two nodes for each level, and putting the nodes of all processes together in the order of
    the blocks goes on with the same additions. One process and many therefore agree to the last bit.

    Example:
        >>> import numpy as np
        >>> values = np.random.default_rng(0).normal(size=(11, 1))
        >>> whole, left, right = OrderedSum(), OrderedSum(), OrderedSum()
        >>> for i, value in enumerate(values):
        ...     whole.add(Node(0, i, value))
        ...     (left if i < 5 else right).add(Node(0, i, value))
        >>> for node in right.nodes:
        ...     left.add(node)
        >>> bool(left.total() == whole.total())
        True
    """

    def __init__(self, nodes: list[Node] | None = None):
        self.nodes: list[Node] = [] if nodes is None else list(nodes)

    def add(self, node: Node) -> None:
        """Add the next node in the order of the blocks."""
        while self.nodes and node.number % 2 and self.nodes[-1][:2] == (node.level, node.number - 1):
            node = Node(node.level + 1, node.number // 2, self.nodes.pop().value + node.value)
        self.nodes.append(node)

    def total(self) -> np.ndarray:
        """Return the sum of everything added, highest nodes first."""
        value = self.nodes[0].value.copy()
        for node in self.nodes[1:]:
            value += node.value
        return value


def layout(start: int, stop: int) -> list[tuple[int, int]]:
    """Return level and index of the nodes that hold the blocks ``start`` to ``stop - 1``."""
    counted = OrderedSum()
    for index in range(start, stop):
        counted.add(Node(0, index, np.zeros(0)))
    return [node[:2] for node in counted.nodes]
