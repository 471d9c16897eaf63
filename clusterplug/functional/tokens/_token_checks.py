# SPDX-License-Identifier: Apache-2.0
"""Checks at the door of token clustering."""

import math
from collections.abc import Sequence

from torch import Tensor


def check_map(x: Tensor, name: str = 'x') -> None:
    """Raise unless ``x`` is a floating tensor (B, H, W, C) with H, W, C >= 1; B may be 0."""
    if not isinstance(x, Tensor):
        raise TypeError(f'{name} must be a torch.Tensor, got {type(x).__name__}; convert it with torch.as_tensor')
    if not x.is_floating_point():
        raise TypeError(f'{name} must have a floating dtype, got {x.dtype}; convert it with {name}.float()')
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(
            f'{name} must have shape (batch, height, width, channels) with at least one token, got {tuple(x.shape)}; '
            f'reshape tokens (B, N, C) with {name}.unflatten(1, (height, width))'
        )


def check_grid(grid: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
    """Return ``grid`` as a tuple; raise unless it is two ints, each from 1 to that of ``size``."""
    if not isinstance(grid, (tuple, list)) or len(grid) != 2:
        raise TypeError(f'grid must be (height, width) in cells, got {grid!r}')
    if any(isinstance(cells, bool) or not isinstance(cells, int) for cells in grid):
        raise TypeError(f'grid must hold two ints, got {grid!r}')
    if not (1 <= grid[0] <= size[0] and 1 <= grid[1] <= size[1]):
        raise ValueError(
            f'grid must lie between (1, 1) and the size of the map, {tuple(size)}, got {tuple(grid)}; clustering only '
            f'reduces tokens: ask for fewer cells or pass a larger image'
        )
    height, width = grid
    return height, width


def check_settings(
    *,
    num_iters: int = 0,
    temperature: float | Tensor = 1.0,
    window: int | None = 1,
    num_neighbors: int = 1,
    norm: str = 'l1',
) -> None:
    """Raise unless the settings of clustering and reconstruction lie in their ranges."""
    for name, value, least in (('num_iters', num_iters, 0), ('num_neighbors', num_neighbors, 1)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f'{name} must be an int, got {type(value).__name__} ({value!r})')
        if value < least:
            raise ValueError(f'{name} must be at least {least}, got {value}')
    if window is not None:
        if isinstance(window, bool) or not isinstance(window, int):
            raise TypeError(f'window must be an odd int, got {type(window).__name__} ({window!r})')
        if window < 1 or window % 2 == 0:
            raise ValueError(f'window must be odd and at least 1, got {window}; try {max(1, window + 1)}')
    if norm not in ('l1', 'l2'):
        raise ValueError(
            f"norm must be 'l1' (weights add up to one) or 'l2' (as the authors' code has it), got {norm!r}"
        )
    if isinstance(temperature, Tensor):
        if temperature.dim() != 1 or not temperature.is_floating_point():
            raise ValueError(
                f'temperature must be a number or a floating tensor (batch,), got shape {tuple(temperature.shape)} '
                f'of {temperature.dtype}'
            )
        return
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise TypeError(f'temperature must be a number, got {type(temperature).__name__} ({temperature!r})')
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(
            f'temperature must be above 0 and finite, got {temperature}; it divides squared distances (0.02 in the '
            f"authors' configs is a factor: 50 here)"
        )
