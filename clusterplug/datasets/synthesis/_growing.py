# SPDX-License-Identifier: Apache-2.0
"""Dividing one node of a tree: pivots, criterion, values."""

from __future__ import annotations

from clusterplug.datasets.synthesis._calls import Calls
from clusterplug.datasets.synthesis.answers import COMPLETE, check_coverage, check_criterion, check_samples
from clusterplug.datasets.synthesis.node import Node


def most_rounds(tree) -> int:
    """Questions for missing values at most: every round that goes on brings a new value."""
    return tree.max_values + 1


def divide(tree, node: Node, calls: Calls, pivots, criterion, complete) -> list[Node]:
    """Ask what a node is divided by; returns its children, none where it stays a leaf."""
    if node.depth >= tree.max_depth:
        node.close()
        return []
    used = [name for name, _ in node.path]
    found = calls.ask(
        'pivots',
        [node.key],
        lambda rng: pivots(node.description(rng), tree.n_pivots, rng=rng),
        lambda answer: check_samples(answer, tree.n_pivots, tree.n_pivots),
    )
    if found is None:
        node.close('no pivots')
        return []
    divided = calls.ask(
        'criterion',
        [node.key],
        lambda rng: criterion(list(found), list(used), rng=rng),
        lambda answer: check_criterion(answer, len(found), used),
    )
    if divided is None:
        node.close('no criterion', found)
        return []
    values = _all_values(tree, node, calls, complete, divided['dimension'], tuple(divided['values']))
    if values is None:
        node.close('no end of the values', found)
        return []
    return node.divide(divided['dimension'], list(values), sampled=len(values) > tree.max_values)


def _all_values(tree, node: Node, calls: Calls, complete, name: str, values: tuple) -> tuple | None:
    """All values of a criterion, or more than the tree divides by; None where no usable answer ends them."""
    for number in range(most_rounds(tree)):
        more = calls.ask(
            'complete',
            [node.key, name, number],
            lambda rng, so_far=values: complete(name, list(so_far), rng=rng),
            lambda answer, so_far=values: check_coverage(answer, list(so_far)),
        )
        if more is None:
            return None
        values = (*values, *more['values'])
        if more['end'] == COMPLETE or len(values) > tree.max_values:
            break
    return values
