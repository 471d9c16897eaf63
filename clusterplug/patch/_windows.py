# SPDX-License-Identifier: Apache-2.0
"""Windows that shrink with the map, so that each covers the part of the image that it covered before.

Modules are shared by all threads, so nothing is set on them: what a block is to read during one call instead of its
own attributes, parameters and buffers belongs to the pass (:mod:`clusterplug.patch._own_class`).
"""

import functools
import math

import torch
from torch import Tensor, nn

_NAMES = (
    'window_size', 'window_area', 'shift_size', 'dynamic_mask', 'set_shift_and_window_size', 'relative_position_index',
    'relative_position_bias_table', 'relative_coords_table',
)  # fmt: skip


class Windows:
    """Windows without positions of their own, of Segment Anything's encoders; 0 means the whole map."""

    def grid(self, block: nn.Module, size: tuple[int, int], keep_ratio: float) -> tuple[int, int]:
        """Return the grid of about ``keep_ratio`` of the tokens whose windows are filled without padding."""
        if keep_ratio == 1:
            return size
        return tuple(
            fitting_cells(length, window or length, keep_ratio**0.5)
            for length, window in zip(size, pair(self.holder(block).window_size))
        )

    def holder(self, block: nn.Module) -> nn.Module:
        """Return the module that cuts the windows."""
        return block

    def parts(self, block: nn.Module) -> dict[str, tuple[nn.Module, tuple[str, ...]]]:
        """Return the modules that read other values in reduced blocks, by name, and which values."""
        return {'holder': (block, ('window_size',))}

    def values(self, block: nn.Module, size: tuple[int, int], grid: tuple[int, int]) -> dict[tuple[str, str], object]:
        """Return the values (part, name) for a map that was reduced from ``size`` to ``grid``: as many windows."""
        old = self.holder(block).window_size
        if not any(pair(old)):
            return {}
        return {('holder', 'window_size'): like(old, window_for(old, size, grid))}


