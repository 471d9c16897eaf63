# SPDX-License-Identifier: Apache-2.0
"""Several trainings at the same time, each in a process of its own."""

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from clusterplug.core.outputs import locked_folder
from clusterplug.core.processes import available_cores, available_cpus, end_with_parent
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
    finished: Callable[[str, dict], None] = lambda name, result: None,
) -> dict[str, dict]:
    """Train and test all runs; those that are finished are not run again, interrupted ones go on.

    Small sparse convolutions gain little from a second thread, so on few cores two trainings side by side are done
    sooner than one after the other, and whatever else the machine does meets both alike.

    Args:
        runs: the runs by name.
        jobs: how many run at the same time.
        threads: CPU threads of each; by default ``OMP_NUM_THREADS``, and without it the CPUs that this process may
            use, shared out.
        say: takes a line of progress.
        every: seconds between such lines.
        finished: called with name and result of each run as soon as it is known; what it raises stops the others.

    Returns:
        The result of each run, as :func:`~clusterplug.experiments.result_of`.

    Raises:
        RunFailed: a run ended with an error; the others are stopped, and go on when started again.
        FileExistsError: a work folder belongs to a run of other settings.
        FolderInUse: another process trains in one of the work folders.
        ValueError: ``jobs`` or ``threads`` below 1, or two runs in one folder.
    """
    _check(runs, jobs, threads)
    with ExitStack() as held:
        held.enter_context(_ends_on_signals())
        for run in runs.values():
            held.enter_context(locked_folder(run.work_dir))
        return _run_all(runs, jobs, threads, say, every, finished)


def _run_all(runs, jobs, threads, say, every, finished) -> dict[str, dict]:
    results, waiting = {}, {}
    for name, run in runs.items():
        results[name] = result_of(run)
        if results[name] is None:
            claim(run)
            waiting[name] = run
        else:
            say(f'{name}: done before ({Path(run.work_dir) / "result.json"})')
            finished(name, results[name])
    threads = threads or _share(min(jobs, len(waiting)))
    active, said = {}, time.monotonic()
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                name, run = next(iter(waiting.items()))
                active[name] = _start(waiting.pop(name), threads)
                say(f'{name}: started on {threads} thread{"s" * (threads > 1)}; log: {Path(run.work_dir) / LOG}')
            for name in [name for name, child in active.items() if child.poll() is not None]:
                results[name] = _finish(name, runs[name], active.pop(name).returncode, say)
                finished(name, results[name])
            if active and time.monotonic() - said >= every:
                said = time.monotonic()
                say(' | '.join(f'{name}: {progress(runs[name].work_dir)}' for name in active))
            time.sleep(0.2)
    finally:
        _end(list(active.values()))
    return results


def _share(jobs: int) -> int:
    """Threads of each of so many trainings: what the user said, else the usable CPUs shared out."""
    return available_cores() if os.environ.get('OMP_NUM_THREADS') else max(1, available_cpus() // max(1, jobs))


def _end(children: list[subprocess.Popen]) -> None:
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def _ends_on_signals() -> Iterator[None]:
    """Leave by an exception on the signals of schedulers and closed terminals, so that the children are ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number, frame):
        raise SystemExit(128 + number)

    # A handler of the caller, and a signal that is ignored (nohup), stay as they are.
    signals = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in signals:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)


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
            preexec_fn=functools.partial(end_with_parent, os.getpid()),
        )  # fmt: skip


def _environment(threads: int) -> dict[str, str]:
    """That of this process, with the number of threads, and this package found where this process found it."""
    root = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join([root, *filter(None, [os.environ.get('PYTHONPATH')])])
    return os.environ | {'OMP_NUM_THREADS': str(threads), 'PYTHONPATH': search}


def _finish(name: str, run: Run, code: int, say: Callable[[str], None]) -> dict:
    result = result_of(run)
    if code or result is None:
        log = Path(run.work_dir) / LOG
        end = log.read_text(errors='replace')[-3000:] if log.is_file() else ''
        why = f'failed with exit code {code}' if code else 'ended without a result of the settings of now'
        raise RunFailed(f'{end}\n{name} {why}, see {log}')
    say(f'{name}: done in {result["minutes"]:.1f} minutes')
    return result
