"""Timing that can be believed: warm-up, interleaved repeats, median process time, the roof measured in the same run."""

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch


def interleaved(candidates: dict[str, Callable], repeats: int = 7, warm_up: int = 1) -> dict[str, list[float]]:
    """Return process times in ms of each candidate, run in turn so that all see the same machine."""
    for _ in range(warm_up):
        for run in candidates.values():
            run()
    times = {name: [] for name in candidates}
    for _ in range(max(5, repeats)):
        for name, run in candidates.items():
            start = time.process_time()
            run()
            times[name].append((time.process_time() - start) * 1e3)
    return times


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


def table(title: str, times: dict[str, list[float]], *, ours: str, roof_ms: float, roof: str) -> None:
    """Print median, spread and ratio to ours of each candidate, and the share of the roof that each reaches."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f'\n{title}\n  roof: {roof} = {roof_ms:.1f} ms')
    print(f'  {"":34s}{"median ms":>10s}{"lowest":>9s}{"highest":>9s}{"/ ours":>8s}{"roof share":>12s}')
    for name, median in sorted(medians.items(), key=lambda item: item[1]):
        ratio = median / medians[ours]
        low, high = min(times[name]), max(times[name])
        print(f'  {name:34s}{median:10.1f}{low:9.1f}{high:9.1f}{ratio:8.2f}{roof_ms / median:12.2f}')


def target(text: str, reached: bool) -> None:
    """Print a target and whether this run reached it."""
    print(f'  target: {text}: {"reached" if reached else "NOT reached"} in this run')
