# SPDX-License-Identifier: Apache-2.0
"""Equally full leaves: fewer of what is common, more of what is rare."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from clusterplug.datasets.synthesis._calls import Calls, run_queue
from clusterplug.datasets.synthesis._filling import LeafFiller
from clusterplug.datasets.synthesis._routing import Routed
from clusterplug.datasets.synthesis.protocol import method_of

_FACTOR = 5  # of the target, for each sampled criterion


class Rebalanced(NamedTuple):
    """A balanced set.

    Attributes:
        samples: Originals and generated samples, leaf by leaf.
        leaf: Index of each sample's leaf in ``tree.leaves``.
        source: Row of the original set, -1 for a generated sample.
        counts: (leaves,) how many originals each leaf had.
        missing: {leaf: number of samples that it lacks}.
        routed: Where the originals belong; those of leaf -1 are not in ``samples``.
    """

    samples: list
    leaf: list[int]
    source: list[int]
    counts: np.ndarray
    missing: dict[int, int]
    routed: Routed


def rebalance(
    tree, samples, routed: Routed, generator, n_per_leaf: int | None, calls: Calls, workers: int
) -> tuple[Rebalanced, bool]:
    """See :meth:`PartitionTree.rebalance`."""
    leaves = tree.leaves
    counts = np.bincount(routed.leaf[routed.leaf >= 0], minlength=len(leaves))
    targets = [n_per_leaf or tree.samples_per_call * _FACTOR**leaf.num_sampled for leaf in leaves]
    kept: list[list[int]] = []
    for index, (leaf, target) in enumerate(zip(leaves, targets)):
        rows = np.flatnonzero(routed.leaf == index)
        if len(rows) > target:
            rows = np.sort(calls.rng('subset', leaf.key).choice(rows, target, replace=False))
        kept.append(rows.tolist())
    done, filler = True, None
    if generator is not None:
        filler = LeafFiller(tree, calls, method_of(generator, 'samples'), step='fill')
        todo = [index for index in range(len(leaves)) if len(kept[index]) < targets[index]]
        done = run_queue(
            todo,
            lambda index: filler.fill(index, leaves[index], targets[index] - len(kept[index])),
            workers,
            calls,
        )
    found = Rebalanced([], [], [], counts, {}, routed)
    for index, rows in enumerate(kept):
        new = [sample for sample, _ in filler.of(index)] if filler else []
        found.samples.extend([*(samples[row] for row in rows), *new])
        found.source.extend([*rows, *([-1] * len(new))])
        found.leaf.extend([index] * (len(rows) + len(new)))
        if len(rows) + len(new) < targets[index]:
            found.missing[index] = targets[index] - len(rows) - len(new)
    return found, done
