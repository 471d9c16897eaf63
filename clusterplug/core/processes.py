# SPDX-License-Identifier: Apache-2.0
"""Worker processes: as many as this process may use, none outlives its parent, and one that dies names its item."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import wait

_PR_SET_PDEATHSIG = 1
# Looked up here, as little as possible may happen between fork and exec.
_PRCTL = getattr(ctypes.CDLL(None), 'prctl', None) if sys.platform.startswith('linux') else None
_SECONDS_BETWEEN_LOOKS = 0.5


class WorkerDied(RuntimeError):
    """A worker process ended before it had returned a result; the message says how."""


def available_cpus() -> int:
    """Return how many CPUs this process may use: its affinity (containers, schedulers, taskset), not the machine's.

    Example:
        >>> 1 <= available_cpus() <= os.cpu_count()
        True
    """
    if hasattr(os, 'sched_getaffinity'):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def available_cores() -> int:
    """Return how many processes or threads to use: ``OMP_NUM_THREADS`` where set, else :func:`available_cpus`.

    Example:
        >>> available_cores() >= 1
        True
    """
    try:
        wanted = int(os.environ.get('OMP_NUM_THREADS', '').split(',')[0])  # a list has one number for each level
    except ValueError:
        return available_cpus()
    return wanted if wanted >= 1 else available_cpus()


def end_with_parent(parent: int | None = None) -> None:
    """End this process as soon as its parent has ended, also when the parent was killed outright.

    Call it in the child: as ``initializer`` of a pool, first thing in a worker, or as ``preexec_fn`` of
    ``subprocess.Popen``, where it holds for the program that is started. On Linux the kernel does it; that counts the
    end of the parent's *thread* that started the child as well, so start children from a thread that waits for them.
    Elsewhere a thread looks twice a second whether the parent is still there (which a program started by ``exec`` does
    not inherit).

    Args:
        parent: Process number of the parent, which closes the gap between its ``fork`` and this call. By default the
            parent of now.

    Example:
        >>> from concurrent.futures import ProcessPoolExecutor
        >>> pool = ProcessPoolExecutor(2, initializer=end_with_parent, initargs=(os.getpid(),))
        >>> pool.shutdown()
    """
    own_parent = os.getppid()
    if not _ask_the_kernel():
        threading.Thread(target=_watch, args=(own_parent,), daemon=True, name='die-with-parent').start()
    if os.getppid() != (own_parent if parent is None else parent):  # it ended before the line above
        os._exit(1)


die_with_parent = end_with_parent


def map_in_processes(
    function: Callable, items: Iterable, workers: int | None = None, attempts: int = 2
) -> Iterator[tuple[object, object]]:
    """Call ``function`` on each item in worker processes; yield ``(item, result)`` in the order of completion.

    Unlike a pool of the standard library, a worker that is killed or crashes costs its own item only: the item is tried
    again in a new worker, up to ``attempts`` times in total, then its result is a :class:`WorkerDied`. Workers end with
    this process, and when the iterator is closed.

    Args:
        function: Picklable. Where this process has several threads, workers are started anew rather than forked; a
            script then needs the guard ``if __name__ == '__main__'``.
        items: Picklable arguments, one a call.
        workers: Processes. By default :func:`available_cpus`.
        attempts: How often an item whose worker died is started in total.

    Yields:
        The item and what ``function`` returned, or :class:`WorkerDied` (as a value).

    Raises:
        ValueError: If ``workers`` or ``attempts`` is below 1.
        Exception: What ``function`` raised, as it was; the other workers are ended.

    Example:
        >>> sorted(map_in_processes(abs, [-2, 3], workers=1))
        [(-2, 2), (3, 3)]
    """
    workers = available_cpus() if workers is None else workers
    for name, value in (('workers', workers), ('attempts', attempts)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f'{name} must be a whole number of at least 1, got {value!r}')
    return _map(function, deque((item, 1) for item in items), workers, attempts)


def _map(function, left: deque, workers: int, attempts: int):
    crew: list[_Worker] = []
    try:
        while left or crew:
            while left and len(crew) < workers:
                crew.append(_Worker(function))
                crew[-1].give(*left.popleft())
            ready = set(wait([worker.connection for worker in crew]))
            for worker in [worker for worker in crew if worker.connection in ready]:
                item, attempt = worker.item, worker.attempt
                try:
                    succeeded, result = worker.connection.recv()
                except (EOFError, OSError):
                    crew.remove(worker)
                    died = worker.end()
                    if attempt < attempts:
                        left.appendleft((item, attempt + 1))
                    else:
                        yield item, WorkerDied(died)
                    continue
                if not succeeded:
                    raise result
                if left:
                    worker.give(*left.popleft())
                else:
                    crew.remove(worker)
                    worker.end()
                yield item, result
    finally:
        for worker in crew:
            worker.ask_to_end()
        for worker in crew:
            worker.kill()


def _context():
    """Return a way to start processes that is safe: a fork of several threads takes over locks that nobody opens."""
    method = multiprocessing.get_start_method()
    if method == 'fork' and os.path.isdir('/proc/self/task') and len(os.listdir('/proc/self/task')) > 1:
        method = 'forkserver'
    return multiprocessing.get_context(method)


class _Worker:
    """One process that gets items over a pipe of its own, so that its death is seen at the pipe."""

    def __init__(self, function: Callable):
        context = _context()
        # The server imports what the workers need, once.
        context.set_forkserver_preload([getattr(function, 'func', function).__module__])
        self.connection, theirs = context.Pipe()
        parent = None if context.get_start_method() == 'forkserver' else os.getpid()
        self._process = context.Process(target=_work, args=(function, theirs, self.connection, parent), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, item, attempt: int) -> None:
        self.item, self.attempt = item, attempt
        self._send((True, item))

    def _send(self, message) -> None:
        with suppress(OSError):  # it is dead already: seen when its result is read
            self.connection.send(message)

    def end(self) -> str:
        """Let it finish and say how it ended."""
        self._send((False, None))  # closing is not enough: workers forked later hold this end as well
        self._process.join()
        self.connection.close()
        code = self._process.exitcode
        if code is not None and code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = 'a real-time signal'
            hint = '; out of memory?' if -code == getattr(signal, 'SIGKILL', 9) else ''
            return f'its process was ended by signal {-code} ({name}{hint})'
        return f'its process ended with exit code {code} before it had a result'

    def ask_to_end(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        """End it, outright if it does not follow :meth:`ask_to_end`."""
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.connection.close()


def _work(function: Callable, connection, parents_end, parent: int | None) -> None:
    end_with_parent(parent)
    parents_end.close()  # else this process keeps its own pipe open
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets Ctrl-C as well, and ends its workers
    signal.signal(signal.SIGTERM, _exit_orderly)
    while True:
        try:
            goes_on, item = connection.recv()
        except (EOFError, OSError):
            return
        if not goes_on:
            return
        try:
            answer = True, function(item)
        except Exception as error:  # the parent raises it
            answer = False, error
        try:
            connection.send(answer)
        except OSError:
            return
        except Exception as error:  # a result or an error that cannot be pickled
            connection.send(
                (False, RuntimeError(f'{type(error).__name__}: {error}; the answer was {answer[1]!r:.300}'))
            )


def _exit_orderly(number, frame):
    sys.exit(128 + number)  # so that temporary files are removed on the way out


def _ask_the_kernel() -> bool:
    return _PRCTL is not None and _PRCTL(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) == 0


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)
