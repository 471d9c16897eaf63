# SPDX-License-Identifier: Apache-2.0
"""``--launcher`` without a GPU: mmengine's launchers select a CUDA device and the configs ask for NCCL."""

import torch

from clusterplug.compat.accelerator import has_accelerator
from clusterplug.compat.workaround import Workaround


def patch(module):
    """Wrap the three launchers: without an accelerator the backend is gloo and no device is selected."""

    def on_cpu_as_well(host):
        def init(backend, *args, **kwargs) -> None:
            if has_accelerator():
                return host(backend, *args, **kwargs)
            set_device = torch.cuda.set_device
            torch.cuda.set_device = lambda device: None
            try:
                host('gloo' if backend == 'nccl' else backend, *args, **kwargs)
            finally:
                torch.cuda.set_device = set_device

        return init

    launchers = ('_init_dist_pytorch', '_init_dist_mpi', '_init_dist_slurm')
    return [(module, name, on_cpu_as_well(getattr(module, name))) for name in launchers]


WORKAROUND = Workaround(
    name='gloo_without_cuda',
    host='mmengine.dist.utils',
    patch=patch,
    thread='',
    noted='2026-11, mmengine 0.10.7',
    until='init_dist works without an accelerator',
)
