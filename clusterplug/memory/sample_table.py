# SPDX-License-Identifier: Apache-2.0
"""What is known of every sample of a data set, by its index: labels, weights, likelihoods."""

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, overload

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_count
from clusterplug.core.distributed import gather_ranks
from clusterplug.core.numerics import keep_types
from clusterplug.registry import MODELS

_PREFIX = 'column_'
_KEYS = {'dtype', 'shape', 'fill'}


@MODELS.register_module()
class SampleTable(nn.Module):
    """A table with one row a sample of the data set, saved and resumed with the model that holds it.

    Every column is a buffer (num_samples, ...), so it moves, is saved and is loaded with the model, and is the same on
    all ranks where all write the same rows. Numbers keep their type when the model is cast to half precision.

    Args:
        num_samples: Rows; the ids are 0 .. num_samples - 1, the indices of the data set.
        columns: ``{name: what}`` with what one of: a type (``torch.int64`` or ``'int64'``: zeros), a number (the value
            of every row until it is written: -1 gives int64, 0.0 fp32, False bool), an array or tensor (num_samples,
            ...) of first values, or ``dict(dtype=, shape=, fill=)`` with the shape of one entry. Or only names: fp32
            zeros.

    Attributes:
        written: (num_samples,) bool, rows that were written at least once.

    Raises:
        ValueError, TypeError: Columns that do not fit; in :meth:`read` and :meth:`write` ids outside of the table,
            names that it does not have, values of another shape. On CUDA an id outside is a device-side assert, as
            looking would stop the device.

    Example:
        >>> table = SampleTable(4, dict(label=-1, weight=1.0))
        >>> table.write([2, 0], label=[5, 7])
        >>> table.read([0, 1, 2], 'label').tolist()
        [7, -1, 5]
    """

    # every rank holds the same rows; averaging labels over ranks would make others of them (see compat)
    sync_buffers_exempt = True

    written: Tensor

    def __init__(self, num_samples: int, columns: Mapping[str, Any] | Iterable[str]):
        super().__init__()
        self.num_samples = check_count(num_samples, 'num_samples', 1)
        if isinstance(columns, str):
            columns = [columns]
        if not isinstance(columns, Mapping):
            columns = dict.fromkeys(columns, torch.float32)
        if not columns:
            raise ValueError('columns must name at least one column, got none; for example dict(label=-1)')
        self.names = tuple(columns)
        for name, what in columns.items():
            if not isinstance(name, str) or not name.isidentifier() or name in ('ids', 'gather', 'written'):
                raise ValueError(
                    f"columns must have names that are Python words other than 'ids', 'gather', 'written', got {name!r}"
                )
            self.register_buffer(_PREFIX + name, _column(name, what, self.num_samples))
        self.register_buffer('written', torch.zeros(self.num_samples, dtype=torch.bool))

    def _apply(self, fn, recurse=True):
        """Move with the model, but keep the columns when it is cast."""
        return super()._apply(keep_types(fn), recurse)

    def __len__(self) -> int:
        return self.num_samples

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Tensor:
        """Return the whole column ``name``, (num_samples, ...); the buffer itself, not a copy."""
        if name not in self.names:
            raise ValueError(f'the table has the columns {", ".join(self.names)}, got {name!r}')
        return getattr(self, _PREFIX + name)

    @overload
    def read(self, ids: Any, name: str, /) -> Tensor: ...

    @overload
    def read(self, ids: Any, /, *names: str) -> Tensor | dict[str, Tensor]: ...

    def read(self, ids: Any, *names: str) -> Tensor | dict[str, Tensor]:
        """Return the rows ``ids`` (n,) of one column as a tensor, of several (all if none is named) as a dict."""
        ids = self._ids(ids)
        found = {name: self[name][ids] for name in names or self.names}
        return found[names[0]] if len(names) == 1 else found

    @torch.no_grad()
    def write(self, ids: Any, *, gather: bool = False, **values: Any) -> None:
        """Set columns of the rows ``ids`` (n,).

        Args:
            ids: Indices of the data set; where one comes twice, its last values stay.
            gather: The ranks hold different rows: write those of all ranks, that of the highest rank where several have
                a row. All ranks must call it, with any number of rows each.
            **values: ``column=(n, ...)``, or one value for all these rows.
        """
        ids = self._ids(ids)
        if not values:
            raise ValueError(f'values must be given for at least one column of {", ".join(self.names)}, got none')
        rows = {name: self._values(name, value, len(ids)) for name, value in values.items()}
        if gather:
            (ids, *columns) = _gather_rows([ids, *rows.values()])
            rows = dict(zip(rows, columns, strict=True))
        # an index that comes twice would be written in any order on some devices: all its copies get the last values
        order = torch.arange(len(ids), device=ids.device)
        last = order.new_zeros(self.num_samples).scatter_reduce(0, ids, order, 'amax')[ids]
        for name, value in rows.items():
            self[name][ids] = value[last]
        self.written[ids] = True

    def _ids(self, ids: Any) -> Tensor:
        ids = torch.as_tensor(ids, device=self.written.device)
        if ids.numel() == 0:
            ids = ids.long()
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise TypeError(f'ids must be integers, the indices of the data set, got {ids.dtype}')
        if ids.dim() != 1:
            raise ValueError(f'ids must have shape (n,), got {tuple(ids.shape)}')
        ids = ids.long()
        inside = (ids >= 0) & (ids < self.num_samples)
        if ids.device.type == 'cpu':
            if not bool(inside.all()):
                unknown = ids[~inside][:5].tolist()
                raise ValueError(
                    f'ids must be from 0 to {self.num_samples - 1}, got {unknown}; make the table as long as the '
                    f'data set'
                )
        else:
            torch._assert_async(inside.all())
        return ids

    def _values(self, name: str, value: Any, rows: int) -> Tensor:
        column = self[name]
        value = torch.as_tensor(value, device=column.device)
        if value.numel() == 0:  # an empty list has no type of its own
            value = value.to(column.dtype)
        exact = not (value.is_floating_point() and not column.dtype.is_floating_point) and not value.is_complex()
        if not exact:
            raise TypeError(f'{name} must hold values of type {column.dtype}, got {value.dtype}; round them first')
        shape = (rows, *column.shape[1:])
        if value.shape != shape:
            if value.shape != column.shape[1:]:
                raise ValueError(f'{name} must have shape {shape}, one entry an id, got {tuple(value.shape)}')
            value = value.expand(shape)
        return value.detach().to(column.dtype)

    def extra_repr(self) -> str:
        """Return what ``print`` shows in the parentheses."""
        return f'{self.num_samples}, columns={{{", ".join(f"{n}: {tuple(self[n].shape[1:])}" for n in self.names)}}}'


