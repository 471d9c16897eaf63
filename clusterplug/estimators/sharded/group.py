# SPDX-License-Identifier: Apache-2.0
"""The processes of a run: one, or those of a torch.distributed group."""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from clusterplug.estimators.sharded.ordered_sum import Node, OrderedSum, layout


class ProcessGroup:
    """Rank, share of the blocks, and the exchanges that a run needs."""

    def __init__(self):
        self.active = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.active else 0
        self.size = dist.get_world_size() if self.active else 1

    def share(self, num_blocks: int, rank: int | None = None) -> range:
        """Return the numbers of the blocks of a rank: one stretch, as many as the others have, give or take one."""
        rank = self.rank if rank is None else rank
        return range(num_blocks * rank // self.size, num_blocks * (rank + 1) // self.size)

    def sum_nodes(self, partial: OrderedSum, num_blocks: int, length: int) -> np.ndarray:
        """Return the sum over all blocks of all ranks, the same bits on each rank for any number of ranks."""
        if self.size == 1:
            return partial.total()
        whole = OrderedSum()
        for rank in range(self.size):
            share = self.share(num_blocks, rank)
            for number, (level, index) in enumerate(layout(share.start, share.stop)):
                mine = rank == self.rank
                value = torch.from_numpy(partial.nodes[number].value if mine else np.empty(length))
                dist.broadcast(value, src=rank)
                whole.add(Node(level, index, value.numpy()))
        return whole.total()

    def broadcast(self, value: object) -> Any:
        """Return rank 0's value (see :meth:`gather`) on every rank."""
        return self.gather(value if self.rank == 0 else None)[0] if self.size > 1 else value

    def gather(self, value: object) -> list:
        """Return every rank's value on every rank, by rank.

        Values are None, numbers, strings, arrays of numbers, and lists, tuples and dicts of those. They travel as
        bytes without code: who can reach the group's port can send wrong numbers, but nothing that runs.
        """
        if self.size == 1:
            return [value]
        mine = torch.from_numpy(np.frombuffer(_pack(value), dtype=np.uint8).copy())
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(mine)]))
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [_unpack(part[: int(length)].numpy().tobytes()) for part, length in zip(parts, lengths)]

    def raise_together(self, error: Exception | None) -> None:
        """Raise on every rank if any rank has an error: nobody waits for a rank that is gone."""
        messages = self.gather(None if error is None else f'{type(error).__name__}: {error}')
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise RuntimeError(f'rank {rank} stopped: {message}')


def _pack(value: object) -> bytes:
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(_describe(value, arrays)).encode()
    buffer = io.BytesIO()
    named: dict[str, Any] = arrays  # array0, array1, ...: no argument of savez itself
    np.savez(buffer, __header__=np.frombuffer(text, dtype=np.uint8), **named)
    return buffer.getvalue()


def _describe(value: object, arrays: dict[str, np.ndarray]) -> list:
    if isinstance(value, np.ndarray):
        name = f'array{len(arrays)}'
        arrays[name] = value
        return ['array', name]
    if isinstance(value, (list, tuple)):
        kind = 'tuple' if isinstance(value, tuple) else 'list'
        return [kind, [_describe(each, arrays) for each in value]]
    if isinstance(value, dict):
        return ['dict', [[name, _describe(each, arrays)] for name, each in value.items()]]
    return ['plain', value.item() if isinstance(value, np.generic) else value]


def _unpack(content: bytes) -> Any:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return _restore(json.loads(arrays['__header__'].tobytes()), arrays)


def _restore(described: list, arrays: Mapping[str, np.ndarray]) -> Any:
    kind, content = described
    if kind == 'array':
        return arrays[content]
    if kind == 'dict':
        return {name: _restore(each, arrays) for name, each in content}
    if kind in ('list', 'tuple'):
        restored = [_restore(each, arrays) for each in content]
        return restored if kind == 'list' else tuple(restored)
    return content
