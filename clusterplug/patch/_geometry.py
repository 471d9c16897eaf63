# SPDX-License-Identifier: Apache-2.0
"""Where reduced tokens lie on the map, and rotary embeddings at those positions."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from clusterplug.core.numerics import host_checks_allowed

# Maps of so few rows may turn by half a turn or more from a row to the next; which way, the table alone does not say.
FEW_ROWS = 4
# Largest difference, in radians, between the steps of a table and those of its formula: tables in bfloat16 are rounded.
STEP_TOLERANCE = 0.25


class SharedTable:
    """Positions of the reduced tokens of one forward pass; tables made for them are kept for the next block.

    Args:
        size: (H, W) of the map.
        grid: (h, w), or None where reduced tokens form no grid.
        places: (M, 2) or (B, M, 2) row and column of each reduced token on the map.
        num_prefix: Tokens in front.
    """

    def __init__(self, size: tuple[int, int], grid: tuple[int, int] | None, places: Tensor, num_prefix: int):
        self.size, self.grid, self.places, self.num_prefix = size, grid, places, num_prefix
        self._made = []

    def made(self, key: Tensor):
        """Return what was kept for the table ``key`` of the full map, or None."""
        return next((made for known, made in self._made if known is key), None)

    def keep(self, key: Tensor, made):
        """Keep what was made of ``key`` for the next block, and return it."""
        self._made.append((key, made))
        return made

    def rotation(self, cosine: Tensor, sine: Tensor, steps: Callable | None = None) -> tuple[Tensor, Tensor]:
        """Return cosine and sine (..., M, D) at the positions, from those of the full map (..., H * W, D).

        Args:
            cosine: Of the full map.
            sine: Of the full map.
            steps: (H, W) -> the steps of the host's own formula for :func:`rotation_at`, or None where those of the
                table are below half a turn, and the largest factor by which training stretches them.
        """
        made = self.made(cosine)
        if made is not None:
            return made
        if steps is None:
            made = rotation_at(cosine, sine, self.size, self.places)
        else:
            formula, stretch = steps(self.size)
            if stretch != 1 and formula is not None:
                formula = _stretched(formula, stretch, self.size)
            made = rotation_at(cosine, sine, self.size, self.places, formula or (0.0, 0.0), check=formula is not None)
        return self.keep(cosine, made)


def _stretched(formula: tuple[Tensor, Tensor], stretch: float, size: tuple[int, int]) -> None:
    """Return None: steps that training stretches at random are read from the table, if they stay below half a turn."""
    if max(float(step.abs().max()) for step in formula) * stretch >= math.pi:
        raise ValueError(
            f'rotary embeddings of a map of {size[0]} x {size[1]} tokens, stretched up to {stretch:g} times in '
            f'training, turn by half a turn or more from a token to the next: which way cannot be read from them. '
            f'Take larger images, switch their augmentation off, or call eval() on the transformer'
        )


def cell_places(size: tuple[int, int], grid: tuple[int, int], device: torch.device) -> Tensor:
    """Return the middles (h * w, 2) of the cells of a grid in rows and columns of the map.

    Example:
        >>> cell_places((2, 4), (1, 2), torch.device('cpu')).tolist()
        [[0.5, 0.5], [0.5, 2.5]]
    """
    rows = (torch.arange(grid[0], device=device, dtype=torch.float32) + 0.5) * (size[0] / grid[0]) - 0.5
    columns = (torch.arange(grid[1], device=device, dtype=torch.float32) + 0.5) * (size[1] / grid[1]) - 0.5
    return torch.stack([rows[:, None].expand(*grid), columns.expand(*grid)], -1).flatten(0, 1)


def coordinate_steps(
    size: tuple[int, int], grid_type: str, reference: tuple[int, int] | None = None, normalize: str = 'separate'
) -> tuple[float, float]:
    """Return what the coordinates of rotary embeddings grow by from a row, and from a column, to the next.

    Args:
        size: (H, W).
        grid_type: ``'index'`` (0, 1, 2, ...), ``'pixel'`` (-1 to 1, both reached) or ``'centered'`` (middles of cells
            that fill -1 to 1).
        reference: (H, W) of the map that coordinates are scaled to.
        normalize: Of ``'centered'``: by each side (``'separate'``), or both by the ``'min'`` or ``'max'`` of them.

    Example:
        >>> coordinate_steps((4, 8), 'centered'), coordinate_steps((4, 8), 'index', (16, 16))
        ((0.5, 0.25), (4.0, 2.0))
    """
    if grid_type == 'pixel':
        steps = [2 / (length - 1) if length > 1 else 0.0 for length in size]
    elif grid_type == 'centered':
        common = {'min': min(size), 'max': max(size)}.get(normalize)
        steps = [2 / (common or length) for length in size]
    else:
        steps = [1.0, 1.0]
    if reference is not None:
        steps = [step * wide / length for step, length, wide in zip(steps, size, reference)]
    return tuple(steps)


def joined_steps(
    bands: Tensor, units: tuple[float, float], *, halves: bool, columns_first: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the angles (D,) from a row, and from a column, to the next, of embeddings with a band for each axis.

    Args:
        bands: (D / 4,) angle for a coordinate of one.
        units: As :func:`coordinate_steps`.
        halves: Channels are (f, f) and not (f0, f0, f1, f1, ...).
        columns_first: The first half of the frequencies belongs to the columns.

    Example:
        >>> joined_steps(torch.tensor([1.0]), (0.5, 0.25), halves=False)[0].tolist()
        [0.5, 0.5, 0.0, 0.0]
    """
    none = torch.zeros_like(bands)
    down, across = [bands * units[0], none], [none, bands * units[1]]
    if columns_first:
        down, across = down[::-1], across[::-1]
    both = torch.stack([torch.cat(down), torch.cat(across)])
    both = both.tile(2) if halves else both.repeat_interleave(2, -1)
    return both[0], both[1]


