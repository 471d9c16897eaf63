# SPDX-License-Identifier: Apache-2.0
"""Neighbors of voxels on the CPU by sorting: spconv's hash table uses one thread and takes a tenth of a step.

Each voxel gets one number, its place in a grid with a margin, so that neighbors differ by a constant. The voxels of
a column (same batch, x and y) follow one another in the sorted numbers: one binary search finds the first of the
neighbors in a column, and the others are next to it.
"""

import itertools
import math

import torch
from torch import Tensor

from clusterplug.compat.workaround import Workaround


def submanifold_pairs(
    indices: Tensor, spatial_shape: list[int], kernel_size: list[int]
) -> tuple[Tensor, Tensor] | None:
    """Pairs of voxels that the offsets of an odd kernel connect, in spconv's layout.

    Args:
        indices: (N, 1 + D) int32, batch and coordinates of N different voxels.
        spatial_shape: D sizes of the grid in voxels.
        kernel_size: D odd sizes of the kernel, K offsets in all.

    Returns:
        tuple[Tensor, Tensor] | None: Rows of input and output voxels (2, K, N) int32, -1 behind the last pair of an
        offset; number of pairs (K,) int32 of the offsets before the center, zero for the others, which mirror them.
        None when a voxel occurs twice.

    Example:
        >>> import torch
        >>> voxels = torch.tensor([[0, 0, 0], [0, 0, 1]], dtype=torch.int32)
        >>> pairs, counts = submanifold_pairs(voxels, [2, 2], [3, 3])
        >>> counts.tolist(), pairs[:, 3, 0].tolist(), pairs[:, 5, 0].tolist()
        ([0, 0, 0, 1, 0, 0, 0, 0, 0], [0, 1], [1, 0])
    """
    halves = [size // 2 for size in kernel_size]
    padded = [size + 2 * half for size, half in zip(spatial_shape, halves)]
    strides = [math.prod(padded[axis + 1 :]) for axis in range(len(padded))]
    places = indices[:, 0].long() * math.prod(padded)
    for axis, (half, stride) in enumerate(zip(halves, strides), start=1):
        places += (indices[:, axis].long() + half) * stride
    places, rows = places.sort()
    rows = rows.int()
    if (places[1:] == places[:-1]).any():
        return None
    num_offsets = math.prod(kernel_size)
    pairs = indices.new_full((2, num_offsets, len(indices)), -1)
    counts = indices.new_zeros(num_offsets)
    ends = torch.cat([places, places.new_tensor([torch.iinfo(torch.int64).max])])
    for column, steps in enumerate(itertools.product(*map(range, kernel_size[:-1]))):
        first = sum((step - half) * stride for step, half, stride in zip(steps, halves, strides)) - halves[-1]
        offsets = range(column * kernel_size[-1], min((column + 1) * kernel_size[-1], num_offsets // 2))
        if not offsets:
            break
        found = torch.searchsorted(places, places + first)
        for k in offsets:
            wanted = places + (first + k - offsets[0])
            is_there = ends[found] == wanted
            targets = is_there.nonzero().squeeze(1)
            sources = found[targets]
            size = len(targets)
            counts[k] = size
            pairs[0, k, :size] = pairs[1, -1 - k, :size] = rows[sources]
            pairs[1, k, :size] = pairs[0, -1 - k, :size] = rows[targets]
            found += is_there  # the next voxel of the column, if it is there, is the next number
    return pairs, counts


def patch(module):
    """Replace ``get_indice_pairs`` for submanifold convolutions on the CPU with odd kernels without dilation."""
    host_pairs = module.get_indice_pairs

    def get_indice_pairs(
        indices, batch_size, spatial_shape, algo, ksize, stride, padding, dilation, out_padding, subm=False,
        *args, **kwargs,
    ):  # fmt: skip
        if indices.device.type == 'cpu' and subm and all(k % 2 for k in ksize) and all(d == 1 for d in dilation):
            found = submanifold_pairs(indices, [int(size) for size in spatial_shape], list(ksize))
            if found is not None:
                return indices, *found
        return host_pairs(
            indices, batch_size, spatial_shape, algo, ksize, stride, padding, dilation, out_padding, subm,
            *args, **kwargs,
        )  # fmt: skip

    return [(module, 'get_indice_pairs', get_indice_pairs)]


WORKAROUND = Workaround(
    name='spconv_kernel_map',
    host='spconv.pytorch.ops',
    patch=patch,
    thread='',
    noted='2026-11, spconv 2.3.8',
    until='spconv finds neighbours on the CPU with all threads',
)
