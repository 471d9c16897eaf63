# SPDX-License-Identifier: Apache-2.0
"""Filling the leaves of a tree with samples."""

from __future__ import annotations

import json
import threading
from typing import NamedTuple

from clusterplug.datasets.synthesis._calls import Calls
from clusterplug.datasets.synthesis.answers import check_samples
from clusterplug.datasets.synthesis.node import Node
from clusterplug.datasets.synthesis.protocol import InvalidAnswer


class Synthesis(NamedTuple):
    """Samples of all leaves, from the first leaf to the last.

    Attributes:
        samples: What the generator gave.
        leaf: Index of each sample's leaf in ``tree.leaves``.
        descriptions: Description each sample was asked for; values of sampled criteria as they were drawn.
        missing: {leaf: number of samples that it lacks}, for leaves that could not be filled.
    """

    samples: list
    leaf: list[int]
    descriptions: list[dict]
    missing: dict[int, int]


def planned_samples(tree, num_sampled: int, n_per_leaf: int | None) -> int:
    """Samples that a leaf gets."""
    if n_per_leaf is not None:
        return n_per_leaf
    return tree.samples_per_call * tree.infinite_path_samples**num_sampled


def planned_calls(tree, num_sampled: int, n_per_leaf: int | None) -> int:
    """Calls that this takes where every answer is full."""
    return -(-planned_samples(tree, num_sampled, n_per_leaf) // tree.samples_per_call)


class LeafFiller:
    """Asks for samples until leaves are full, or nothing more comes."""

    def __init__(self, tree, calls: Calls, ask, unique: bool = False, step: str = 'samples'):
        self._tree, self._calls, self._ask, self._unique, self._step = tree, calls, ask, unique, step
        self._found: dict[int, list[tuple[object, dict]]] = {}
        self._lock = threading.Lock()

    def fill(self, index: int, leaf: Node, n_per_leaf: int | None, there: list | None = None) -> None:
        """Ask for the samples of one leaf.

        Args:
            index: Of the leaf.
            leaf: The leaf.
            n_per_leaf: Samples wanted, None for the tree's own number.
            there: Samples that it has already (only told apart from with ``unique``).
        """
        wanted = planned_samples(self._tree, leaf.num_sampled, n_per_leaf)
        found: list[tuple[object, dict]] = [(pivot, leaf.description()) for pivot in leaf.pivots][:wanted]
        with self._lock:
            self._found[index] = found
        known = {_text(sample) for sample in [*(there or []), *(each[0] for each in found)]} if self._unique else set()
        for number in range(wanted):  # every usable answer brings at least one
            missing = min(self._tree.samples_per_call, wanted - len(found))
            if missing <= 0:
                return
            answer = self._one_call(leaf, number, missing, known)
            if answer is None:
                return
            found += answer
            known |= {_text(sample) for sample, _ in answer} if self._unique else set()

    def _one_call(self, leaf: Node, number: int, n: int, known: set) -> list | None:
        key = [leaf.key, number, n]

        def description() -> dict:
            return leaf.description(self._calls.rng('description', leaf.key, number))

        def check(answer):
            samples = check_samples(answer, n)
            if self._unique:
                samples = list({_text(each): each for each in samples if _text(each) not in known}.values())
                if not samples:
                    raise InvalidAnswer('all samples of the answer are there already')
            return samples

        samples = self._calls.ask(self._step, key, lambda rng: self._ask(description(), n, rng=rng), check)
        return None if samples is None else [(sample, description()) for sample in samples]

    def of(self, index: int) -> list[tuple[object, dict]]:
        """Samples of one leaf, and what was asked for."""
        return self._found.get(index, [])

    def result(self, leaves: list[Node], n_per_leaf: int | None) -> Synthesis:
        """All samples in the order of the leaves."""
        found = Synthesis([], [], [], {})
        for index, leaf in enumerate(leaves):
            for sample, description in self.of(index):
                found.samples.append(sample)
                found.leaf.append(index)
                found.descriptions.append(description)
            lacks = planned_samples(self._tree, leaf.num_sampled, n_per_leaf) - len(self.of(index))
            if lacks > 0:
                found.missing[index] = lacks
        return found


def _text(sample) -> str:
    return json.dumps(sample, sort_keys=True, default=repr)
