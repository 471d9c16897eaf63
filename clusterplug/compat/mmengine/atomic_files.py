# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are written next to their place and moved there: mmengine opens the old file for writing at once.

When the disk is full, or the run is stopped while a checkpoint is written under a name that exists (a best
checkpoint, a resumed run), mmengine leaves a torn file where a good one was.
"""

import os.path

from clusterplug.compat.workaround import Workaround
from clusterplug.core.files import whole_file


def patch(module):
    """Replace ``LocalBackend.put`` and ``put_text``, through which mmengine writes every local file."""
    host = module.LocalBackend
    host_put, host_put_text = host.put, host.put_text

    def replaces_a_file(path) -> bool:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        return not os.path.exists(path) or os.path.isfile(path)  # a device or a pipe has no place to move to

    def put(self, obj, filepath) -> None:
        if not replaces_a_file(filepath):
            return host_put(self, obj, filepath)
        with whole_file(filepath, 'wb') as file:
            file.write(obj)

    def put_text(self, obj, filepath, encoding='utf-8') -> None:
        if not replaces_a_file(filepath):
            return host_put_text(self, obj, filepath, encoding)
        with whole_file(filepath, 'w', encoding=encoding) as file:
            file.write(obj)

    return [(host, 'put', put), (host, 'put_text', put_text)]


WORKAROUND = Workaround(
    name='atomic_files',
    host='mmengine.fileio.backends.local_backend',
    patch=patch,
    thread='',
    noted='2026-11, mmengine 0.10.7',
    until='mmengine writes checkpoints to a temporary file first',
)
