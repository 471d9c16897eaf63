# SPDX-License-Identifier: Apache-2.0
"""Connected cells against scipy's labels, on mazes and noise, by hand and without waiting."""

import contextlib

import pytest
import torch
from scipy import ndimage

from clusterplug.core.numerics import as_on_accelerator
from clusterplug.functional.graph import connected_cells
from clusterplug.testing import count_host_syncs


def _snake(size):
    grid = torch.zeros(size, size, dtype=torch.bool)
    grid[::2] = True
    grid[1::4, -1], grid[3::4, 0] = True, True
    return grid


def _spiral(size):
    """One line that winds to the middle, a free cell between its turns."""
    grid, y, x, step = torch.zeros(size, size, dtype=torch.bool), 0, 0, (0, 1)
    turns = 0
    grid[0, 0] = True
    while turns < 2:
        ahead, beyond = (y + step[0], x + step[1]), (y + 2 * step[0], x + 2 * step[1])
        free = all(0 <= axis < size for axis in ahead) and not (all(0 <= a < size for a in beyond) and grid[beyond])
        if free:
            y, x = ahead
            grid[y, x], turns = True, 0
        else:
            step, turns = (step[1], -step[0]), turns + 1
    return grid


NOISE = {  # close to where a single part spans the grid: the most winding parts
    'plane': (torch.rand(120, 120, generator=torch.Generator().manual_seed(0)) < 0.6),
    'space': (torch.rand(30, 30, 20, generator=torch.Generator().manual_seed(1)) < 0.32),
    'snake': _snake(121),
    'spiral': _spiral(121),
    'full': torch.ones(20, 20, 20, dtype=torch.bool),
}


@pytest.mark.parametrize('device', ['cpu', 'as on others'])
@pytest.mark.parametrize('name', list(NOISE))
def test_parts_are_those_of_scipy(name, device):
    grid = NOISE[name]
    cells = grid.nonzero()
    cells = cells[torch.randperm(len(cells), generator=torch.Generator().manual_seed(2))]
    truth = torch.from_numpy(ndimage.label(grid.numpy())[0]).long()[tuple(cells.T)]
    with contextlib.nullcontext() if device == 'cpu' else as_on_accelerator():
        found = connected_cells(cells - 60, torch.zeros(len(cells), dtype=torch.int64))
    # the number of a part is its first row
    first = torch.full((int(truth.max()) + 1,), len(cells)).scatter_reduce_(0, truth, torch.arange(len(cells)), 'amin')
    assert torch.equal(found, first[truth])


def test_several_rows_of_a_cell_groups_and_the_ends_of_the_grid():
    cells = torch.tensor([[0, -1], [0, -1], [0, 0], [0, 4094], [1, -4096], [0, -4096]])
    assert connected_cells(cells, torch.tensor([0, 0, 0, 0, 0, 0])).tolist() == [0, 0, 0, 3, 4, 4]
    assert connected_cells(cells, torch.tensor([0, 0, 1, 0, 0, 2])).tolist() == [0, 0, 2, 3, 4, 5]
    assert connected_cells(cells[:1], torch.zeros(1, dtype=torch.int64)).tolist() == [0]
    assert connected_cells(cells[:0], torch.zeros(0, dtype=torch.int64)).tolist() == []


def test_no_waiting():
    cells, group = torch.randint(0, 20, (300, 3)), torch.randint(0, 3, (300,))
    assert count_host_syncs(lambda: connected_cells(cells, group)).total() == 0
