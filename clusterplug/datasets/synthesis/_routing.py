# SPDX-License-Identifier: Apache-2.0
"""Finding the leaf of every sample of a set."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from clusterplug.datasets.synthesis._calls import Calls, run_queue
from clusterplug.datasets.synthesis.answers import digest, find_json, value_key
from clusterplug.datasets.synthesis.node import INNER, Node
from clusterplug.datasets.synthesis.protocol import InvalidAnswer, with_rng

_BATCH, _FREE = 100, 2000  # samples of one question; of one piece of work where nothing depends on it
_MOST_NAMED = 20  # unknown values that are kept for the report


class Routed(NamedTuple):
    """Where samples belong.

    Attributes:
        leaf: (N,) int64, index in ``tree.leaves``; -1 where an answer was none of the values.
        depth: (N,) int64, how deep each sample came.
        errors: {what went wrong: number of samples}, the commonest first.
    """

    leaf: np.ndarray
    depth: np.ndarray
    errors: dict[str, int]


class Outcome(NamedTuple):
    """Routed samples, and whether the budget sufficed."""

    routed: Routed
    done: bool


def router_of(generator) -> tuple[Callable, bool]:
    """Return ``(function, whether it takes many samples)`` of a generator, a function, or None."""
    if generator is None:
        return _by_key, False
    for name, many in (('route_batch', True), ('route', False)):
        method = getattr(generator, name, None)
        if callable(method):
            return with_rng(method), many
    if callable(generator):
        return with_rng(generator), False
    raise TypeError(
        'generator must have a method route(sample, criterion, values), be such a function, or be None for samples '
        f'that are dicts, got {type(generator).__name__}'
    )


def _by_key(sample, criterion: str, values: list, rng=None):
    if not isinstance(sample, Mapping):
        raise TypeError(
            f'samples must be dicts with the criteria as keys where no generator routes them, got '
            f'{type(sample).__name__}; pass generator=, a function (sample, criterion, values) -> value'
        )
    return sample.get(criterion)


def route(tree, samples, generator, size: int | None, calls: Calls, workers: int, kept: bool) -> Outcome:
    """See :meth:`PartitionTree.route`; ``kept``: answers go to a file, so samples must be plain values."""
    ask, many = router_of(generator)
    if hasattr(samples, 'iloc'):
        raise TypeError("samples must be a list of samples, got a table; pass table.to_dict('records')")
    if isinstance(samples, str | bytes | Mapping) or not hasattr(samples, '__len__'):
        raise TypeError(f'samples must be a sequence of samples, got {type(samples).__name__}')
    number = len(samples)
    size = size or getattr(generator, 'batch_size', _BATCH if kept or many else _FREE)
    lock, leaf, depth, errors = threading.Lock(), np.full(number, -1, np.int64), np.zeros(number, np.int64), Counter()
    order = {id(node): index for index, node in enumerate(tree.leaves)}

    waiting: dict[int, tuple[Node, list[np.ndarray]]] = {}

    def pass_on(node: Node, rows: np.ndarray) -> None:
        """Through sampled criteria, down to the next question or a leaf."""
        while node.state == INNER and node.sampled:
            node = node.children[0]
        depth[rows] = node.depth
        if node.state != INNER:
            leaf[rows] = order[id(node)]
        else:
            with lock:
                waiting.setdefault(id(node), (node, []))[1].append(rows)

    def work(item) -> None:
        node, rows = item
        batch = [samples[row] for row in rows.tolist()]
        name, values = node.criterion, node.values
        children = {value_key(value): child for value, child in zip(values, node.children)}

        def call(rng):
            if many:
                return ask(batch, name, list(values), rng=rng)
            return [ask(sample, name, list(values), rng=rng) for sample in batch]

        # In a file the question is told by its samples, else by their numbers, which takes no time.
        mark = _digest_of(batch) if kept else rows[[0, -1]].tolist()
        count = 0 if generator is None else 1 if many else len(batch)
        key = [node.key, mark, len(batch)]
        answers = calls.ask('route', key, call, lambda answer: _keys(answer, len(batch), many), count)
        if answers is None:
            with lock:
                errors[f'{name}: no usable answer'] += len(batch)
            return
        parts: dict[str, list[int]] = {}
        for row, value in zip(rows.tolist(), answers):
            parts.setdefault(value, []).append(row)
        for value, part in parts.items():
            if value in children:
                pass_on(children[value], np.array(part))
            else:
                with lock:
                    errors[f'{name}: {value!r:.60} is none of its values'] += len(part)

    if number:
        pass_on(tree.root, np.arange(number))
    done = True
    while waiting and done:  # level by level, so that the questions of a node are full
        level, waiting = waiting, {}
        chunks = []
        for node, parts in level.values():
            rows = np.sort(np.concatenate(parts))
            chunks += [(node, rows[start : start + size]) for start in range(0, len(rows), size)]
        done = run_queue(chunks, work, workers, calls)
    rest = errors.most_common()
    named = dict(rest[:_MOST_NAMED])
    if rest[_MOST_NAMED:]:
        named['other values'] = sum(count for _, count in rest[_MOST_NAMED:])
    return Outcome(Routed(leaf, depth, named), done)


def _digest_of(batch: list) -> str:
    try:
        return digest(batch)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f'samples must be plain values (texts, numbers, lists, dicts) where answers are kept in a folder: {error}; '
            'pass folder=None'
        ) from error


def _keys(answer, count: int, many: bool) -> list[str]:
    """Comparable values of a batch; only an answer of the wrong length is asked for again."""
    if many and isinstance(answer, str):
        answer = find_json(answer, list)
    if not isinstance(answer, list | tuple | np.ndarray) or len(answer) != count:
        raise InvalidAnswer(f'{count} values are needed, one a sample, got {answer!r:.120}')
    known: dict = {}
    keys = []
    for value in answer:
        try:
            # the type too: True is 1 in a dict
            key = known.get((value.__class__, value))
        except TypeError:  # a list or a dict: surely none of the values
            keys.append(value_key(value))
            continue
        if key is None:
            key = known[value.__class__, value] = value_key(value)
        keys.append(key)
    return keys
