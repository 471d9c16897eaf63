# SPDX-License-Identifier: Apache-2.0
"""Process time, CUDA time, memory, launches and waits of a call, and the rates of the machine it runs on."""

import platform
import statistics
from collections.abc import Callable
from datetime import date
from typing import NamedTuple

import _timing
import torch

from clusterplug.testing import count_host_syncs, count_launches


class Times(NamedTuple):
    """Milliseconds: median and interquartile range."""

    median: float
    spread: float

    def __str__(self):
        return f'{self.median:.1f} ({self.spread:.1f})'


def summary(milliseconds: list[float]) -> Times:
    low, middle, high = statistics.quantiles(milliseconds, n=4)
    return Times(middle, high - low)


def interleaved(calls: dict[str, Callable], repeats: int, device: str, threads: int) -> dict[str, Times]:
    """Times of each call, one of each in turn, after one that is not counted.

    CPU: time of this process over all threads, which other programs lengthen less than they lengthen a clock on the
    wall. CUDA: events around the call.
    """
    torch.set_num_threads(threads)
    if device == 'cpu':
        return {name: summary(values) for name, values in _timing.interleaved(calls, repeats).items()}
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(_cuda_time(call))
    return {name: summary(values) for name, values in times.items()}


def _cuda_time(call) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def launches(call: Callable, device: str) -> int:
    """Operations that torch launches in ``call``; on CUDA the kernels that ran."""
    if device != 'cuda':
        return count_launches(call).total()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    on_device = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not event.name.startswith(('Memcpy', 'Memset')) for event in on_device)


def synchronizations(call: Callable, device: str) -> int:
    """Waits of the host for the device; on CUDA those that torch warns of in its debug mode."""
    if device != 'cuda':
        return count_host_syncs(call).total()
    import warnings

    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            call()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    return sum('synchroniz' in str(warning.message) for warning in caught)


class Rates(NamedTuple):
    """Measured limits: fp32 matrix product in FLOP/s, copy (bytes read + written) in B/s."""

    product: float
    copy: float


def machine_rates(device: str) -> Rates:
    """Rates of one CPU thread, or of the GPU."""
    if device == 'cpu':
        calls, flops, traffic = {'product': _timing.product_rate(), 'copy': _timing.copy_rate()}, 2 * 1024**3, 2**27
    else:
        a, b = torch.randn(2, 8192, 8192, device=device)
        source, out = torch.randn(2**26, device=device), torch.empty_like(a)
        target = torch.empty_like(source)
        calls = {'product': lambda: torch.mm(a, b, out=out), 'copy': lambda: target.copy_(source)}
        flops, traffic = 2 * 8192**3, 2 * source.nbytes
    times = interleaved(calls, 9, device, 1)
    return Rates(1e3 * flops / times['product'].median, 1e3 * traffic / times['copy'].median)


def machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device == 'cuda' else _processor()
    return f'{name}; torch {torch.__version__}, Python {platform.python_version()}; {date.today()}'


def _processor() -> str:
    try:
        with open('/proc/cpuinfo') as lines:
            return next(line.split(':')[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def verdict(reached: bool) -> str:
    return 'reached' if reached else 'NOT reached'
