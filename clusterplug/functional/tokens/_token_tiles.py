# SPDX-License-Identifier: Apache-2.0
"""The index plan of local token clustering: small tiles of home cells, each with the few cells near it."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

# Home cells along each side of a tile, at least. Wider tiles multiply more pairs that are too far apart, narrower
# ones copy more centers; 4 was the fastest of 2 ... 8 for windows of 3 and 5.
TILE = 4


class Tiles(NamedTuple):
    """T tiles of P pixel slots and L candidate cells each.

    Attributes:
        pixels: (T * P,) int64 flat pixel of each slot; a slot without a pixel repeats one of its tile.
        cells: (T * L,) int64 flat cell of each candidate.
        near: (T, L, P) bool, whether a candidate lies in the window of a pixel.
        real: (T, P) bool, False for slots that repeat a pixel; None if there are none.
        slot: (H * W,) int64 slot of each pixel: the way back.
        shape: (T, L, P).
    """

    pixels: Tensor
    cells: Tensor
    near: Tensor
    real: Tensor | None
    slot: Tensor
    shape: tuple[int, int, int]


def tiles(size: tuple[int, int], grid: tuple[int, int], window: int, device: torch.device) -> Tiles:
    """Return the plan for a map of ``size`` (H, W) and ``grid`` (h, w); cached outside ``torch.compile``.

    Args:
        size: Height and width of the map in tokens.
        grid: Height and width in cells.
        window: Odd width in cells of the square around a pixel's home cell.
        device: Where the indices lie.

    Returns:
        Tiles.

    Example:
        >>> plan = tiles((4, 4), (2, 2), 1, torch.device('cpu'))
        >>> plan.near[0, :, 0].tolist()
        [True, False, False, False]
    """
    if torch.compiler.is_compiling():
        return _tiles(size, grid, window, device)
    return _cached_tiles(size, grid, window, device)


@functools.lru_cache(maxsize=32)
def _cached_tiles(size, grid, window, device):
    with torch.inference_mode(False):  # an index made in inference mode could not be used in training later
        return _tiles(size, grid, window, device)


def _tiles(size, grid, window, device):
    row_pixel, row_real, row_cell, row_near = _axis(size[0], grid[0], window, device)
    col_pixel, col_real, col_cell, col_near = _axis(size[1], grid[1], window, device)
    pixels = (row_pixel[:, None, :, None] * size[1] + col_pixel[None, :, None, :]).flatten(2).flatten(0, 1)
    cells = (row_cell[:, None, :, None] * grid[1] + col_cell[None, :, None, :]).flatten(2).flatten(0, 1)
    near = row_near[:, None, :, None, :, None] & col_near[None, :, None, :, None, :]
    near = near.reshape(*cells.shape, pixels.shape[1])
    real = (row_real[:, None, :, None] & col_real[None, :, None, :]).reshape(pixels.shape)
    # A repeated pixel is never the first with its number in its tile, and real slots are unique.
    number = torch.arange(pixels.numel(), device=device)
    spare = size[0] * size[1]
    slot = number.new_zeros(spare + 1).scatter(0, torch.where(real, pixels, spare).flatten(), number)[:spare]
    no_repeats = pixels.numel() == spare
    return Tiles(pixels.flatten(), cells.flatten(), near, None if no_repeats else real, slot, tuple(near.shape))


def _axis(length, num_cells, window, device):
    """Return for one axis: pixels (T, P), whether real (T, P), cells (T, L), near (T, L, P)."""
    radius = min(window // 2, num_cells)
    tile = min(num_cells, max(TILE, 2 * radius))
    num_tiles = -(-num_cells // tile)
    tile = -(-num_cells // num_tiles)  # even tiles
    bounds = [min(t * tile, num_cells) for t in range(num_tiles + 1)]
    # A pixel p has home floor(p * h / H), so that of home c or later is the first p >= c * H / h.
    first = [-(-bound * length // num_cells) for bound in bounds]
    slots = max(stop - start for start, stop in zip(first, first[1:]))
    reach = min(num_cells, tile + 2 * radius)
    starts = torch.tensor(first[:-1], device=device)[:, None]
    stops = torch.tensor(first[1:], device=device)[:, None]
    pixel = starts + torch.arange(slots, device=device)
    real = pixel < stops
    pixel = torch.minimum(pixel, stops - 1)
    lowest = torch.tensor([max(0, min(bound - radius, num_cells - reach)) for bound in bounds[:-1]], device=device)
    cell = lowest[:, None] + torch.arange(reach, device=device)
    home = pixel * num_cells // length
    near = (cell[:, :, None] - home[:, None, :]).abs() <= radius
    return pixel, real, cell, near
