# SPDX-License-Identifier: Apache-2.0
"""The old checkpoint goes after the new one is there: mmengine deletes first and writes then.

With ``max_keep_ckpts=1`` or ``save_best`` a full disk leaves no checkpoint at all. The file ``last_checkpoint``,
which ``--resume`` reads, is emptied before it is written.
"""

from clusterplug.compat.workaround import Workaround
from clusterplug.core.files import whole_file


class _RemoveLater:
    """A file backend that keeps its removals for later."""

    def __init__(self, backend):
        self.backend, self.removals = backend, []

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def remove(self, path) -> None:
        self.removals.append((self.backend.remove, path))

    def rmtree(self, path) -> None:
        self.removals.append((self.backend.rmtree, path))


def patch(module):
    """Wrap the two methods of ``CheckpointHook`` that save, and the module's ``open``."""
    hook = module.CheckpointHook

    def saves_before_it_removes(host):
        def save(self, *args, **kwargs) -> None:
            if not hasattr(self, 'file_backend'):  # runner.val() without a training: there is nothing to save
                return host(self, *args, **kwargs)
            backend = self.file_backend
            self.file_backend = later = _RemoveLater(backend)
            try:
                host(self, *args, **kwargs)
            finally:
                self.file_backend = backend
            best = getattr(self, 'best_ckpt_path_dict', {}).values()
            current = {self.last_ckpt, getattr(self, 'best_ckpt_path', None), *best}
            for remove, path in later.removals:
                if path not in current:  # the same name was written again
                    remove(path)

        return save

    methods = ('_save_checkpoint_with_step', '_save_best_checkpoint')
    wrapped = [(hook, name, saves_before_it_removes(getattr(hook, name))) for name in methods]
    return [*wrapped, (module, 'open', _open)]


def _open(path, mode='r', **options):
    return whole_file(path, mode, **options) if 'w' in mode else open(path, mode, **options)


WORKAROUND = Workaround(
    name='checkpoint_order',
    host='mmengine.hooks.checkpoint_hook',
    patch=patch,
    thread='',
    noted='2026-11, mmengine 0.10.7',
    until='CheckpointHook saves before it removes',
)
