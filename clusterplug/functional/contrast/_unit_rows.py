# SPDX-License-Identifier: Apache-2.0
"""Rows of unit length, whatever their length was."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.numerics import working_dtype


def unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of unit length in fp32 at least, and which of them are finite.

    Rows with NaN or infinity become 0, and rows of zeros stay 0; no gradient reaches either. Rows of any length that
    the type can hold: they are divided by their largest entry before squares are taken.
    """
    x = x.to(working_dtype(x.dtype))
    largest = x.detach().abs().amax(-1, keepdim=True)
    finite = largest < torch.inf  # False for NaN too
    usable = finite & (largest > 0)
    scale = largest.masked_fill(~usable, 1.0).clamp(min=torch.finfo(x.dtype).tiny)
    return F.normalize(x.masked_fill(~usable, 0.0) / scale, dim=-1), finite.squeeze(-1)
