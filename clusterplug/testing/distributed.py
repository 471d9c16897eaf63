# SPDX-License-Identifier: Apache-2.0
"""Run a function on several gloo ranks on this machine, and get every rank's result or its traceback."""

import io
import os
import queue
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def run_gloo(fn: Callable, world_size: int, *args: Any, timeout: float = 120.0) -> list:
    """Call ``fn(rank, world_size, *args)`` in ``world_size`` fresh processes that form one gloo group.

    Each rank has one torch thread, the environment variables of a launcher (``RANK``, ``LOCAL_RANK``,
    ``WORLD_SIZE``), and ``clusterplug.compat`` applied.

    Args:
        fn: A function at the top level of a module that can be imported.
        world_size: Number of processes.
        *args: Picklable further arguments, the same for all ranks.
        timeout: Seconds after which hanging ranks are stopped.

    Returns:
        list: What each rank returned, in the order of ranks; tensors become copies.

    Raises:
        RuntimeError: When a rank raised, with that rank's traceback, or died.
        TimeoutError: When a rank did not finish in time, with the ranks that are missing.

    Example:
        >>> import operator
        >>> run_gloo(operator.add, 2)
        [2, 3]
    """
    if world_size < 1:
        raise ValueError(f'world_size must be at least 1, got {world_size}')
    context = multiprocessing.get_context('spawn')
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, 'store').as_uri()
        ranks = [
            context.Process(target=_run_rank, args=(fn, rank, world_size, store, timeout, results, args), daemon=True)
            for rank in range(world_size)
        ]
        try:
            for process in ranks:
                process.start()
            return _collect(ranks, results, timeout)
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
                process.join()


def _run_rank(fn, rank: int, world_size: int, store: str, timeout: float, results, args: tuple) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    torch.set_num_threads(1)
    try:
        from clusterplug import compat

        compat.apply_all()
        dist.init_process_group(
            'gloo', init_method=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout)
        )
        results.put((rank, True, _to_bytes(fn(rank, world_size, *args))))
        dist.barrier()
    except BaseException:
        results.put((rank, False, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _to_bytes(value) -> bytes:
    # torch's own queue passes handles of shared memory, which die with the rank; bytes outlive it.
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _collect(ranks: list, results, timeout: float) -> list:
    found: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    while len(found) < len(ranks):
        try:
            rank, finished, value = results.get(timeout=0.5)
        except queue.Empty:
            missing = [rank for rank in range(len(ranks)) if rank not in found]
            dead = [rank for rank in missing if not ranks[rank].is_alive()]
            if dead and results.empty():
                raise RuntimeError(f'rank {dead[0]} died with exit code {ranks[dead[0]].exitcode}') from None
            if time.monotonic() > deadline:
                raise TimeoutError(f'ranks {missing} of {len(ranks)} did not finish within {timeout} s') from None
            continue
        if not finished:
            raise RuntimeError(f'rank {rank} of {len(ranks)} raised\n{value}')
        found[rank] = torch.load(io.BytesIO(value), weights_only=False)
    return [found[rank] for rank in range(len(ranks))]
