# SPDX-License-Identifier: Apache-2.0
"""Three gloo ranks on the CPU: exempt buffers stay bit-exact, the others are averaged, DDP and launchers work."""

import pytest
import torch
from torch import nn

from clusterplug.testing import run_gloo

pytest.importorskip('mmengine')


class Bank(nn.Module):
    """A memory that every rank computes alike, with a BatchNorm inside that the ranks do not share."""

    def __init__(self, exempt: bool):
        super().__init__()
        if exempt:
            self.sync_buffers_exempt = True
        generator = torch.Generator().manual_seed(0)
        self.register_buffer('rows', torch.randn(500, generator=generator))
        self.register_buffer('pointer', torch.tensor(2**40 + 1))
        self.norm = nn.BatchNorm1d(2)


def epoch_end(rank, exempt):
    """Whether the bank kept its bits, and the running means of both BatchNorms, after the hook has run."""
    from types import SimpleNamespace

    from mmengine.hooks import SyncBuffersHook

    model = nn.Sequential(nn.BatchNorm1d(2), Bank(exempt))
    for norm in (model[0], model[1].norm):
        norm.running_mean += rank
    before = model[1].rows.clone(), model[1].pointer.clone()
    hook = SyncBuffersHook()
    runner = SimpleNamespace(model=model)
    hook.after_train_epoch(runner)
    hook.before_val_epoch(runner)  # the second call of a round does nothing
    hook.before_val_epoch(runner)
    same = torch.equal(before[0], model[1].rows) and torch.equal(before[1], model[1].pointer)
    return same, model[0].running_mean.tolist(), model[1].norm.running_mean.tolist()


def with_and_without(rank, world_size):
    return epoch_end(rank, exempt=True), epoch_end(rank, exempt=False)


def test_sync_buffers_hook_passes_over_exempt_modules_only():
    for exempt, averaged in run_gloo(with_and_without, 3):
        assert exempt == (True, [1.0, 1.0], [1.0, 1.0])
        # Needed, because the mean of three equal floats is not that float.
        assert averaged == (False, [1.0, 1.0], [1.0, 1.0])


def launch(rank, world_size, port):
    import os

    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    from mmengine.dist import get_backend, init_dist
    from mmengine.model import MMDistributedDataParallel

    init_dist('pytorch', backend='nccl')
    model = MMDistributedDataParallel(module=nn.Linear(2, 1, bias=False), device_ids=[rank], broadcast_buffers=False)
    model(torch.full((1, 2), float(rank))).sum().backward()
    return get_backend(), model.module.weight.grad.tolist()


@pytest.mark.skipif(torch.cuda.is_available(), reason='the launcher takes the GPU here')
def test_launcher_and_data_parallel_without_a_gpu():
    import socket

    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    assert run_gloo(launch, 2, port) == [('gloo', [[0.5, 0.5]])] * 2
