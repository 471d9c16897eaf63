# SPDX-License-Identifier: Apache-2.0
"""What the CPU kernels of mmcv's operations share: the way in, neighbors, and a check of indices."""

from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import Tensor

_ENTRIES = 1 << 20  # of a block of distances: 4 MiB, which stays in the cache


def for_cpu(module: ModuleType, name: str, kernel: Callable) -> tuple[ModuleType, str, Callable]:
    """A replacement of ``module.name`` that takes CPU tensors to ``kernel`` and all others to the host.

    Args:
        module: ``mmcv._ext``, from which every wrapper of mmcv and mmdet3d calls its kernels.
        name: Name of a kernel; its first argument is a tensor.
        kernel: Takes the same arguments and fills in the same outputs.

    Returns:
        tuple: (owner, attribute, new value), as ``Workaround`` takes it.
    """
    host = getattr(module, name)

    def call(first: Tensor, *args, **kwargs):
        return (kernel if first.device.type == 'cpu' else host)(first, *args, **kwargs)

    return module, name, call


def check_indices(name: str, indices: Tensor, size: int, low: int = 0) -> None:
    """Refuse indices outside ``low`` .. ``size - 1``; on CUDA such an index reads foreign memory.

    Raises:
        ValueError: With the name of the operation, the allowed range and what came.
    """
    if indices.numel() == 0:
        return
    found = [int(end) for end in indices.aminmax()]
    if found[0] < low or found[1] >= size:
        raise ValueError(f'the indices of {name} must be from {low} to {size - 1}, got {found[0]} to {found[1]}')


def blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Slices of the rows of a (num_rows, num_columns) matrix that fit into the cache one at a time.

    Example:
        >>> list(blocks(3, 1 << 19))
        [slice(0, 2, None), slice(2, 4, None)]
    """
    step = max(1, _ENTRIES // max(1, num_columns))
    return (slice(start, start + step) for start in range(0, num_rows, step))


def square_distances(queries: Tensor, points: Tensor) -> Tensor:
    """Squared Euclidean distances (M, N) between ``queries`` (M, 3) and ``points`` (N, 3), in fp32 or wider.

    By differences, as the CUDA kernels do it: the form with inner products would move ties.
    """
    queries, points = (x if x.dtype == torch.float64 else x.float() for x in (queries, points))
    result = (queries[:, :1] - points[:, 0]).square_()
    for axis in (1, 2):
        result += (queries[:, axis, None] - points[:, axis]).square_()
    return result


def nearest(queries: Tensor, points: Tensor, k: int, limit: float) -> tuple[Tensor, Tensor]:
    """The k nearest of ``points`` (N, 3) to each of ``queries`` (M, 3), nearest first.

    Among points at the same distance the one with the smaller index comes first. Distances that are not below
    ``limit`` (NaN is not) do not count; where too few are left, the rest is filled up with index 0 at ``limit``.

    Returns:
        tuple[Tensor, Tensor]: Squared distances (M, k) float32, indices (M, k) int32.

    Example:
        >>> points = torch.tensor([[2.0, 0, 0], [0, 0, 0], [1, 0, 0], [-1, 0, 0]])
        >>> nearest(points[1:2], points, 3, float('inf'))
        (tensor([[0., 1., 1.]]), tensor([[1, 2, 3]], dtype=torch.int32))
    """
    distances = queries.new_full((len(queries), k), limit, dtype=torch.float32)
    indices = torch.zeros(len(queries), k, dtype=torch.int32)
    found = min(k, len(points))
    if found == 0:
        return distances, indices
    columns = torch.arange(len(points))
    for rows in blocks(len(queries), len(points)):
        # the bits of floats from 0 on are in the order of the floats; below them, the index decides ties
        keys = square_distances(queries[rows], points).float().view(torch.int32).to(torch.int64)
        keys <<= 32
        keys += columns
        keys = keys.topk(found, dim=1, largest=False, sorted=True).values
        distance = (keys >> 32).int().view(torch.float32)
        counts = distance < limit
        distances[rows, :found] = torch.where(counts, distance, limit)
        indices[rows, :found] = torch.where(counts, keys & 0xFFFFFFFF, 0).int()
    return distances, indices
