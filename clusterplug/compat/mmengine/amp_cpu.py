# SPDX-License-Identifier: Apache-2.0
"""``--amp`` without a GPU: mmengine's AmpOptimWrapper refuses to be built, so AMP configs cannot even be tried.

On the CPU it now runs with bfloat16 autocast (the only type that mmengine allows there) and torch's CPU gradient
scaler, whose state is the same as on CUDA: a checkpoint can go from one to the other.
"""

import logging
from functools import partial

import torch

from clusterplug.compat.accelerator import has_accelerator
from clusterplug.compat.workaround import Workaround


def patch(module):
    """Wrap ``AmpOptimWrapper.__init__``; with an accelerator it is called as it is."""
    from mmengine.logging import print_log

    host_init = module.AmpOptimWrapper.__init__

    def __init__(self, loss_scale='dynamic', dtype=None, **kwargs):
        if has_accelerator():
            return host_init(self, loss_scale=loss_scale, dtype=dtype, **kwargs)
        if dtype in ('float16', torch.float16):
            print_log('CPU autocast has no float16: bfloat16 is used', 'current', logging.WARNING)
            dtype = 'bfloat16'
        available, scaler = module.is_cuda_available, module.GradScaler
        if hasattr(torch.amp, 'GradScaler'):  # before torch 2.3 the CUDA scaler switches itself off here
            module.GradScaler = partial(torch.amp.GradScaler, 'cpu')
        module.is_cuda_available = lambda: True
        try:
            host_init(self, loss_scale=loss_scale, dtype=dtype, **kwargs)
        finally:
            module.is_cuda_available, module.GradScaler = available, scaler

    return [(module.AmpOptimWrapper, '__init__', __init__)]


WORKAROUND = Workaround(
    name='amp_cpu',
    host='mmengine.optim.optimizer.amp_optimizer_wrapper',
    patch=patch,
    thread='',
    noted='2026-11, mmengine 0.10.7',
    until='AmpOptimWrapper can be built on the CPU',
)
