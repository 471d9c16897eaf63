# SPDX-License-Identifier: Apache-2.0
"""Trees as JSON, as text and as a page."""

from __future__ import annotations

import html
import json
import os
from pathlib import Path

from clusterplug.core.files import write_json
from clusterplug.datasets.synthesis._calls import Cost
from clusterplug.datasets.synthesis.node import INNER, LEAF, OPEN, Node

TREE = 'tree.json'
_VERSION = 1
_SHOWN = 8  # values of a sampled criterion that are written out


class TreeFiles:
    """What a :class:`PartitionTree` is read from and written to."""

    def to_dict(self) -> dict:
        """Plain values: settings, nodes, costs."""
        return {
            'clusterplug_tree': _VERSION,
            'settings': self.settings,
            'cost': self.cost._asdict(),
            'root': _to_plain(self.root),
        }

    def to_json(self) -> str:
        """The tree as JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str):
        """Read what :meth:`to_json` gave.

        Raises:
            ValueError: The text is something else, or cut off.
        """
        return cls._read(text, 'text')

    @classmethod
    def _read(cls, text: str, home: str):
        try:
            content = json.loads(text)
            if content['clusterplug_tree'] != _VERSION:
                raise ValueError(f'version {content["clusterplug_tree"]!r}')
            tree = cls(**content['settings'])
            tree.root = _from_plain(content['root'], ())
            cost = content['cost']
            tree._costs[home] = Cost(**{**cost, 'tokens': tuple(cost['tokens'])})
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
            raise ValueError(f'{home} must be JSON that PartitionTree.to_json wrote ({error!r:.160})') from error
        return tree

    def save(self, path: str | os.PathLike) -> None:
        """Write the tree as JSON, whole or not at all."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike):
        """Read a tree that :meth:`save` wrote, or ``grow(folder=...)`` (a folder stands for its ``tree.json``)."""
        path = Path(path, TREE) if Path(path).is_dir() else Path(path)
        return cls._read(path.read_text(encoding='utf-8'), os.path.realpath(path.parent))

    def to_text(self, counts=None) -> str:
        """The tree as lines of text.

        Args:
            counts: Number of samples of each leaf, shown where given.
        """
        names, lines = _names_of(self.root, counts), []
        for node in self.root.walk():
            lines.append('  ' * node.depth + names[id(node)])
        return '\n'.join(lines)

    def to_html(self, counts=None, title: str = 'Partition tree') -> str:
        """The tree as a page of nested lists that fold; see :meth:`to_text`."""
        names = _names_of(self.root, counts)

        def part(node: Node) -> str:
            name = html.escape(names[id(node)])
            if not node.children:
                return f'<li>{name}</li>'
            inside = ''.join(part(child) for child in node.children)
            return f'<li><details open><summary>{name}</summary><ul>{inside}</ul></details></li>'

        head = f'<!DOCTYPE html><html><head><meta charset="utf-8"><title>{html.escape(title)}</title></head>'
        return f'{head}<body><h1>{html.escape(title)}</h1><ul>{part(self.root)}</ul></body></html>\n'


def _names_of(root: Node, counts) -> dict[int, str]:
    leaves = [node for node in root.walk() if node.state != INNER]
    if counts is not None and len(counts) != len(leaves):
        raise ValueError(f'counts must have one number for each of the {len(leaves)} leaves, got {len(counts)}')
    numbers = {id(leaf): f': {int(count)}' for leaf, count in zip(leaves, counts)} if counts is not None else {}
    found = {}
    for node in root.walk():
        name = 'all'
        if node.path:
            criterion, values = node.path[-1]
            shown = ', '.join(map(str, values[:_SHOWN])) + (', ...' if len(values) > _SHOWN else '')
            name = f'{criterion} = ' + (shown if len(values) == 1 else f'one of {len(values)} ({shown})')
        note = f' [{node.reason or node.state}]' if node.reason or node.state == OPEN else ''
        found[id(node)] = name + numbers.get(id(node), '') + note
    return found


def _to_plain(node: Node) -> dict:
    plain = {'state': node.state}
    if node.path:
        plain['values'] = list(node.path[-1][1])
    if node.state == INNER:
        plain |= {'criterion': node.criterion, 'sampled': node.sampled, 'children': list(map(_to_plain, node.children))}
    if node.reason:
        plain |= {'reason': node.reason, 'pivots': node.pivots}
    return plain


def _from_plain(plain: dict, path: tuple) -> Node:
    node = Node(path, plain['state'])
    if node.state == INNER:
        node.criterion, node.sampled = plain['criterion'], bool(plain['sampled'])
        node.children = [
            _from_plain(child, (*path, (node.criterion, tuple(child['values'])))) for child in plain['children']
        ]
        if not node.children:
            raise ValueError('a node without children')
    elif node.state == LEAF:
        node.reason, node.pivots = plain.get('reason', ''), plain.get('pivots', [])
    elif node.state != OPEN:
        raise ValueError(f'state {node.state!r}')
    return node
