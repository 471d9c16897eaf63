"""The processes of a run: one, or those of a torch.distributed group."""

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

    def broadcast(self, array: np.ndarray | None) -> np.ndarray:
        """Return rank 0's array on every rank."""
        return self.gather(array)[0] if self.size > 1 else array

    def gather(self, value: object) -> list:
        """Return every rank's value on every rank, by rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def raise_together(self, error: Exception | None) -> None:
        """Raise on every rank if any rank has an error: nobody waits for a rank that is gone."""
        messages = self.gather(None if error is None else f'{type(error).__name__}: {error}')
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise RuntimeError(f'rank {rank} stopped: {message}')
