# SPDX-License-Identifier: Apache-2.0
"""Timing that can be believed: warm-up, interleaved repeats, median process time, the roof measured in the same run."""

import contextlib
import datetime
import importlib
import importlib.metadata
import io
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
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


def product_rate() -> Callable[[], None]:
    """Return a candidate that multiplies two 1024 x 1024 fp32 matrices: 2.147 GFLOP, the arithmetic roof."""
    a, b, out = torch.randn(1024, 1024), torch.randn(1024, 1024), torch.empty(1024, 1024)
    return lambda: torch.mm(a, b, out=out)


def copy_rate() -> Callable[[], None]:
    """Return a candidate that copies 64 MB: 128 MB of traffic, the memory roof."""
    a, out = torch.randn(16 << 20), torch.empty(16 << 20)
    return lambda: out.copy_(a)


def describe_machine(packages: tuple[str, ...], dtype: torch.dtype = torch.float32) -> list[str]:
    """Return lines that say what the figures depend on: processor, threads, linear algebra, versions, date."""
    versions = []
    for package in packages:
        try:
            versions.append(f'{package} {importlib.metadata.version(package)}')
        except importlib.metadata.PackageNotFoundError:
            versions.append(f'{package} absent')
    return [
        f'{datetime.date.today():%Y-%m-%d}; {_processor()}',
        f'{torch.get_num_threads()} of {os.cpu_count()} cores; {dtype}',
        f'linear algebra: {_linear_algebra()}',
        f'Python {platform.python_version()}, torch {torch.__version__}, ' + ', '.join(versions),
    ]


def header(packages: tuple[str, ...], dtype: torch.dtype = torch.float32) -> None:
    """Print what the figures depend on, as a paragraph of a page."""
    print(*describe_machine(packages, dtype), sep='<br>\n', end='\n\n')


def _processor() -> str:
    """Name and, as clouds hide the name, family and model of the processor and its widest instructions."""
    if not os.path.exists('/proc/cpuinfo'):
        return platform.processor() or platform.machine()
    with open('/proc/cpuinfo') as file:
        fields = dict(line.split(':', 1) for line in file.read().split('\n\n')[0].splitlines() if ':' in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = fields.get('flags', '').split()
    widest = next((flag for flag in ('avx512f', 'avx2', 'avx') if flag in flags), 'no avx')
    numbers = f'family {fields.get("cpu family", "?")}, model {fields.get("model", "?")}'
    return f'{fields.get("model name", platform.machine())} ({numbers}, {widest})'


def _linear_algebra() -> str:
    """What torch, and what NumPy (and with it scikit-learn and the other peers) multiply matrices with."""
    config = torch.__config__.show()
    found = re.search(r'Math Kernel Library Version (\S+)', config)
    torch_blas = f'MKL {found[1]}' if found else 'BLAS ' + ''.join(re.findall(r'BLAS_INFO=(\w+)', config)[:1])
    capability = ''.join(re.findall(r'CPU capability usage: (\w+)', config))
    pools = optional('threadpoolctl')
    libraries = [] if pools is None else [each for each in pools.threadpool_info() if each['user_api'] == 'blas']
    names = {f'{each["internal_api"]} {each["version"]} ({each.get("architecture")} kernels)' for each in libraries}
    numpy_blas = ', '.join(sorted(names)).replace('openblas', 'OpenBLAS') or 'unknown'
    return f'torch {torch_blas} ({capability}), NumPy {numpy_blas}'


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


def table(lines: list[Row]) -> list[str]:
    """Return the rows as lines of one Markdown table; every target says whether this run reached it."""
    text = ['| What | Against | Ours | Theirs | Theirs / ours | Target | Remark |', '|---|---|---|---|---|---|---|']
    for line in lines:
        ratio = line.theirs / line.ours
        target = '' if line.wish is None else f'>= {line.wish:g}: {"reached" if ratio >= line.wish else "NOT reached"}'
        figures = f'{line.ours:.3g} {line.unit} | {line.theirs:.3g} {line.unit} | {ratio:.2f}'
        text.append(f'| {line.kernel} | {line.peer} | {figures} | {target} | {line.remark} |')
    return text


def publish(page: str | os.PathLike, name: str, lines: list[str]) -> None:
    """Replace what stands between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->`` of a page.

    So a table of the documentation is what a script printed, with every row and with the machine.

    Raises:
        ValueError: If the page has no such marks.
    """
    head, tail = _parts(page, name)
    Path(page).write_text(head + '\n' + '\n'.join(lines) + '\n' + tail, encoding='utf-8')


def _parts(page: str | os.PathLike, name: str) -> tuple[str, str]:
    """What stands before and after a part of a page, with its marks."""
    text = Path(page).read_text(encoding='utf-8')
    begin, end = f'<!-- {name}: begin -->', f'<!-- {name}: end -->'
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f'{page} must have the marks {begin} and {end} once each, in this order; add them')
    return text[: text.index(begin) + len(begin)], text[text.index(end) :]


@contextlib.contextmanager
def published(page: str | os.PathLike | None, name: str) -> Iterator[None]:
    """What is printed inside goes into the part NAME of a page as well, when all of it has been printed.

    Without a page it is printed only. A run that fails or is stopped leaves the page as it was.
    """
    if page is None:
        yield
        return
    _parts(page, name)  # a page without the marks is said before the minutes are spent
    copy = _Copy(sys.stdout)
    with contextlib.redirect_stdout(copy):
        yield
    publish(page, name, ['', *''.join(copy.parts).strip('\n').split('\n'), ''])


class _Copy(io.TextIOBase):
    """A stream that hands everything on and keeps it."""

    def __init__(self, stream):
        self.stream, self.parts = stream, []

    def write(self, text: str) -> int:
        self.parts.append(text)
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Hold every pool of threads in the process at the number that torch has: BLAS, OpenMP, faiss."""
    pools = optional('threadpoolctl')
    if pools is None:
        yield
        return
    with pools.threadpool_limits(limits=torch.get_num_threads()):
        yield


def optional(name: str):
    """Return a module or None, saying so."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f'skipped: {name} is not installed')
        return None
