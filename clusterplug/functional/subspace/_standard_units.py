# SPDX-License-Identifier: Apache-2.0
"""Units of a layer on a common scale: mean 0, mean square 1, and which of them never change."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_device, check_finite, check_points
from clusterplug.core.numerics import host_checks_allowed


def check_unit_pair(x: Tensor, y: Tensor, least: int = 2) -> torch.dtype:
    """Check two sets of units over the same samples; return the type of results."""
    check_points(x)
    check_points(y, 'y')
    check_device(y, x.device, 'y')
    if x.shape[:-1] != y.shape[:-1]:
        raise ValueError(
            f'y must hold the samples of x, shape {(*x.shape[:-1], "units")}, got {tuple(y.shape)}; row i of both is '
            f'one sample or position. Pool layers of different spatial size over their positions first'
        )
    if x.shape[-2] < least:
        raise ValueError(f'x must hold at least {least} samples, got {x.shape[-2]}')
    for values, name in ((x, 'x'), (y, 'y')):
        if host_checks_allowed(values):
            check_finite(values.detach(), name)
    return torch.promote_types(x.dtype, y.dtype)


def standard_units(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return units (..., N, C) of mean 0 and mean square 1, their standard deviations (..., 1, C), and who is alive.

    A unit whose values differ by no more than rounding is dead: all zeros. ``x`` is of the working type.
    """
    largest = x.abs().amax(-2, keepdim=True)
    unit = torch.where(largest > 0, largest, 1.0)
    scaled = x / unit  # squares neither over- nor underflow
    scaled = scaled - scaled.mean(-2, keepdim=True)
    scaled = scaled - scaled.mean(-2, keepdim=True)  # the rest that rounding of a far mean left
    spread = scaled.square().mean(-2, keepdim=True).sqrt()
    alive = spread > 4 * torch.finfo(x.dtype).eps
    standard = torch.where(alive, scaled / torch.where(alive, spread, 1.0), 0.0)
    deviation = torch.where(alive, spread * unit, 0.0)
    return standard, deviation, alive
