# SPDX-License-Identifier: Apache-2.0
"""Small tensors that every step needs again, made once a device.

Never in inference mode: what is kept from there could not be saved for the backward pass of a later training step.
"""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def arange(length: int, device: torch.device) -> Tensor:
    """``torch.arange(length)`` that must not be written to: one launch less wherever it is used."""
    with torch.inference_mode(False):
        return torch.arange(length, device=device)


@lru_cache(maxsize=256)
def constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0-dim tensor that must not be written to. A Python number where a tensor is due may cost a launch."""
    with torch.inference_mode(False):
        return torch.full((), value, dtype=dtype, device=device)


@lru_cache(maxsize=64)
def scaled_eye(size: int, scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``scale * torch.eye(size)`` that must not be written to."""
    with torch.inference_mode(False):
        return scale * torch.eye(size, dtype=dtype, device=device)
