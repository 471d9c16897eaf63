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


@pytest.fixture(autouse=True)
def _own_default_scope():
    """A Runner leaves its default scope behind, in which ``type='X'`` of the next test is looked up: put it back."""

    def instances():
        module = sys.modules.get('mmengine.registry.default_scope')
        return None if module is None else module.DefaultScope._instance_dict

    before = instances()
    kept = {} if before is None else dict(before)
    yield
    after = instances()
    if after is not None:
        after.clear()
        after.update(kept)
