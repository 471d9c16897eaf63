# SPDX-License-Identifier: Apache-2.0
"""The most memory that a call, or a whole process, held at once."""

import re
from collections.abc import Callable
from pathlib import Path

import torch


def peak_bytes(call: Callable, device: str = 'cpu') -> int:
    """Peak of the bytes that tensors made in ``call`` hold at once.

    On a CPU from the allocator's events in the profiler; what a library allocates by itself does not show.
    """
    if device == 'cuda':
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == '[memory]']
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def peak_of_process() -> int:
    """Most bytes that this process had in memory, libraries and all (Linux).

    Not ``getrusage``: its maximum is handed on by the process that started this one.
    """
    return int(re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) * 1024
