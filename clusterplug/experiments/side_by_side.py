"""Several trainings at the same time, each in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from clusterplug.experiments.progress import progress
from clusterplug.experiments.run import Run, claim, result_of

LOG = 'console.log'


class RunFailed(RuntimeError):
    """A child ended with an error; the message has the end of its log."""


def run_all(
    runs: dict[str, Run],
    *,
    jobs: int = 1,
    threads: int | None = None,
    say: Callable[[str], None] = print,
    every: float = 20.0,
) -> dict[str, dict]:
    """Train and test all runs; those that are finished are not run again, interrupted ones go on.

    Small sparse convolutions gain little from a second thread, so on few cores two trainings side by side are done
    sooner than one after the other, and whatever else the machine does meets both alike.

    Args:
        runs: the runs by name.
        jobs: how many run at the same time.
        threads: CPU threads of each; by default the cores shared out.
        say: takes a line of progress.
        every: seconds between such lines.

    Returns:
        The result of each run, as :func:`~clusterplug.experiments.result_of`.

    Raises:
        RunFailed: a run ended with an error; the others are stopped, and go on when started again.
        FileExistsError: a work folder belongs to a run of other settings.
        ValueError: ``jobs`` or ``threads`` below 1, or two runs in one folder.
    """
    _check(runs, jobs, threads)
    waiting = {}
    for name, run in runs.items():
        if result_of(run) is None:
            claim(run)
            waiting[name] = run
        else:
            say(f'{name}: done before ({Path(run.work_dir) / "result.json"})')
    threads = threads or max(1, (os.cpu_count() or 1) // max(1, min(jobs, len(waiting))))
    active, said = {}, time.monotonic()
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                name, run = next(iter(waiting.items()))
                active[name] = _start(waiting.pop(name), threads)
                say(f'{name}: started on {threads} thread{"s" * (threads > 1)}; log: {Path(run.work_dir) / LOG}')
            for name in [name for name, child in active.items() if child.poll() is not None]:
                _finish(name, runs[name], active.pop(name).returncode, say)
            if active and time.monotonic() - said >= every:
                said = time.monotonic()
                say(' | '.join(f'{name}: {progress(runs[name].work_dir)}' for name in active))
            time.sleep(0.2)
    finally:
        for child in active.values():
            child.terminate()
        for child in active.values():
            child.wait()
    return {name: result_of(run) for name, run in runs.items()}


def _check(runs: dict[str, Run], jobs: int, threads: int | None) -> None:
    for name, value in (('jobs', jobs), ('threads', threads)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f'{name} must be an int of at least 1, got {value!r}')
    folders: Sequence[Path] = [Path(run.work_dir).resolve() for run in runs.values()]
    if len(set(folders)) < len(folders):
        raise ValueError('each run needs a work_dir of its own')


def _start(run: Run, threads: int) -> subprocess.Popen:
    with open(Path(run.work_dir) / LOG, 'ab') as log:
        return subprocess.Popen(
            [sys.executable, '-m', 'clusterplug.experiments.run', str(run.work_dir)],
            stdout=log, stderr=subprocess.STDOUT, env=_environment(threads),
        )  # fmt: skip


def _environment(threads: int) -> dict[str, str]:
    """That of this process, with the number of threads, and this package found where this process found it."""
    root = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join([root, *filter(None, [os.environ.get('PYTHONPATH')])])
    return os.environ | {'OMP_NUM_THREADS': str(threads), 'PYTHONPATH': search}


def _finish(name: str, run: Run, code: int, say: Callable[[str], None]) -> None:
    result = result_of(run)
    if code or result is None:
        log = Path(run.work_dir) / LOG
        end = log.read_text(errors='replace')[-3000:]
        raise RunFailed(f'{end}\n{name} failed with exit code {code}, see {log}')
    say(f'{name}: done in {result["minutes"]:.1f} minutes')
