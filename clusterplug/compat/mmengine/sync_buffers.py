# SPDX-License-Identifier: Apache-2.0
"""Memory banks stay bit-exact: mmengine averages every buffer of the model over the ranks at the end of an epoch.

A bank that each rank computes from gathered data is the same on all ranks already. The mean of three equal floats
is not that float, and integer buffers (pointers, counters) take the detour through floats.
"""

from torch import nn

from clusterplug.compat.workaround import Workaround


def averaged_buffers(model: nn.Module) -> list:
    """The buffers of ``model`` that are averaged over the ranks.

    Left out are the buffers that belong directly to a module with ``sync_buffers_exempt = True``; the modules inside
    it decide for themselves.

    Example:
        >>> from torch import nn
        >>> bank = nn.BatchNorm1d(2)
        >>> bank.sync_buffers_exempt = True
        >>> len(averaged_buffers(nn.Sequential(nn.BatchNorm1d(2), bank)))
        3
    """
    owners = [module for module in model.modules() if not getattr(module, 'sync_buffers_exempt', False)]
    buffers = [buffer for module in owners for buffer in module.buffers(recurse=False)]
    return list({id(buffer): buffer for buffer in buffers}.values())


def patch(module):
    """Let ``SyncBuffersHook`` pass over the exempt buffers."""

    def average(runner) -> None:
        module.all_reduce_params(averaged_buffers(runner.model), op='mean')

    def before_val_epoch(self, runner) -> None:
        if self.distributed:
            if not self.called_in_train:
                average(runner)
            self.called_in_train = False

    def after_train_epoch(self, runner) -> None:
        if self.distributed:
            average(runner)
            self.called_in_train = True

    hook = module.SyncBuffersHook
    return [(hook, 'before_val_epoch', before_val_epoch), (hook, 'after_train_epoch', after_train_epoch)]


WORKAROUND = Workaround(
    name='sync_buffers',
    host='mmengine.hooks.sync_buffer_hook',
    patch=patch,
    thread='',
    noted='2026-11, mmengine 0.10.7',
    until='SyncBuffersHook lets a module keep its buffers',
)
