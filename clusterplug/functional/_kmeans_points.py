"""Points moved to the origin and, where their size calls for it, scaled: what k-means iterates on."""

from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_finite
from clusterplug.functional._numerics import host_checks_allowed, working_dtype

# Outside these bounds squares of coordinates come near the ends of fp32.
LARGEST, SMALLEST = 1e15, 1e-12


class Centred(NamedTuple):
    """points = (x - offset) * scale, and 0 where masked."""

    points: Tensor  # (B, N, D), in the working type
    extended: Tensor | None  # (B, N, D + 1), the same memory with a last coordinate 1; None on the CPU
    offset: Tensor  # (B, 1, D) mean of the valid points; 0 where that is near enough to the origin
    scale: Tensor  # (B, 1, 1) a power of two, mostly 1
    variance: Tensor  # (B,) mean variance of the coordinates of the valid points
    is_plain: bool = False  # offset 0 and scale 1 throughout


def centred(x: Tensor, valid: Tensor | None) -> Centred:
    """Return the points of x (B, N, D) about their mean. On the CPU, NaN or inf in a valid point raises."""
    dtype = working_dtype(x.dtype)
    if valid is None:
        kept, count = x.to(dtype), torch.full((x.shape[0], 1, 1), float(x.shape[1]), dtype=dtype, device=x.device)
    else:
        kept = torch.where(valid.unsqueeze(-1), x, 0.0).to(dtype)
        count = valid.sum(-1).clamp(min=1).to(dtype).view(-1, 1, 1)
    offset = kept.sum(1, keepdim=True) / count
    on_host = host_checks_allowed(x)
    if on_host:
        as_they_are = _near_origin(kept.contiguous(), offset, count)
        if as_they_are is not None:
            return as_they_are
    shifted = _shifted(kept, offset, valid)
    norm = _norm(shifted)
    scale = torch.ones_like(count)
    if _may_be_extreme(norm):
        if on_host:
            check_finite(x, 'x', valid)
            offset = (kept.double().sum(1, keepdim=True) / count).to(dtype)  # the sum may have left fp32
            shifted = _shifted(kept, offset, valid)
        scale = _scale(shifted)
        shifted = shifted * scale
        norm = _norm(shifted)
    variance = norm.square() / (count.view(-1) * x.shape[-1])
    if on_host:
        return Centred(shifted, None, offset, scale, variance)
    shifted[..., -1] = 1.0
    return Centred(shifted[..., :-1], shifted, offset, scale, variance)


def _near_origin(kept: Tensor, offset: Tensor, count: Tensor) -> Centred | None:
    """Return the points as they are if their means are no farther from the origin than they from their means.

    Subtracting such a mean gains no digits, and costs a copy of all points.
    """
    norm = _norm(kept)
    if _may_be_extreme(norm):
        return None
    total, of_mean = norm.square(), offset.square().sum((-2, -1)) * count.view(-1)
    if not bool((of_mean <= 0.5 * total).all()):
        return None
    variance = (total - of_mean) / (count.view(-1) * kept.shape[-1])
    return Centred(kept, None, torch.zeros_like(offset), torch.ones_like(count), variance, True)


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
    return torch.linalg.vector_norm(extended.reshape(extended.shape[0], -1), dim=1)


def _may_be_extreme(norm: Tensor) -> bool:
    """Tell whether a problem needs another scale; always True where the host may not look."""
    if not host_checks_allowed(norm):
        return True
    # NaN counts as extreme, and so does 0: squares may have underflowed
    return not all(SMALLEST < value < LARGEST for value in norm.tolist())


def to_centred(centers: Tensor, frame: Centred) -> Tensor:
    """Return centers (B, K, D) as the points see them."""
    if frame.is_plain:
        return centers.to(frame.points.dtype)
    return (centers.to(frame.points.dtype) - frame.offset) * frame.scale


def from_centred(centers: Tensor, frame: Centred) -> Tensor:
    """Return centers (B, K, D) as the caller sees them."""
    return centers if frame.is_plain else centers / frame.scale + frame.offset


def _scale(points: Tensor) -> Tensor:
    """Return a power of two (B, 1, 1) that brings the largest coordinate near 1, and 1 where it is not extreme."""
    largest = torch.maximum(points.amax((1, 2), True), -points.amin((1, 2), True))
    extreme = (largest > LARGEST) | ((largest < SMALLEST) & (largest > 0))
    # an exponent of 126 at most keeps the power and its inverse normal numbers
    exponent = torch.log2(torch.where(extreme, largest, 1.0)).floor().clamp(-120.0, 126.0)
    return torch.exp2(-exponent)
