"""Timing that can be believed: warm-up, interleaved repeats, median process time, the roof measured in the same run."""

import importlib
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch


def interleaved(candidates: dict[str, Callable], repeats: int = 7, warm_up: int = 1) -> dict[str, list[float]]:
    """Return process times in ms of each candidate, run in turn so that all see the same machine."""
    for _ in range(warm_up):
        for run in candidates.values():
            run()
    times = {name: [] for name in candidates}
    for _ in range(max(3, repeats)):
        for name, run in candidates.items():
            start = time.process_time()
            run()
            times[name].append((time.process_time() - start) * 1e3)
    return times


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


def product_rate() -> Callable[[], None]:
    """Return a candidate that multiplies two 1024 x 1024 fp32 matrices: 2.147 GFLOP, the arithmetic roof."""
    a, b, out = torch.randn(1024, 1024), torch.randn(1024, 1024), torch.empty(1024, 1024)
    return lambda: torch.mm(a, b, out=out)


def copy_rate() -> Callable[[], None]:
    """Return a candidate that copies 64 MB: 128 MB of traffic, the memory roof."""
    a, out = torch.randn(16 << 20), torch.empty(16 << 20)
    return lambda: out.copy_(a)


def header(packages: tuple[str, ...], dtype: torch.dtype = torch.float32) -> None:
    """Print what the figures depend on."""
    versions = []
    for package in packages:
        try:
            versions.append(f'{package} {importlib.metadata.version(package)}')
        except importlib.metadata.PackageNotFoundError:
            versions.append(f'{package} absent')
    model = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as file:
            model = next((line.split(':')[1].strip() for line in file if line.startswith('model name')), model)
    print(f'device: {model}; dtype: {dtype}; threads: {torch.get_num_threads()} (of {os.cpu_count()})')
    print(f'torch {torch.__version__}, ' + ', '.join(versions))


class Row(NamedTuple):
    """One line of the table: ours against a peer, in ms or MB."""

    kernel: str
    peer: str
    ours: float
    theirs: float
    wish: float | None = None  # theirs / ours is to be at least this
    remark: str = ''
    unit: str = 'ms'


def rows(
    kernel: str,
    times: dict[str, list[float]],
    ours: str,
    wishes: dict[str, float],
    remarks: dict[str, str] | None = None,
) -> list[Row]:
    """Return a row for each peer in ``times``, compared with the entry ``ours`` by medians."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    remarks = remarks or {}
    return [
        Row(kernel, name, medians[ours], median, wishes.get(name), remarks.get(name, ''))
        for name, median in medians.items()
        if name != ours
    ]


def print_table(lines: list[Row]) -> None:
    """Print the rows as one Markdown table; every wish says whether this run reached it."""
    print('| kernel | against | ours | theirs | theirs / ours | wished | remark |')
    print('|---|---|---|---|---|---|---|')
    for line in lines:
        ratio = line.theirs / line.ours
        wished = '' if line.wish is None else f'>= {line.wish:g}: {"reached" if ratio >= line.wish else "NOT reached"}'
        figures = f'{line.ours:.4g} {line.unit} | {line.theirs:.4g} {line.unit} | {ratio:.3g}'
        print(f'| {line.kernel} | {line.peer} | {figures} | {wished} | {line.remark} |')


def optional(name: str):
    """Return a module or None, saying so."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f'skipped: {name} is not installed')
        return None
