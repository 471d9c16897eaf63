"""Child processes that take the cores they may use and do not outlive their parent."""

import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1


def available_cores() -> int:
    """Return the number of processes or threads to use: ``OMP_NUM_THREADS`` where it is set, else the usable cores.

    Usable are the cores on which this process may run (its affinity), which a scheduler sets on shared machines.

    Example:
        >>> available_cores() >= 1
        True
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    try:
        wanted = int(os.environ.get('OMP_NUM_THREADS', '').split(',')[0])  # a list has one number for each level
    except ValueError:
        return usable
    return wanted if wanted >= 1 else usable


def end_with_parent(parent: int) -> None:
    """End this process as soon as its parent has ended, also when the parent was killed outright.

    Call it first thing in the child. On Linux the kernel does it; elsewhere a thread looks every second.

    Args:
        parent: Number of the parent process, ``os.getpid()`` there.
    """
    if sys.platform == 'linux':
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
