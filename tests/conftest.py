# SPDX-License-Identifier: Apache-2.0
"""What all tests share: one thread a process, and the folder of real data."""

import os
import sys
from pathlib import Path

import pytest

# The tests run in one process a core (see the Makefile); more threads than that only wait for each other, and a sum
# over another number of threads has other last digits. Set before anything imports torch.
for _name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
    os.environ.setdefault(_name, '1')


@pytest.fixture(scope='session')
def real_data() -> Path:
    """Folder of real scans, pictures and videos that CLUSTERPLUG_DATA names; the test is skipped without it."""
    folder = os.environ.get('CLUSTERPLUG_DATA')
    if not folder:
        pytest.skip('CLUSTERPLUG_DATA is not set: no real data')
    if not Path(folder).is_dir():
        pytest.fail(f'CLUSTERPLUG_DATA={folder} is not a folder')
    return Path(folder)


@pytest.fixture(scope='session')
def other_device():
    """Device that CLUSTERPLUG_TEST_DEVICE names, such as cuda; what compares it with the CPU is skipped without."""
    import torch

    name = os.environ.get('CLUSTERPLUG_TEST_DEVICE')
    if not name:
        pytest.skip('CLUSTERPLUG_TEST_DEVICE is not set: nothing to compare the CPU with')
    return torch.zeros(1, device=name).device  # a device that is not there fails here


def _default_scopes() -> dict | None:
    module = sys.modules.get('mmengine.registry.default_scope')
    return None if module is None else module.DefaultScope._instance_dict


def _keep_default_scopes():
    """A Runner leaves its default scope behind, in which ``type='X'`` of the next test is looked up: put it back."""
    before = _default_scopes()
    kept = {} if before is None else dict(before)
    yield
    after = _default_scopes()
    if after is not None:
        after.clear()
        after.update(kept)


# One around each test, one around what a module's tests share.
_of_a_test = pytest.fixture(autouse=True, name='_default_scope_of_a_test')(_keep_default_scopes)
_of_a_module = pytest.fixture(autouse=True, scope='module', name='_default_scope_of_a_module')(_keep_default_scopes)
