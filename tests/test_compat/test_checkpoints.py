# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what mmengine wrote can be read, code cannot; a full disk leaves the previous file."""

import errno
import os
import pickle

import numpy as np
import pytest
import torch

mmengine = pytest.importorskip('mmengine')

from mmengine.config import ConfigDict  # noqa: E402
from mmengine.fileio.backends import LocalBackend  # noqa: E402
from mmengine.logging import HistoryBuffer  # noqa: E402
from mmengine.runner.checkpoint import CheckpointLoader  # noqa: E402

from clusterplug.compat.mmengine import atomic_files, torch_load  # noqa: E402
from clusterplug.core.files import whole_file  # noqa: E402


@pytest.fixture(autouse=True)
def patched():
    torch_load.WORKAROUND.apply()
    atomic_files.WORKAROUND.apply()


def mm_checkpoint():
    history = HistoryBuffer([0.5, 0.25], [1, 2])
    history.update(0.125)
    return dict(
        state_dict=dict(weight=torch.arange(3.0)),
        message_hub=dict(log_scalars=dict(loss=history), runtime_info=dict(best=np.float64(0.5), step=np.int64(3))),
        meta=dict(dataset_meta=ConfigDict(palette=np.eye(2, dtype=np.uint8), label_mapping={0: 19})),
    )


def test_a_checkpoint_of_mmengine_comes_back(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(mm_checkpoint(), path)
    loaded = CheckpointLoader.load_checkpoint(str(path), 'cpu', logger=None)
    history = loaded['message_hub']['log_scalars']['loss']
    assert history.current() == 0.125
    assert history.mean() == pytest.approx((0.5 + 0.25 + 0.125) / 4)
    assert loaded['message_hub']['runtime_info']['best'] == 0.5
    assert loaded['meta']['dataset_meta'].palette.tolist() == [[1, 0], [0, 1]]


def test_needed_because_torch_refuses_it(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(mm_checkpoint(), path)
    torch_load.WORKAROUND.remove()
    if torch.__version__ < '2.6':
        pytest.skip('this torch loads everything by default')
    with pytest.raises(pickle.UnpicklingError, match=r'HistoryBuffer|getattr|scalar|ConfigDict'):
        CheckpointLoader.load_checkpoint(str(path), 'cpu', logger=None)


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ('made_by_a_checkpoint',)


class ReachesForCode:
    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


@pytest.mark.parametrize('payload', [RunsCode(), ReachesForCode()])
def test_code_in_a_checkpoint_is_refused_with_the_way_out(tmp_path, monkeypatch, payload):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={}, extra=payload), 'bad.pth')
    with pytest.raises(pickle.UnpicklingError, match=r'bad\.pth holds objects .* TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1'):
        CheckpointLoader.load_checkpoint('bad.pth', 'cpu', logger=None)
    assert not os.path.exists('made_by_a_checkpoint')


def full_disk(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / 'best.pth'
    backend = LocalBackend()
    backend.put(b'first', path)
    monkeypatch.setattr(os, 'fsync', full_disk)
    with pytest.raises(OSError, match=r'the disk is full.*it was not written.*best\.pth') as error:
        backend.put(b'second', path)
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match='the disk is full'):
        backend.put_text('second', path)
    assert path.read_bytes() == b'first'
    assert [p.name for p in tmp_path.iterdir()] == ['best.pth']


def test_needed_because_mmengine_opens_the_old_file(tmp_path):
    atomic_files.WORKAROUND.remove()
    path = tmp_path / 'best.pth'
    backend = LocalBackend()
    backend.put(b'first', path)
    with pytest.raises(TypeError):
        backend.put('stops while it writes', path)  # text into a binary file
    assert path.read_bytes() == b''


@pytest.mark.parametrize('stop', [KeyboardInterrupt, ValueError])
def test_a_stop_while_writing_leaves_the_file_that_was_there(tmp_path, stop):
    path = tmp_path / 'file'
    path.write_text('first')

    def write():
        with whole_file(path) as file:
            file.write('second')
            raise stop

    pytest.raises(stop, write)
    assert path.read_text() == 'first'
    assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_links_and_devices_stay_what_they_are(tmp_path):
    (tmp_path / 'target').write_text('first')
    (tmp_path / 'link').symlink_to(tmp_path / 'target')
    LocalBackend().put(b'second', tmp_path / 'link')
    assert (tmp_path / 'link').is_symlink()
    assert (tmp_path / 'target').read_text() == 'second'
    LocalBackend().put(b'gone', '/dev/null')
    assert not os.path.isfile('/dev/null')


def test_new_folders_are_made(tmp_path):
    LocalBackend().put_text('text', tmp_path / 'a' / 'b' / 'file')
    assert (tmp_path / 'a' / 'b' / 'file').read_text() == 'text'
