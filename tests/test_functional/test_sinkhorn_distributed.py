# SPDX-License-Identifier: Apache-2.0
"""sinkhorn over ranks: two gloo processes with uneven rows equal one process."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from clusterplug.functional.transport import sinkhorn, sinkhorn_log_plan


def _problem():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(3, 30, 6, generator=generator) * 2 - 1
    scores[1] += torch.linspace(-4096, 4096, 30)[:, None]  # rows of the two ranks weigh very differently at first
    mask = torch.rand(3, 30, generator=generator) > 0.3
    mask[2, 11:] = False  # the second rank has no valid row of the third problem
    rows = (torch.rand(3, 30, generator=generator) + 0.1) * mask
    rows = rows / rows.sum(-1, keepdim=True)
    used = torch.arange(6) < torch.tensor([[6], [4], [3]])
    return scores, mask, rows, used


def _options(part):
    _, mask, rows, used = _problem()
    cols = torch.tensor([0.1, 0.3, 0.0, 0.2, 0.2, 0.2])
    return [
        {},
        {'mask': mask[:, part]},
        {'mask': mask[:, part], 'col_marginals': used},
        {'row_marginals': rows[:, part]},
        {'row_marginals': rows[:, part], 'mask': mask[:, part], 'col_marginals': cols},
    ]


def _worker(rank, path, splits):
    dist.init_process_group('gloo', init_method=f'file://{path}', rank=rank, world_size=2)
    torch.set_num_threads(1)
    scores = _problem()[0]
    for split in splits:
        part = slice(0, split) if rank == 0 else slice(split, None)
        for shared, whole in zip(_options(part), _options(slice(None))):
            for form in ('log', 'scaling', 'auto'):
                # problem 1 has row offsets beyond the safe range: only the log form promises equality there
                chosen = [0, 2] if form == 'scaling' else [0, 1, 2]
                common = {'epsilon': 0.05, 'num_iters': 6, 'form': form}
                mine = sinkhorn(scores[:, part], group=dist.group.WORLD, **shared, **common)
                one = sinkhorn(scores, **whole, **common)[:, part]
                torch.testing.assert_close(mine[chosen], one[chosen], rtol=1e-3, atol=1e-8)
        logs = sinkhorn_log_plan(scores[:, part], epsilon=0.05, num_iters=6, group=dist.group.WORLD)
        one = sinkhorn_log_plan(scores, epsilon=0.05, num_iters=6)[:, part]
        torch.testing.assert_close(logs, one, rtol=1e-3, atol=1e-3)
    try:
        sinkhorn(scores.clone().requires_grad_(), epsilon=0.05, num_iters=1, group=dist.group.WORLD)
    except ValueError as error:
        assert 'no_grad' in str(error)  # noqa: PT017  (no pytest in the child process)
    else:
        raise AssertionError('a gradient over ranks must be refused')
    dist.destroy_process_group()


def test_two_processes_with_uneven_rows_equal_one(tmp_path):
    # the last split leaves the second rank without a row
    mp.spawn(_worker, args=(str(tmp_path / 'store'), (11, 29, 30)), nprocs=2)
