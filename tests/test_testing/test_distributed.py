# SPDX-License-Identifier: Apache-2.0
"""run_gloo: results in order, a rank's traceback, ranks that die or hang."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from clusterplug.testing import run_gloo


def summed(rank, world_size, value):
    total = torch.tensor([value * (rank + 1)])
    dist.all_reduce(total)
    return rank, world_size, total, os.environ['LOCAL_RANK'], torch.get_num_threads()


def misbehaving(rank, world_size, how):
    if rank == 1 and how == 'raise':
        raise KeyError('what went wrong')
    if rank == 1 and how == 'die':
        os._exit(7)
    if how != 'return':
        time.sleep(60)
    return rank


def test_results_come_in_the_order_of_ranks():
    first, second = run_gloo(summed, 2, 10)
    assert first[:2] == (0, 2)
    assert second[:2] == (1, 2)
    assert first[2].item() == second[2].item() == 30
    assert (first[3], second[3]) == ('0', '1')
    assert first[4] == 1


@pytest.mark.parametrize(
    ('how', 'error', 'words'),
    [('raise', RuntimeError, 'rank 1 of 2 raised(.|\n)*what went wrong'), ('die', RuntimeError, 'exit code 7')],
)
def test_a_failing_rank_stops_the_others(how, error, words):
    with pytest.raises(error, match=words):
        run_gloo(misbehaving, 2, how)


def test_hanging_ranks_are_named():
    with pytest.raises(TimeoutError, match=r'ranks \[0\] of 1 did not finish'):
        run_gloo(misbehaving, 1, 'hang', timeout=8)


def test_world_size_is_checked():
    with pytest.raises(ValueError, match='world_size must be at least 1, got 0'):
        run_gloo(misbehaving, 0, 'return')
