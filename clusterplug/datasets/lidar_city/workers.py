# SPDX-License-Identifier: Apache-2.0
"""Several processes that share the streets out among them.

Plain child processes with one JSON line per job: they need no guarded ``__main__`` in the caller's script, and they
end with the caller, also when that is killed outright.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from clusterplug.core.processes import end_with_parent
from clusterplug.datasets.lidar_city.scanner.render import Job, run_job
from clusterplug.datasets.lidar_city.write import scan_paths

_SCAN, _DONE = 'scan', 'done'


def run_jobs(jobs: list[Job], workers: int, report: Callable[[], None]) -> None:
    """Run jobs here (one worker) or in child processes.

    Raises:
        OSError: a file could not be written, here or in a worker.
        RuntimeError: a worker failed in another way or died.
    """
    if workers == 1:
        for job in jobs:
            run_job(job, report)
        return
    todo, events, children = queue.SimpleQueue(), queue.SimpleQueue(), []
    for job in jobs:
        todo.put(job)
    try:
        children = [_start() for _ in range(min(workers, len(jobs)))]
        for child in children:
            threading.Thread(target=_serve, args=(child, todo, events), daemon=True).start()
        running = len(children)
        while running:
            event = events.get()
            if event == _SCAN:
                report()
            elif event == _DONE:
                running -= 1
            else:
                raise event
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.wait()
            child.stdout.close()


def _start() -> subprocess.Popen:
    root = str(Path(__file__).resolve().parents[3])
    search = os.pathsep.join([root, *filter(None, [os.environ.get('PYTHONPATH')])])
    environment = {**os.environ, 'PYTHONPATH': search, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}
    command = [sys.executable, '-c', f'from {__name__} import main; main({os.getpid()})']
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _serve(child: subprocess.Popen, todo: queue.SimpleQueue, events: queue.SimpleQueue) -> None:
    """Feed one child until nothing is left, passing its reports on."""
    try:
        while True:
            try:
                job = todo.get_nowait()
            except queue.Empty:
                break
            with contextlib.suppress(BrokenPipeError):  # it has ended: its answer, which is none, says so below
                child.stdin.write(json.dumps(job._asdict()) + '\n')
                child.stdin.flush()
            scans = iter([*job.frames, None])
            current = next(scans)
            while True:
                answer = child.stdout.readline()
                if not answer:
                    raise RuntimeError(_ended(child.wait(), job, current))
                answer = json.loads(answer)
                if answer == _DONE:
                    break
                if answer == _SCAN:
                    current = next(scans)
                    events.put(_SCAN)
                elif answer['errno']:
                    raise OSError(answer['errno'], answer['message'], answer['path'])
                else:
                    raise RuntimeError(f'a worker failed on sequence {job.sequence:02d}: {answer["message"]}')
        child.stdin.close()
        events.put(_DONE)
    except (OSError, RuntimeError, ValueError) as error:
        events.put(error)


def _ended(code: int, job: Job, frame: int | None) -> str:
    where = f'sequence {job.sequence:02d}'
    if frame is not None:
        where = str(scan_paths(Path(job.out_dir), job.sequence, frame)[0])
    how = f'was killed by signal {-code} (out of memory?)' if code < 0 else f'ended with exit code {code}'
    return (
        f'a worker {how} at {where} (its message is above, if it had one); run the same command again, finished files '
        'are kept, or use one worker to see more'
    )


def main(parent: int) -> None:
    """The child's side: read jobs from standard input, report on standard output, until ``parent`` ends."""
    end_with_parent(parent)
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer

    def answer(content) -> None:
        answers.write(json.dumps(content) + '\n')
        answers.flush()

    try:
        for line in sys.stdin:
            try:
                run_job(Job(**json.loads(line)), lambda: answer(_SCAN))
                answer(_DONE)
            except OSError as error:
                answer({'errno': error.errno or 5, 'message': error.strerror or str(error), 'path': error.filename})
            except Exception as error:
                answer({'errno': None, 'message': f'{type(error).__name__}: {error}'})
    except (BrokenPipeError, KeyboardInterrupt):  # the caller is gone or was interrupted: so are we
        os._exit(130)
