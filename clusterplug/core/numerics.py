# SPDX-License-Identifier: Apache-2.0
"""Types of numbers that a module keeps whatever its model is cast to."""

from collections.abc import Callable

import torch
from torch import Tensor


def keep_fp32(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap the function that ``nn.Module._apply`` maps over tensors, so that it moves but does not cast fp32 tensors.

    For state that a narrower type would spoil (``model.half()``, ``model.bfloat16()``) and for modules that compute in
    fp32 whatever comes in.

    Example:
        >>> keep_fp32(lambda tensor: tensor.half())(torch.zeros(2)).dtype
        torch.float32
    """

    def moved(tensor: Tensor) -> Tensor:
        result = fn(tensor)
        if tensor.dtype == torch.float32 and result.is_floating_point() and result.dtype != torch.float32:
            return tensor.to(result.device)
        return result

    return moved
