# SPDX-License-Identifier: Apache-2.0
"""gather_ranks: order of ranks, dtypes, and the sum of all ranks' gradients."""

import pytest
import torch

from clusterplug.core.distributed import gather_ranks, rank, world_size
from clusterplug.testing import run_gloo


def test_one_process_adds_a_dimension_without_a_copy():
    x = torch.arange(6.0).view(2, 3).requires_grad_()
    gathered = gather_ranks(x)
    assert gathered.shape == (1, 2, 3)
    assert gathered.data_ptr() == x.data_ptr()
    (gathered * 2).sum().backward()
    assert torch.equal(x.grad, torch.full((2, 3), 2.0))
    assert (rank(), world_size()) == (0, 1)


def _gather(rank_here, size):
    x = (torch.arange(6.0).view(3, 2).T + 10 * rank_here).requires_grad_()  # not contiguous
    gathered = gather_ranks(x)
    # every rank weighs the rows of all ranks: d/dx of rank r sums the weights of all losses
    weights = torch.arange(1.0, size + 1)[:, None, None] * (rank_here + 1)
    (gathered * weights).sum().backward()
    flags = gather_ranks(torch.tensor([rank_here == 0, True]))
    return gathered.detach(), x.grad, flags, gather_ranks(torch.tensor(rank_here)), (rank(), world_size())


@pytest.mark.parametrize('size', [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks(size):
    base = torch.arange(6.0).view(3, 2).T
    for r, (gathered, grad, flags, numbers, who) in enumerate(run_gloo(_gather, size)):
        assert torch.equal(gathered, torch.stack([base + 10 * i for i in range(size)]))
        assert torch.equal(grad, torch.full((2, 3), float((r + 1) * sum(range(1, size + 1)))))
        assert flags.dtype == torch.bool
        assert flags[:, 0].tolist() == [True] + [False] * (size - 1)
        assert numbers.tolist() == list(range(size))
        assert who == (r, size)
