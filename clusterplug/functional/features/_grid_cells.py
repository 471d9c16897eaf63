# SPDX-License-Identifier: Apache-2.0
"""Averages over the cells of a grid laid over a map, with masks and with every image its own extent."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.numerics import exporting

# Entries of a matrix of pixels x cells, up to which one product on a CPU costs a quarter of an adaptive average.
MOST_ENTRIES = 65_536


def average_cells(x: Tensor, grid: tuple[int, int], mask: Tensor | None = None, halve: bool = False) -> Tensor:
    """Average a map over a grid of cells, as adaptive average pooling does, over the valid places alone.

    With a mask, the grid of an image is laid over its own extent (up to its last valid row and column), so that a
    padded image has the cells that it has alone.

    Args:
        x: (B, C, H, W) values; those outside the mask may be anything.
        grid: (h, w) cells.
        mask: (B, H, W) bool, True = valid.
        halve: Each image has (ceil(height / 2), ceil(width / 2)) of its extent in cells, and those beyond are empty;
            ``grid`` is that of the largest.

    Returns:
        (B, C, h, w); 0 for cells without a valid place.
    """
    if mask is None:
        return _average(x, grid)
    rows, columns = cell_windows(mask, grid, halve)
    valid = mask.to(x.dtype)
    values = torch.where(mask[:, None], x, 0)
    sums = rows.to(x.dtype)[:, None] @ values @ columns.to(x.dtype).mT[:, None]
    counts = rows.to(x.dtype) @ valid @ columns.to(x.dtype).mT
    return sums / counts.clamp_min(1)[:, None]


def valid_cells(mask: Tensor, grid: tuple[int, int], halve: bool = False) -> Tensor:
    """Return (B, h, w) bool, True for cells of :func:`average_cells` with a valid place."""
    rows, columns = cell_windows(mask, grid, halve)
    return rows.float() @ mask.float() @ columns.float().mT > 0


def cell_windows(mask: Tensor, grid: tuple[int, int], halve: bool) -> tuple[Tensor, Tensor]:
    """Return (B, h, H) and (B, w, W) bool: the rows and the columns of each cell."""
    return _windows(mask.any(2), grid[0], halve), _windows(mask.any(1), grid[1], halve)


def _windows(used: Tensor, cells: int, halve: bool) -> Tensor:
    """Return (B, cells, L) bool, True where a place lies in a cell, of (B, L) used places."""
    place = torch.arange(used.shape[1], device=used.device)
    extent = torch.where(used, place + 1, 0).amax(1)[:, None]
    number = (extent + 1) // 2 if halve else torch.full_like(extent, cells)
    cell = torch.arange(cells, device=used.device)
    number = number.clamp_min(1)
    start, end = cell * extent // number, ((cell + 1) * extent + number - 1) // number
    inside = (place >= start[..., None]) & (place < end[..., None])
    return inside & (cell < number)[..., None]


def _average(x: Tensor, grid: tuple[int, int]) -> Tensor:
    height, width = x.shape[2:]
    if exporting():
        # ONNX has no adaptive pooling; two small products are the same numbers up to rounding.
        rows, columns = (_mean_matrix(length, cells, x) for length, cells in zip((height, width), grid))
        return rows @ x @ columns.mT
    if _small_on_host(x, height * width * grid[0] * grid[1]):
        return (x.flatten(2) @ _mean_of_cells((height, width), grid, x.dtype)).unflatten(2, grid)
    if height == 2 * grid[0] and width == 2 * grid[1]:
        return F.avg_pool2d(x, 2)
    return F.adaptive_avg_pool2d(x, grid)


def _small_on_host(x: Tensor, entries: int) -> bool:
    """Whether a product with so many entries takes the place of pooling: fp32 or fp64, eager, on a CPU."""
    if x.device.type != 'cpu' or torch.compiler.is_compiling() or torch.is_autocast_enabled('cpu'):
        return False
    return entries <= MOST_ENTRIES and x.dtype in (torch.float32, torch.float64)


@lru_cache(maxsize=64)
def _mean_of_cells(size: tuple[int, int], grid: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return (H W, h w), which must not be written to: each column the weights of a cell's mean."""
    with torch.inference_mode(False):
        like = torch.zeros((), dtype=dtype, device='cpu')
        rows, columns = (_mean_matrix(length, cells, like) for length, cells in zip(size, grid))
        return torch.kron(rows, columns).T.contiguous()


def _mean_matrix(length: int, cells: int, like: Tensor) -> Tensor:
    """Return (cells, length): each row the weights of a cell's mean."""
    rows = torch.zeros(cells, length, dtype=like.dtype, device='cpu')
    for cell in range(cells):
        start, end = cell * length // cells, -(-(cell + 1) * length // cells)
        rows[cell, start:end] = 1 / (end - start)
    return rows.to(like.device)