def rotation_at(
    cosine: Tensor,
    sine: Tensor,
    size: tuple[int, int],
    places: Tensor,
    steps: tuple[Tensor, Tensor] | tuple[float, float] | None = None,
    check: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return rotary embeddings at positions between the tokens.

    Angles are linear in row and column in every rotary embedding of maps, so the angle at a position is that of a
    token plus parts of the steps to the next row and the next column. A table says these steps only up to whole
    turns; the host's formula says which of them is meant.

    Args:
        cosine: (..., H * W, D).
        sine: Same shape.
        size: (H, W).
        places: (M, 2), or (B, M, 2) for different positions in each image.
        steps: Angles (D,) from a row, and from a column, to the next by the host's formula. None: below half a turn.
        check: Whether the steps of the table must be those given but for whole turns.

    Returns:
        Two (..., M, D), or (B, 1, M, D) (for all heads) with positions of each image.

    Raises:
        ValueError: ``steps`` is None and the map has so few rows or columns that they cannot be known; the table is
            not that of ``steps``.
    """
    height, width = size
    if steps is None and any(1 < length <= FEW_ROWS for length in size):
        raise ValueError(
            f'rotary embeddings of a map of {height} x {width} tokens may turn by half a turn or more from a token to '
            f'the next, and the table does not say which way; pass steps, the angles from a row and from a column to '
            f'the next by the formula of the embedding, or take larger images'
        )
    row = places[..., 0].clamp(0, height - 1)
    column = places[..., 1].clamp(0, width - 1)
    top, left = row.floor().clamp(max=max(height - 2, 0)), column.floor().clamp(max=max(width - 2, 0))
    part_row, part_column = (row - top)[..., None], (column - left)[..., None]
    token = (top * width + left).long()
    below = token + (width if height > 1 else 0)
    right = token + (1 if width > 1 else 0)

    def pick(index: Tensor) -> tuple[Tensor, Tensor]:
        flat = index.flatten()
        picked = [table.index_select(-2, flat).float() for table in (cosine, sine)]
        if index.dim() == 1:
            return tuple(picked)
        # (..., B * M, D) -> (B, heads or 1, M, D)
        picked = [each.unflatten(-2, index.shape).movedim(-3, 0) for each in picked]
        return tuple(each.unsqueeze(1) if each.dim() == 3 else each for each in picked)

    here, down, across = pick(token), pick(below), pick(right)
    if token.dim() == 2:
        part_row, part_column = part_row[:, None], part_column[:, None]
    by_formula = (0.0, 0.0) if steps is None else steps
    down = _step(here, down, by_formula[0] if height > 1 else 0.0, check)
    across = _step(here, across, by_formula[1] if width > 1 else 0.0, check)
    angle = torch.atan2(here[1], here[0]) + part_row * down + part_column * across
    return angle.cos().to(cosine.dtype), angle.sin().to(sine.dtype)


def _step(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], formula: Tensor | float, check: bool) -> Tensor:
    """Return the angle from the first to the second (cosine, sine), of all that differ by whole turns that of formula.

    The table holds the very step but for whole turns, the formula these turns: their difference is rounding.
    """
    turn = torch.atan2(second[1] * first[0] - second[0] * first[1], second[0] * first[0] + second[1] * first[1])
    rest = turn - formula
    turns = (rest / (2 * math.pi)).round()
    if check and host_checks_allowed(turn) and not torch.jit.is_tracing():
        worst = float((rest - 2 * math.pi * turns).abs().max()) if turn.numel() else 0.0
        if worst > STEP_TOLERANCE:
            raise ValueError(
                f'the rotary embedding is not that of its formula: steps from a token to the next differ by '
                f'{worst:.2f} radians. Call clusterplug.patch.remove(model), or describe the host with '
                f'clusterplug.patch.register_host'
            )
    return turn - 2 * math.pi * turns
