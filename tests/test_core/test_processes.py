# SPDX-License-Identifier: Apache-2.0
"""Workers: CPUs of the affinity, no child outlives its parent, a worker that dies costs its own item only."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from clusterplug.core.processes import WorkerDied, available_cores, available_cpus, map_in_processes


def gone(process, seconds=20):
    """Whether a process ends within a (generous) time; a zombie counts as gone."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with open(f'/proc/{process}/stat') as file:
                if file.read().rsplit(')', 1)[1].split()[0] == 'Z':
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def work(item):
    if item == 'killed':
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 'exit':
        os._exit(3)
    if item == 'error':
        raise OSError(28, 'No space left on device', '/full/disk')
    if item == 'wait':
        time.sleep(600)
    if isinstance(item, str) and item.startswith('once:'):
        path = item[5:]
        if not os.path.exists(path):
            open(path, 'w').close()
            os.kill(os.getpid(), signal.SIGUSR1)
    return f'{item} done'


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='needs a CPU affinity')
def test_cpus_are_those_of_the_affinity():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert available_cpus() == len(before)


@pytest.mark.parametrize('workers', [1, 3])
def test_every_item_has_its_result(workers):
    assert dict(map_in_processes(work, range(7), workers)) == {i: f'{i} done' for i in range(7)}
    assert list(map_in_processes(work, [], workers)) == []


@pytest.mark.parametrize('workers', [1, 2])
def test_a_dead_worker_costs_its_own_item(workers):
    found = dict(map_in_processes(work, ['a', 'killed', 'b', 'exit', 'c'], workers))
    assert {name: found[name] for name in 'abc'} == {name: f'{name} done' for name in 'abc'}
    assert isinstance(found['killed'], WorkerDied)
    assert 'signal 9 (SIGKILL' in str(found['killed'])
    assert 'exit code 3' in str(found['exit'])


def test_an_item_is_tried_again(tmp_path):
    item = f'once:{tmp_path / "tried"}'
    assert dict(map_in_processes(work, [item], 1)) == {item: f'{item} done'}
    (tmp_path / 'tried').unlink()
    assert 'SIGUSR1' in str(dict(map_in_processes(work, [item], 1, attempts=1))[item])


def test_errors_come_out_as_they_were():
    with pytest.raises(OSError, match='No space left') as caught:
        list(map_in_processes(work, ['a', 'error', 'wait'], 2))
    assert (caught.value.errno, caught.value.filename) == (28, '/full/disk')
    with pytest.raises(RuntimeError, match='pickle'):
        list(map_in_processes(_lock, [1], 1))


def _lock(item):
    return threading.Lock()


@pytest.mark.parametrize('bad', [0, -1, 1.5, True])
def test_bad_numbers(bad):
    with pytest.raises(ValueError, match='workers must be'):
        map_in_processes(work, [1], bad)
    with pytest.raises(ValueError, match='attempts must be'):
        map_in_processes(work, [1], 1, bad)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize('kind', ['map_in_processes', 'program', 'pool'])
def test_children_end_with_their_parent(tmp_path, number, kind):
    (tmp_path / 'parent.py').write_text(
        'import os, subprocess, sys, time\n'
        'from concurrent.futures import ProcessPoolExecutor\n'
        'from clusterplug.core.processes import end_with_parent, map_in_processes\n'
        'def wait(item):\n'
        '    os.write(1, b"%d\\n" % os.getpid())\n'
        '    time.sleep(600)\n'
        'if sys.argv[1] == "map_in_processes":\n'
        '    list(map_in_processes(wait, [1, 2], 2))\n'
        'elif sys.argv[1] == "pool":\n'
        '    pool = ProcessPoolExecutor(2, initializer=end_with_parent, initargs=(os.getpid(),))\n'
        '    list(pool.map(wait, [1, 2]))\n'
        'else:\n'
        '    children = [subprocess.Popen(["sleep", "600"], preexec_fn=end_with_parent) for _ in range(2)]\n'
        '    print(*[child.pid for child in children], sep="\\n", flush=True)\n'
        '    children[0].wait()\n'
    )
    parent = subprocess.Popen([sys.executable, tmp_path / 'parent.py', kind], stdout=subprocess.PIPE, text=True)
    children = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(number)
    parent.wait()
    assert [child for child in children if not gone(child)] == []
    parent.stdout.close()


def test_a_parent_that_is_gone_already():
    gone_process = subprocess.Popen([sys.executable, '-c', ''])
    gone_process.wait()
    code = f'from clusterplug.core.processes import end_with_parent; end_with_parent({gone_process.pid}); print("here")'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout == ''


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_without_the_kernels_help_a_thread_watches(tmp_path):
    code = (
        'import os, time\nfrom clusterplug.core import processes\nprocesses._PRCTL = None\n'
        'if os.fork():\n    time.sleep(600)\n'
        'processes.end_with_parent()\nprint(os.getpid(), flush=True)\ntime.sleep(600)'
    )
    parent = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    assert gone(child)
    parent.stdout.close()


def test_closing_ends_the_workers(tmp_path):
    results = map_in_processes(work, ['a', 'wait'], 2)
    next(results)
    results.close()
    import multiprocessing

    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(('text', 'expected'), [('1', 1), ('3', 3), ('2,4', 2), ('', 5), ('0', 5), ('many', 5)])
def test_cores(monkeypatch, text, expected):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(5)), raising=False)
    monkeypatch.setenv('OMP_NUM_THREADS', text)
    assert available_cores() == expected


def test_a_child_whose_parent_is_gone_does_not_begin():
    other = 1 if os.getpid() != 1 else 2
    code = f'from clusterplug.core.processes import end_with_parent; end_with_parent({other}); print("here")'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, b'')
