# SPDX-License-Identifier: Apache-2.0
"""Furthest point sampling on the CPU, which mmcv has for CUDA only; same points, also among equally distant ones."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from clusterplug.compat.workaround import Workaround

_FAR = 1e10  # distance of a point before anything was sampled, as in mmcv


@lru_cache(maxsize=16)
def _cuda_order(num_points: int) -> Tensor:
    """(N,) indices in the order in which the CUDA kernel prefers points at the same distance.

    Thread t of T, a power of 2, takes points t, t + T, t + 2 T ... and keeps the first of its best; then threads are
    compared in pairs t and t + T / 2, t and t + T / 4 ..., and the lower one stays. So the lowest bit of t decides
    before the next one does: threads rank by their number read backwards.
    """
    bits = min(10, int(math.log(num_points) / math.log(2.0)))
    reversed_thread = [int(f'{thread:0{bits}b}'[::-1], 2) if bits else 0 for thread in range(1 << bits)]
    return torch.tensor(sorted(range(num_points), key=lambda i: (reversed_thread[i % (1 << bits)], i)), device='cpu')


def _check(num_points: int, num_samples: int) -> None:
    if num_points < 1:
        raise ValueError(f'furthest point sampling needs at least one point, got {num_points}')
    if num_samples < 0:
        raise ValueError(f'the number of sampled points must be at least 0, got {num_samples}')


def _sample(distances_to, order: Tensor, batch_size: int, num_samples: int) -> Tensor:
    """(B, M) int32: first point 0, then always the point that is furthest from all sampled ones.

    ``distances_to`` takes positions (B, 1) in ``order`` and gives squared distances (B, N) to them.
    """
    closest = torch.full((batch_size, len(order)), _FAR)
    latest = torch.zeros(batch_size, 1, dtype=torch.int64)  # point 0 comes first in every order
    sampled = torch.zeros(batch_size, num_samples, dtype=torch.int64)
    for number in range(1, num_samples):
        # fmin, as on CUDA: a point with NaN stays as far as it was
        torch.fmin(closest, distances_to(latest), out=closest)
        latest = closest.argmax(1, keepdim=True)  # the first among equals
        sampled[:, number] = latest[:, 0]
    return order[sampled].int()


def furthest_points(points: Tensor, num_samples: int) -> Tensor:
    """Indices (B, M) int32 of ``num_samples`` points, each the furthest from those before it; the first is point 0.

    Args:
        points: (B, N, 3).
        num_samples: M; more than N repeats points.

    Returns:
        Tensor: (B, M) int32.

    Raises:
        ValueError: No points, or not three coordinates.

    Example:
        >>> furthest_points(torch.tensor([[[0.0, 0, 0], [1, 0, 0], [5, 0, 0], [9, 0, 0]]]), 3)
        tensor([[0, 3, 2]], dtype=torch.int32)
    """
    if points.dim() != 3 or points.shape[2] != 3:
        raise ValueError(f'points must be (B, N, 3), got {tuple(points.shape)}')
    _check(points.shape[1], num_samples)
    order = _cuda_order(points.shape[1])
    axes = points.detach().float()[:, order].permute(2, 0, 1).contiguous()

    def distances_to(position):
        result = (axes[0] - axes[0].gather(1, position)).square_()
        for axis in axes[1:]:
            result += (axis - axis.gather(1, position)).square_()
        return result

    return _sample(distances_to, order, len(points), num_samples)


def furthest_points_with_distances(distances: Tensor, num_samples: int) -> Tensor:
    """The same for given distances (B, N, N), row i those to point i; (B, M) int32.

    Example:
        >>> furthest_points_with_distances(torch.tensor([[[0.0, 1, 4], [1, 0, 9], [4, 9, 0]]]), 2)
        tensor([[0, 2]], dtype=torch.int32)
    """
    if distances.dim() != 3 or distances.shape[1] != distances.shape[2]:
        raise ValueError(f'distances must be (B, N, N), got {tuple(distances.shape)}')
    _check(distances.shape[1], num_samples)
    order = _cuda_order(distances.shape[1])
    distances = distances.detach().float()
    scenes = torch.arange(len(distances))

    def distances_to(position):
        return distances[scenes, order[position[:, 0]]][:, order]

    return _sample(distances_to, order, len(distances), num_samples)


def patch(module):
    """Replace both functions for tensors on the CPU: mmcv's allocate on CUDA before they call a kernel."""

    def replace(function, sample):
        host = function.forward

        def forward(ctx, points, num_points):
            if points.device.type != 'cpu':
                return host(ctx, points, num_points)
            result = sample(points, num_points)
            ctx.mark_non_differentiable(result)
            return result

        return function, 'forward', staticmethod(forward)

    return [
        replace(module.FurthestPointSampling, furthest_points),
        replace(module.FurthestPointSamplingWithDist, furthest_points_with_distances),
    ]


WORKAROUND = Workaround(
    name='furthest_points',
    host='mmcv.ops.furthest_point_sample',
    patch=patch,
    thread='',
    noted='2026-11, mmcv 2.1.0',
    until='mmcv samples furthest points on the CPU',
)
