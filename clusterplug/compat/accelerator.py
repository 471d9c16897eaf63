# SPDX-License-Identifier: Apache-2.0
"""Whether mmengine would compute on something else than the CPU."""


def has_accelerator() -> bool:
    """True when mmengine's default device is not the CPU (CUDA, NPU, MLU, MUSA, MPS ...)."""
    from mmengine.device import get_device

    return get_device() != 'cpu'
