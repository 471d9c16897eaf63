"""Points moved to the origin and, where their size calls for it, scaled: what k-means iterates on."""

from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.functional._checks import check_finite
from clusterplug.functional._numerics import host_checks_allowed, working_dtype

# Outside these bounds squares of coordinates come near the ends of fp32.
LARGEST, SMALLEST = 1e15, 1e-12


class Centred(NamedTuple):
    """points = (x - offset) * scale, 0 where masked."""

    points: Tensor  # (B, N, D) contiguous, in the working type
    offset: Tensor  # (B, 1, D) mean of the valid points
    scale: Tensor  # (B, 1, 1) a power of two, mostly 1
    variance: Tensor  # (B,) mean variance of the coordinates of the valid points


def centred(x: Tensor, valid: Tensor | None) -> Centred:
    """Return the points of x (B, N, D) about their mean. On the CPU, NaN or inf in a valid point raises."""
    dtype = working_dtype(x.dtype)
    if valid is None:
        kept, count = x.to(dtype), torch.full((x.shape[0], 1, 1), float(x.shape[1]), dtype=dtype, device=x.device)
    else:
        kept = torch.where(valid.unsqueeze(-1), x, 0.0).to(dtype)
        count = valid.sum(-1).clamp(min=1).to(dtype).view(-1, 1, 1)
    offset = kept.sum(1, keepdim=True) / count
    points = kept - offset
    if host_checks_allowed(x):
        low, high = (float(bound) for bound in torch.aminmax(points))
        largest = max(-low, high)
        if not largest < torch.inf:  # NaN too
            check_finite(x, 'x', valid)
            offset = (kept.double().sum(1, keepdim=True) / count).to(dtype)  # the sum alone left fp32
            points = kept - offset
            largest = torch.inf
        extreme = largest > LARGEST or 0 < largest < SMALLEST
    else:
        extreme = True
    if valid is not None:
        points = points * valid.unsqueeze(-1)
    scale = _scale(points) if extreme else torch.ones_like(count)
    points = (points * scale if extreme else points).contiguous()
    variance = torch.linalg.vector_norm(points, dim=(1, 2)).square() / (count.view(-1) * x.shape[-1])
    return Centred(points, offset, scale, variance)


def to_centred(centers: Tensor, frame: Centred) -> Tensor:
    """Return centers (B, K, D) as the points see them."""
    return (centers.to(frame.points.dtype) - frame.offset) * frame.scale


def from_centred(centers: Tensor, frame: Centred) -> Tensor:
    """Return centers (B, K, D) as the caller sees them."""
    return centers / frame.scale + frame.offset


def _scale(points: Tensor) -> Tensor:
    """Return a power of two (B, 1, 1) that brings the largest coordinate near 1, and 1 where it is not extreme."""
    largest = torch.maximum(points.amax((1, 2), True), -points.amin((1, 2), True))
    extreme = (largest > LARGEST) | ((largest < SMALLEST) & (largest > 0))
    # an exponent of 126 at most keeps the power and its inverse normal numbers
    exponent = torch.log2(torch.where(extreme, largest, 1.0)).floor().clamp(-120.0, 126.0)
    return torch.exp2(-exponent)