def _column(name: str, what: Any, num_samples: int) -> Tensor:
    if isinstance(what, str):
        found = getattr(torch, what, None)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"columns[{name!r}] must name a type of torch such as 'int64', got {what!r}")
        what = found
    if isinstance(what, torch.dtype):
        return torch.zeros(num_samples, dtype=what)
    if isinstance(what, bool | Real):
        dtype = torch.bool if isinstance(what, bool) else torch.int64 if isinstance(what, Integral) else torch.float32
        return torch.tensor(what, dtype=dtype).repeat(num_samples)
    if isinstance(what, Mapping):
        if not set(what) <= _KEYS:
            raise ValueError(f'columns[{name!r}] must have keys among {sorted(_KEYS)}, got {sorted(what)}')
        shape = what.get('shape', ())
        shape = tuple(shape) if isinstance(shape, Iterable) else (shape,)
        start = _column(name, what.get('dtype', torch.float32), 1)
        return torch.full((num_samples, *shape), what.get('fill', 0), dtype=start.dtype)
    if isinstance(what, (list, tuple)) or hasattr(what, '__array__'):
        values = torch.as_tensor(what).detach().clone()
        if values.dim() < 1 or len(values) != num_samples:
            raise ValueError(
                f'columns[{name!r}] must have one entry a sample, {num_samples}, got shape {tuple(values.shape)}'
            )
        return values
    raise TypeError(f'columns[{name!r}] must be a type, a number, an array or a dict, got {type(what).__name__}')


def _gather_rows(tensors: list[Tensor]) -> list[Tensor]:
    """Rows of all ranks one behind the other; the ranks may hold different numbers of them."""
    counts = gather_ranks(torch.tensor(len(tensors[0]), device=tensors[0].device)).tolist()
    most = max(counts)
    gathered = []
    for tensor in tensors:
        padded = tensor.new_zeros(most, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        by_rank = gather_ranks(padded)
        gathered.append(torch.cat([by_rank[rank, :count] for rank, count in enumerate(counts)]))
    return gathered
