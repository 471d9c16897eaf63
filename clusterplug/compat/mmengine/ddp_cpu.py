# SPDX-License-Identifier: Apache-2.0
"""DistributedDataParallel for a model on the CPU: mmengine always names a device, which torch refuses there."""

from clusterplug.compat.workaround import Workaround


def patch(module):
    """Drop ``device_ids`` when no parameter of the model is on a device."""
    host_init = module.MMDistributedDataParallel.__init__

    def __init__(self, module, *args, **kwargs):
        if all(parameter.device.type == 'cpu' for parameter in module.parameters()):
            kwargs['device_ids'] = None
        host_init(self, module, *args, **kwargs)

    return [(module.MMDistributedDataParallel, '__init__', __init__)]


WORKAROUND = Workaround(
    name='ddp_cpu',
    host='mmengine.model.wrappers.distributed',
    patch=patch,
    thread='',
    noted='2026-11, mmengine 0.10.7',
    until='the Runner passes device_ids for CUDA models only',
)
