# SPDX-License-Identifier: Apache-2.0
"""The last so many embeddings, with what belongs to them, as a ring that is the same on all ranks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_count
from clusterplug.core.distributed import gather_uneven
from clusterplug.core.numerics import keep_types
from clusterplug.registry import MODELS


class QueueContents(NamedTuple):
    """What a :class:`FeatureQueue` holds; views of its buffers, which the next ``push`` changes.

    Attributes:
        rows: (L, D) fp32, zeros where not valid, in the order of the ring (not of age).
        valid: (L,) bool, slots that hold a finite row.
        extra: one tensor (L, ...) for every further column.
    """

    rows: Tensor
    valid: Tensor
    extra: dict[str, Tensor]


@MODELS.register_module()
class FeatureQueue(nn.Module):
    """Ring of the last ``length`` rows of all ranks: a push costs the new rows, not the whole queue.

    All state is in buffers (saved, resumed, moved with the model, fp32 whatever the model is cast to), and equal on all
    ranks: a push gathers the rows of all ranks, rank by rank, in any number on each, also none. With several ranks that
    takes one small exchange of row numbers, which CUDA has to wait for; one process never waits.

    Args:
        length: L, rows kept, of all ranks together.
        embed_dims: D.
        **extra: further columns by name: a dtype (``labels=torch.int64``, or its name, for configs) for one number a
            row, an int for so many fp32 numbers a row (``logits=10``), or a pair ``(width, dtype)``.

    Rows of more than ``length`` in a push: the last ones are kept. A row with NaN or inf takes its slot, as zeros that
    are not valid, so that it spoils nothing that is computed of the others.

    Raises:
        ValueError, TypeError: sizes below 1, an unknown type; in ``push`` rows of another width, extra columns that are
            missing, unknown, or of another length.

    Source: queues of SwAV (arXiv 2006.09882) and MoCo (arXiv 1911.05722). **Differs from the authors' code**: SwAV's
    shifts and copies the whole queue each step, is saved in a file a rank, and counts as full when its last row is not
    zero.

    Example:
        >>> queue = FeatureQueue(4, 2, labels='int64')
        >>> queue.push(torch.ones(3, 2), labels=torch.tensor([5, 6, 7]))
        >>> rows, valid, extra = queue.read()
        >>> valid.tolist(), extra['labels'].tolist(), queue.full
        ([True, True, True, False], [5, 6, 7, 0], False)
    """

    # every rank holds the same values by construction (see compat.sync_buffers)
    sync_buffers_exempt = True

    rows: Tensor
    usable: Tensor
    count: Tensor

    def __init__(self, length: int, embed_dims: int, **extra):
        super().__init__()
        self.length, self.embed_dims = check_count(length, 'length', 1), check_count(embed_dims, 'embed_dims', 1)
        self.register_buffer('rows', torch.zeros(self.length, self.embed_dims))
        self.register_buffer('usable', torch.zeros(self.length, dtype=torch.bool))
        self.register_buffer('count', torch.zeros((), dtype=torch.int64))
        self.extra_names = list(extra)
        for name, kind in extra.items():
            width, dtype = _column(name, kind)
            self.register_buffer(f'extra_{name}', torch.zeros((self.length, *width), dtype=dtype))
        self._count = 0  # the same number on the host

    def _apply(self, fn, recurse=True):
        """Move to a device with the model, but keep the types."""
        return super()._apply(keep_types(fn), recurse)

    def __len__(self) -> int:
        """Number of slots that have been written to."""
        return min(self._count, self.length)

    @property
    def full(self) -> bool:
        """Whether every slot has been written to; known on the host."""
        return self._count >= self.length

    @torch.no_grad()
    def push(self, x: Tensor, **extra: Tensor) -> None:
        """Put rows (N, D) of this rank, and their further columns (N, ...), in the place of the oldest ones."""
        self._check(x, extra)
        columns = {'rows': x.detach().to(self.rows.dtype), **{name: extra[name] for name in self.extra_names}}
        columns = {name: gather_uneven(values) for name, values in columns.items()}
        self.write(columns.pop('rows'), **columns)

    @torch.no_grad()
    def write(self, x: Tensor, **extra: Tensor) -> None:
        """As :meth:`push`, for rows that are the same on all ranks already: nothing is gathered."""
        self._check(x, extra)
        columns = {'rows': x.detach().to(self.rows.dtype), **{name: extra[name] for name in self.extra_names}}
        total = len(x)
        kept = min(total, self.length)
        columns = {name: values[total - kept :] for name, values in columns.items()}
        usable = torch.isfinite(columns['rows']).all(1)
        columns['rows'] = torch.where(usable[:, None], columns['rows'], 0.0)
        columns['usable'] = usable
        start = (self._count + total - kept) % self.length
        head = min(kept, self.length - start)
        for name, values in columns.items():
            store = getattr(self, f'extra_{name}' if name in self.extra_names else name)
            store[start : start + head] = values[:head]
            store[: kept - head] = values[head:]
        self._count += total
        self.count.fill_(self._count)

    def read(self) -> QueueContents:
        """What the queue holds: rows, which slots are valid, further columns."""
        extra = {name: getattr(self, f'extra_{name}') for name in self.extra_names}
        return QueueContents(self.rows, self.usable, extra)

    def _check(self, x: Tensor, extra: dict) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f'x must be a floating tensor (N, {self.embed_dims}), got {got}')
        if x.dim() != 2 or x.shape[1] != self.embed_dims:
            raise ValueError(f'x must have shape (N, {self.embed_dims}), got {tuple(x.shape)}; set embed_dims to fit')
        if sorted(extra) != sorted(self.extra_names):
            raise ValueError(f'push needs the columns {self.extra_names} by name, got {sorted(extra)}')
        for name, values in extra.items():
            wanted = (len(x), *getattr(self, f'extra_{name}').shape[1:])
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            if shape != wanted:
                raise ValueError(f'{name} must be a tensor of shape {wanted}, got {shape}')

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._count = int(self.count)


def _column(name: str, kind) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape of a row and type of a further column."""
    if isinstance(kind, Sequence) and not isinstance(kind, str) and len(kind) == 2:
        return (check_count(kind[0], name, 1),), _dtype(name, kind[1])
    if isinstance(kind, int) and not isinstance(kind, bool):
        return (check_count(kind, name, 1),), torch.float32
    return (), _dtype(name, kind)


def _dtype(name: str, kind) -> torch.dtype:
    found = getattr(torch, kind, None) if isinstance(kind, str) else kind
    if not isinstance(found, torch.dtype):
        raise TypeError(
            f"column {name} must be a dtype or its name ('int64'), a number of columns, or a pair (width, dtype); got "
            f'{kind!r}'
        )
    return found


# Logits of recent samples for pseudo-labels (P2OT's name): the same ring.
LogitsBuffer = FeatureQueue
MODELS.register_module('LogitsBuffer', module=FeatureQueue)
