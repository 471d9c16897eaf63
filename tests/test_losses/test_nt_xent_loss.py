# SPDX-License-Identifier: Apache-2.0
"""NTXentLoss: views of a batch, and two ranks with uneven batches = one process."""

import math

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from clusterplug.functional import nt_xent
from clusterplug.losses import NTXentLoss
from clusterplug.registry import MODELS
from clusterplug.testing.counters import count_host_syncs
from clusterplug.testing.distributed import run_gloo


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_views_and_pairs():
    loss = MODELS.build(dict(type='NTXentLoss', temperature=0.2))
    a, b, c = randn(5, 4), randn(5, 4, seed=1), randn(5, 4, seed=2)
    expected = [nt_xent(x, y, temperature=0.2) for x, y in ((a, b), (a, c), (b, c))]
    assert torch.equal(loss([a, b]), expected[0])
    assert torch.equal(loss(a, b), expected[0])
    torch.testing.assert_close(loss([a, b, c]), sum(expected) / 3)
    collapsed = loss([torch.ones(4, 2)] * 3)
    assert collapsed.item() == pytest.approx(math.log(7))
    torch.testing.assert_close(loss.log_values()['ln_k'], collapsed)
    assert NTXentLoss().log_values() == {}
    assert not count_host_syncs(lambda: loss([a.requires_grad_(), b]).backward())
    with pytest.raises(ValueError, match='at least two views, got 1'):
        loss([a])
    with pytest.raises(TypeError, match='one tensor'):
        loss(a)
    with pytest.raises(TypeError, match='put all views into the list'):
        loss([a, b], c)
    with pytest.raises(ValueError, match='temperature'):
        NTXentLoss(0)


SIZES = (3, 5)


def data():
    return randn(8, 6), randn(8, 6, seed=1)


def step(a, b, model, loss):
    value = loss([model(a), model(b)])
    value.backward()
    return value.detach(), model


def on_rank(rank, world_size):
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(6, 4))
    a, b = (x.split(SIZES)[rank] for x in data())
    loss = NTXentLoss(0.2)
    value, model = step(a, b, model, loss)
    assert float(loss.log_values()['ln_k']) == pytest.approx(math.log(15))
    return value, model.module.weight.grad


@pytest.mark.slow
def test_two_ranks_equal_one_process():
    torch.manual_seed(0)
    value, model = step(*data(), torch.nn.Linear(6, 4), NTXentLoss(0.2))
    found = run_gloo(on_rank, 2)
    torch.testing.assert_close((found[0][0] + found[1][0]) / 2, value)
    for _, grad in found:
        torch.testing.assert_close(grad, model.weight.grad)
