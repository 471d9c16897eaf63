"""Cores by affinity and by the user's word; children that end with their parent."""

import os
import subprocess
import sys
import time

import pytest

from clusterplug.core.processes import available_cores


@pytest.mark.parametrize(('text', 'expected'), [('1', 1), ('3', 3), ('2,4', 2), ('', 5), ('0', 5), ('many', 5)])
def test_cores(monkeypatch, text, expected):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(5)), raising=False)
    monkeypatch.setenv('OMP_NUM_THREADS', text)
    assert available_cores() == expected


CHILD = """
import time
from clusterplug.core.processes import end_with_parent
end_with_parent(int({parent}))
print('ready', flush=True)
time.sleep(60)
"""
PARENT = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', '''{CHILD}'''.format(parent=os.getpid())], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def is_running(process):
    try:
        os.kill(process, 0)
        with open(f'/proc/{process}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'  # killed, and nobody has asked for its code yet
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /proc')
def test_a_child_ends_with_a_killed_parent():
    parent = subprocess.Popen([sys.executable, '-c', PARENT], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert is_running(child)
    parent.kill()
    parent.wait()
    for _ in range(200):
        if not is_running(child):
            return
        time.sleep(0.05)
    pytest.fail('the child outlived its parent')


def test_a_child_whose_parent_is_gone_does_not_begin():
    done = subprocess.run(
        [sys.executable, '-c', CHILD.format(parent=1 if os.getpid() != 1 else 2)], capture_output=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stdout == b''