class ShiftedWindows(Windows):
    """Windows of Swin and Swin V2: with shifts, and a bias for each relative position."""

    def holder(self, block: nn.Module) -> nn.Module:
        """Return the module that cuts and shifts the windows."""
        return next(module for module in block.modules() if hasattr(module, 'shift_size'))

    def parts(self, block: nn.Module) -> dict[str, tuple[nn.Module, tuple[str, ...]]]:
        """Return the block, the module that cuts the windows and that with the table; one may be another."""
        found = {}
        for name, module in (('block', block), ('holder', self.holder(block)), ('table', _table(block))):
            if all(module is not known for known, _ in found.values()):
                found[name] = (module, tuple(each for each in _NAMES if hasattr(module, each)))
        return found

    def values(self, block: nn.Module, size: tuple[int, int], grid: tuple[int, int]) -> dict[tuple[str, str], object]:
        """Return window, shift and biases for a map that was reduced from ``size`` to ``grid``."""
        holder, table = self.holder(block), _table(block)
        names = {id(module): name for name, (module, _) in self.parts(block).items()}
        at_holder, at_table = names[id(holder)], names[id(table)]
        window = window_for(holder.window_size, size, grid)
        shift = tuple(new // 2 if was else 0 for new, was in zip(window, pair(holder.shift_size)))
        values = {(at_holder, 'shift_size'): like(holder.shift_size, shift)}
        if hasattr(block, 'set_shift_and_window_size'):
            # It would shrink the window again where the map is small.
            values['block', 'set_shift_and_window_size'] = _nothing
        for module, name in ((holder, at_holder), (table, at_table)):
            values[name, 'window_size'] = like(module.window_size, window)
            if hasattr(module, 'window_area'):
                values[name, 'window_area'] = window[0] * window[1]
        if hasattr(holder, 'dynamic_mask'):
            values[at_holder, 'dynamic_mask'] = True
        step = (size[0] / grid[0], size[1] / grid[1])
        index = table.relative_position_index
        new_index = position_index(window, index.device)
        values[at_table, 'relative_position_index'] = new_index.flatten() if index.dim() == 1 else new_index
        if hasattr(table, 'relative_position_bias_table'):
            bias = biases_at(table.relative_position_bias_table, pair(table.window_size), window, step)
            values[at_table, 'relative_position_bias_table'] = bias
        else:
            values[at_table, 'relative_coords_table'] = coordinates_at(table.relative_coords_table, window, step)
        return values


def _table(block: nn.Module) -> nn.Module:
    return next(module for module in block.modules() if hasattr(module, 'relative_position_index'))


def _nothing(*args) -> None:
    """Stand in for a method that must not run."""


def pair(value) -> tuple[int, int]:
    """Return (height, width) of a number or two."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def like(old, new: tuple[int, int]):
    """Return ``new`` as a number, tuple or list, as ``old`` is."""
    return type(old)(new) if isinstance(old, (tuple, list)) else new[0]


def fitting_cells(length: int, window: int, side: float) -> int:
    """Return about ``side * length`` cells that fill as many windows as the tokens need.

    Example:
        >>> fitting_cells(48, 12, 0.7)
        32
    """
    number = math.ceil(length / window)
    return max(1, min(length, number * max(1, round(length * side / number))))


def window_for(window, size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Return the window that cuts ``grid`` into as many parts as ``window`` cuts ``size``; square if that was a number.

    Example:
        >>> window_for(12, (48, 48), (32, 32)), window_for((7, 7), (14, 28), (10, 16))
        ((8, 8), (5, 4))
    """
    new = tuple(
        math.ceil(cells / math.ceil(length / old)) if old else 0 for old, length, cells in zip(pair(window), size, grid)
    )
    return new if isinstance(window, (tuple, list)) else (max(new), max(new))


@functools.lru_cache(maxsize=64)
def position_index(window: tuple[int, int], device: torch.device) -> Tensor:
    """Return the entry of the table for each pair of places in a window, (h w, h w).

    Example:
        >>> position_index((1, 2), torch.device('cpu')).tolist()
        [[1, 0], [2, 1]]
    """
    with torch.inference_mode(False):
        row = torch.arange(window[0], device=device).repeat_interleave(window[1])
        column = torch.arange(window[1], device=device).repeat(window[0])
        down = row[:, None] - row + window[0] - 1
        return down * (2 * window[1] - 1) + column[:, None] - column + window[1] - 1


def biases_at(table: Tensor, old: tuple[int, int], new: tuple[int, int], step: tuple[float, float]) -> Tensor:
    """Return a table of biases for cells that lie ``step`` tokens apart, interpolated between those of tokens.

    Args:
        table: ((2 H - 1) (2 W - 1), heads) for windows of ``old`` (H, W) tokens.
        old: (H, W).
        new: (h, w) cells in a window.
        step: Tokens from a cell to the next, down and across.

    Returns:
        ((2 h - 1) (2 w - 1), heads); gradients reach ``table``.

    Example:
        >>> biases_at(torch.arange(5.0)[:, None], (1, 3), (1, 2), (1.0, 1.5)).flatten().tolist()
        [0.5, 2.0, 3.5]
    """
    rows, columns = (_between(was, now, far, table.device) for was, now, far in zip(old, new, step))
    square = table.float().unflatten(0, (2 * old[0] - 1, 2 * old[1] - 1))
    return torch.einsum('ai,bj,ijh->abh', rows, columns, square).flatten(0, 1).to(table.dtype)


@functools.lru_cache(maxsize=64)
def _between(old: int, new: int, step: float, device: torch.device) -> Tensor:
    """Return the matrix (2 new - 1, 2 old - 1) of linear interpolation."""
    with torch.inference_mode(False):
        places = torch.arange(1 - new, new, device=device, dtype=torch.float32) * step
        places = places.clamp(1 - old, old - 1) + old - 1
        return (1 - (places[:, None] - torch.arange(2 * old - 1, device=device)).abs()).clamp_min(0)


def coordinates_at(table: Tensor, new: tuple[int, int], step: tuple[float, float]) -> Tensor:
    """Return the logarithmic coordinates of Swin V2 for cells that lie ``step`` tokens apart.

    Args:
        table: (1, 2 H - 1, 2 W - 1, 2) of the tokens: sign(x) log8(1 + |x|), x in units that its last entry tells.
        new: (h, w) cells in a window.
        step: Tokens from a cell to the next, down and across.

    Returns:
        (1, 2 h - 1, 2 w - 1, 2).

    Example:
        >>> coordinates_at(torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 3, 1).expand(1, 1, 3, 2), (1, 2), (1.0, 1.0))[
        ...     0, 0, :, 1].tolist()
        [-1.0, 0.0, 1.0]
    """
    axes = []
    for axis, (count, far) in enumerate(zip(new, step)):
        steps = max(table.shape[1 + axis] // 2, 1)
        unit = (8.0 ** table[0, -1, -1, axis].float() - 1) / steps
        places = torch.arange(1 - count, count, device=table.device, dtype=torch.float32) * far
        axes.append(places.sign() * torch.log2(places.abs() * unit + 1) / 3)
    rows, columns = axes
    shape = (len(rows), len(columns))
    return torch.stack([rows[:, None].expand(shape), columns.expand(shape)], -1)[None].to(table.dtype)
