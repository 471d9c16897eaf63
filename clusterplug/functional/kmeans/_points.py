# SPDX-License-Identifier: Apache-2.0
"""Points moved to the origin and, where their size calls for it, scaled: what k-means iterates on."""

from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_finite
from clusterplug.core.numerics import host_checks_allowed, working_dtype
from clusterplug.core.origin import power_of_two, typical_origin, typical_rows, typical_size

# Outside these bounds of the norm of all coordinates their squares come near the ends of the type.
BOUNDS = {torch.float32: (1e-12, 1e15), torch.float64: (1e-130, 1e130)}


class Centered(NamedTuple):
    """points = (x - offset) * scale, and 0 where masked."""

    points: Tensor  # (B, N, D), in the working type, or float64 on the CPU where fp32 is too narrow; contiguous there
    extended: Tensor | None  # (B, N, D + 1), the same memory with a last coordinate 1; None on the CPU
    offset: Tensor  # (B, 1, D) amid most valid points; 0 where that is near enough to the origin
    scale: Tensor  # (B, 1, 1) a power of two, mostly 1
    variance: Tensor  # (B,) mean variance of the coordinates of the valid points
    is_plain: bool = False  # offset 0 and scale 1 throughout


def centered(x: Tensor, valid: Tensor | None, centers: Tensor | None = None) -> Centered:
    """Return the points of x (B, N, D) about an origin amid most of them, and of ``centers`` (B, K, D) if given.

    On the CPU, NaN or inf in a valid point or a center raises.
    """
    dtype = working_dtype(x.dtype)
    kept = x.to(dtype) if valid is None else torch.where(valid.unsqueeze(-1), x, 0.0).to(dtype)
    if not host_checks_allowed(x):
        return _on_device(kept, valid, centers)
    kept = kept.contiguous()
    wide_centers = None if centers is None else centers.to(dtype)
    if is_extreme(kept) or (wide_centers is not None and is_extreme(wide_centers)):
        check_finite(x, 'x', valid)
        if centers is not None:
            check_finite(centers, 'centers')
        if dtype == torch.float32:  # every square of fp32 fits into float64
            return centered(kept.double(), valid, None if centers is None else centers.double())
        return _scaled(kept, valid, centers)
    rows = typical_rows(kept, wide_centers, valid)
    origin = typical_origin(rows)
    near = origin.abs().amax(-1, keepdim=True) <= typical_size(rows, origin)
    count = _count(kept, valid)
    # subtracting an origin no farther away than most points gains no digits, and costs a copy of all points
    if bool(near.all()):
        return Centered(kept, None, torch.zeros_like(origin), torch.ones_like(count), _variance(kept, count), True)
    shifted = _shifted(kept, origin, valid)
    return Centered(shifted, None, origin, torch.ones_like(count), _variance(shifted, count))


def _scaled(kept: Tensor, valid: Tensor | None, centers: Tensor | None) -> Centered:
    rows = typical_rows(kept, centers, valid)
    origin = typical_origin(rows)
    shifted = _shifted(kept, origin, valid)
    largest = shifted.abs().amax((1, 2), True)
    if centers is not None:
        largest = torch.maximum(largest, (centers - origin).abs().amax((1, 2), True))
    scale = 1 / power_of_two(torch.where(largest > 0, largest, 1.0))
    shifted = shifted * scale
    return Centered(shifted, None, origin, scale, _variance(shifted, _count(kept, valid)))


def _on_device(kept: Tensor, valid: Tensor | None, centers: Tensor | None) -> Centered:
    origin = typical_origin(typical_rows(kept, None if centers is None else centers.to(kept.dtype), valid))
    shifted = _shifted(kept, origin, valid)
    scale = _scale(shifted)
    shifted = shifted * scale
    variance = _variance(shifted, _count(kept, valid))
    shifted[..., -1] = 1.0
    return Centered(shifted[..., :-1], shifted, origin, scale, variance * (shifted.shape[-1] / (shifted.shape[-1] - 1)))


def _count(kept: Tensor, valid: Tensor | None) -> Tensor:
    """Return the number of valid points (B, 1, 1)."""
    if valid is None:
        return kept.new_full((kept.shape[0], 1, 1), float(kept.shape[1]))
    return valid.sum(-1).clamp(min=1).to(kept.dtype).view(-1, 1, 1)


def _variance(points: Tensor, count: Tensor) -> Tensor:
    """Return the mean variance (B,) of the coordinates of points (B, N, D) that are 0 where masked."""
    mean = points.sum(1, keepdim=True) / count
    of_mean = mean.square().sum((-2, -1)) * count.view(-1)
    return (_norm(points).square() - of_mean).clamp(min=0.0) / (count.view(-1) * points.shape[-1])


def _shifted(kept: Tensor, offset: Tensor, valid: Tensor | None) -> Tensor:
    """Return kept - offset (B, N, D), 0 where masked; on accelerators with a last coordinate 0."""
    if host_checks_allowed(kept):
        points = kept - offset
        return points if valid is None else points.masked_fill_(~valid.unsqueeze(-1), 0.0)
    if torch.compiler.is_compiling():
        points = kept - offset if valid is None else torch.where(valid.unsqueeze(-1), kept - offset, 0.0)
        return torch.nn.functional.pad(points, (0, 1))
    extended = kept.new_empty(*kept.shape[:-1], kept.shape[-1] + 1)
    points = extended[..., :-1]
    torch.sub(kept, offset, out=points)
    if valid is not None:
        points.masked_fill_(~valid.unsqueeze(-1), 0.0)
    extended[..., -1] = 0.0
    return extended


def _norm(extended: Tensor) -> Tensor:
    """Return the norm (B,) of all coordinates of a problem; over contiguous memory, which is four times faster."""
    return torch.linalg.vector_norm(extended.flatten(1), dim=1)


def is_extreme(points: Tensor) -> bool:
    """Return whether squares of the points may leave their type, or are NaN."""
    smallest, largest = BOUNDS[points.dtype]
    norms = _norm(points).tolist()
    if all(smallest < value < largest for value in norms):
        return False
    # a norm of 0 is one of zeros, or of numbers whose squares vanished
    return not all(smallest < value < largest or value == 0 for value in norms) or bool(
        ((points != 0).flatten(1).any(-1) & (torch.tensor(norms, device='cpu') == 0)).any()
    )


def to_centered(centers: Tensor, frame: Centered) -> Tensor:
    """Return centers (B, K, D) as the points see them."""
    if frame.is_plain:
        return centers.to(frame.points.dtype)
    return (centers.to(frame.points.dtype) - frame.offset) * frame.scale


def from_centered(centers: Tensor, frame: Centered) -> Tensor:
    """Return centers (B, K, D) as the caller sees them."""
    return centers if frame.is_plain else centers / frame.scale + frame.offset


def _scale(points: Tensor) -> Tensor:
    """Return a power of two (B, 1, 1) that brings the largest coordinate near 1, and 1 where it is not extreme."""
    smallest, largest = BOUNDS[points.dtype]
    size = torch.maximum(points.amax((1, 2), True), -points.amin((1, 2), True))
    extreme = (size > largest) | ((size < smallest) & (size > 0))
    return 1 / power_of_two(torch.where(extreme, size, 1.0))
