# SPDX-License-Identifier: Apache-2.0
"""What workers of tools/prepare_videos.py leave behind when they are ended is removed by the run that ends them."""

import errno
import subprocess
import sys

import pytest

pytest.importorskip('av', reason='needs PyAV: pip install clusterplug[video]')

from clusterplug.core.processes import WorkerDied
from clusterplug.datasets.video import prepare
from clusterplug.datasets.video.prepare import prepare_videos


def _killed_over(path):
    code = (
        'import os, signal, sys\n'
        'from clusterplug.core.files import whole_file\n'
        'with whole_file(sys.argv[1]):\n'
        '    os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, '-c', code, str(path)], check=False)
    assert list(path.parent.glob('.*.part'))


@pytest.mark.parametrize('ending', ['error', 'closed', 'died'])
def test_nothing_of_a_killed_worker_stays(tmp_path, monkeypatch, ending):
    """A worker may be told to end while it removes its temporary file, and is killed if it does not end."""

    def killed(function, items, workers):
        for item in items:
            _killed_over(tmp_path / 'out' / item.with_suffix('.mp4'))
            if ending == 'error':
                raise OSError(errno.ENOSPC, 'No space left on device')
            yield item, WorkerDied('its process was ended by signal 9 (SIGKILL)')

    raw = tmp_path / 'raw'
    (raw / 'sub').mkdir(parents=True)
    for name in ('a.mp4', 'sub/b.mov', 'c.avi'):
        (raw / name).write_bytes(b'never read')
    monkeypatch.setattr(prepare, 'map_in_processes', killed)
    run = prepare_videos(raw, tmp_path / 'out', workers=1)
    if ending == 'error':
        with pytest.raises(OSError, match='No space left'):
            list(run)
    elif ending == 'closed':
        while next(run).kind != 'video':
            pass
        run.close()
    else:
        assert sum('SIGKILL' in done.problem for done in run) == 3
    assert not list((tmp_path / 'out').rglob('*.part'))
