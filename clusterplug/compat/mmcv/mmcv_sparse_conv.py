# SPDX-License-Identifier: Apache-2.0
"""mmcv's own sparse convolution on the CPU, which Cylinder3D is made of; mmcv has CUDA kernels only.

Pairs of voxels (i, o) belong to offset ``k = i - stride * o + padding`` of the kernel, ``y[o] = sum_k W_k x[i]``.

As in mmcv, layers with the same ``indice_key`` share the pairs of the first of them, whatever their kernels are: the
asymmetric layers of Cylinder3D convolve along the axes of the first one, and of a larger kernel only the first weights
are used. Published weights were trained like this.
"""

import itertools
import math

import torch
from torch import Tensor

from clusterplug.compat.mmcv._cpu_kernel import for_cpu
from clusterplug.compat.spconv.spconv_cpu import NeighbourPlan, _group, convolve, convolve_backward
from clusterplug.compat.spconv.spconv_kernel_map import submanifold_pairs
from clusterplug.compat.workaround import Workaround


def _numbers(cells: Tensor, batch: Tensor, shape: list[int]) -> Tensor:
    """One number for each cell (N, D) of a scene (N,), in lexicographic order; -1 outside the grid."""
    number = batch
    for axis, size in enumerate(shape):
        number = number * size + cells[:, axis]
    inside = ((cells >= 0) & (cells < torch.tensor(shape))).all(1)
    return torch.where(inside, number, -1)


def _reached(indices: Tensor, shape: list[int], ksize, stride, padding, dilation, transpose: bool) -> list[Tensor]:
    """For each offset of the kernel the numbers (N,) of the output cells that the voxels reach through it, or -1."""
    batch, cells = indices[:, 0].long(), indices[:, 1:].long()
    stride, padding, dilation = (torch.tensor(list(values)) for values in (stride, padding, dilation))
    reached = []
    for offset in itertools.product(*map(range, ksize)):
        steps = torch.tensor(offset) * dilation
        if transpose:
            reached.append(_numbers(cells * stride - padding + steps, batch, shape))
            continue
        target = cells + padding - steps
        whole = (target % stride == 0).all(1)
        reached.append(torch.where(whole, _numbers(target.div(stride, rounding_mode='floor'), batch, shape), -1))
    return reached


def _rows(wanted: Tensor, numbers: Tensor, order: Tensor) -> Tensor:
    """Row of each wanted number among the sorted ``numbers``, whose rows are ``order``; -1 where it is not there."""
    place = torch.searchsorted(numbers, wanted).clamp_max_(len(numbers) - 1)
    return torch.where((numbers[place] == wanted) & (wanted >= 0), order[place], -1)


def _table(targets: list[Tensor], num_voxels: int) -> tuple[Tensor, Tensor]:
    """mmcv's table of pairs (K, 2, N), -1 behind the last of each offset, and their numbers (K,), both int32."""
    pairs = torch.full((len(targets), 2, num_voxels), -1, dtype=torch.int32)
    counts = torch.zeros(len(targets), dtype=torch.int32)
    for k, target in enumerate(targets):
        source = (target >= 0).nonzero()[:, 0]
        counts[k] = len(source)
        pairs[k, 0, : len(source)], pairs[k, 1, : len(source)] = source, target[source]
    return pairs, counts


def _submanifold(indices: Tensor, shape: list[int], ksize, dilation) -> tuple[Tensor, Tensor]:
    if any(step != 1 for step in dilation):
        raise ValueError(
            f'submanifold convolutions of mmcv must have dilation 1, got {list(dilation)}: with another one its CUDA '
            f"kernel is off center; use spconv's"
        )
    if all(size % 2 for size in ksize):
        found = submanifold_pairs(indices, shape, list(ksize))
        if found is not None:
            pairs, counts = found[0].transpose(0, 1).contiguous(), found[1] + found[1].flip(0)
            centre = len(counts) // 2
            pairs[centre], counts[centre] = torch.arange(len(indices), dtype=torch.int32), len(indices)
            return pairs, counts
    ones, halves = [1] * len(shape), [size // 2 for size in ksize]
    numbers, order = _numbers(indices[:, 1:].long(), indices[:, 0].long(), shape).sort(stable=True)
    reached = _reached(indices, shape, ksize, ones, halves, dilation, False)
    return _table([_rows(wanted, numbers, order) for wanted in reached], len(indices))


def _get_pairs(
    indices, batch_size, out_shape, spatial_shape, ksize, stride, padding, dilation, out_padding, subm, transpose
):  # fmt: skip
    """Take the arguments of mmcv's ``get_indice_pairs_*_forward``: output voxels (M, 1 + D), pairs, numbers of pairs.

    Output voxels are in lexicographic order, as on CUDA.
    """
    shape = [int(size) for size in out_shape]
    if len(indices) == 0:
        return [indices, torch.zeros(math.prod(ksize), 2, 0, dtype=torch.int32), torch.zeros(math.prod(ksize)).int()]
    if subm:
        return [indices, *_submanifold(indices, shape, ksize, dilation)]
    reached = _reached(indices, shape, ksize, stride, padding, dilation, bool(transpose))
    numbers = torch.unique(torch.cat(reached))
    numbers = numbers[numbers >= 0]
    if len(numbers) == 0:
        return [indices[:0], *_table([torch.full_like(wanted, -1) for wanted in reached], len(indices))]
    order = torch.arange(len(numbers))
    pairs = _table([_rows(wanted, numbers, order) for wanted in reached], len(indices))
    columns = []
    for size in reversed(shape):
        columns.append(numbers % size)
        numbers = numbers // size
    return [torch.stack([numbers, *columns[::-1]], 1).to(indices.dtype), *pairs]


def _get_pairs_on_grid(indices, grid, *args):
    """The same for ``get_indice_pairs_*_backward``, whose ``grid`` is scratch memory."""
    return _get_pairs(indices, *args)


def _plan(pairs: Tensor, counts: Tensor, num_inputs: int, num_outputs: int, inverse: bool, subm: bool):
    """The pairs in the order of the convolution, kept with their table; whether the centre was left out of them."""
    key = (num_inputs, num_outputs, inverse, subm)
    plans = pairs.__dict__.setdefault('_clusterplug_plans', {})
    if key not in plans:
        sizes = counts.tolist()
        centre = len(sizes) // 2
        # the centre of a submanifold kernel connects each voxel with itself, which needs no pairs
        subm = subm and num_inputs > 0 and sizes[centre] == num_inputs == max(sizes)
        if subm:
            sizes[centre] = 0
        source, target = (
            torch.cat([pairs[k, side, :size] for k, size in enumerate(sizes)])
            for side in (int(inverse), int(not inverse))
        )
        groups = _group(target, num_outputs), _group(source, num_inputs)
        plans[key] = NeighbourPlan(sizes, source, target, *groups), subm
    return plans[key]


def _used(filters: Tensor, num_offsets: int) -> Tensor:
    """The weights (C', K, C) of the offsets that have pairs, from mmcv's (*kernel, C, C')."""
    weights = filters.flatten(0, -3)
    if len(weights) < num_offsets:
        raise ValueError(
            f'a kernel of {len(weights)} weights cannot use the pairs of the layer with its indice_key, which has '
            f'{num_offsets}; give it an indice_key of its own'
        )
    return weights[:num_offsets].permute(2, 0, 1)


def _forward(features, filters, pairs, counts, num_outputs, inverse, subm):
    """Take the arguments of mmcv's ``indice_conv_forward``; features (num_outputs, C')."""
    plan, subm = _plan(pairs, counts, len(features), num_outputs, bool(inverse), bool(subm))
    with torch.autocast('cpu', enabled=False):
        return convolve(features.to(filters.dtype), _used(filters, len(pairs)), plan, subm)


def _backward(features, filters, grad, pairs, counts, inverse, subm):
    """Take the arguments of mmcv's ``indice_conv_backward``; gradients of the features and of the filters."""
    plan, subm = _plan(pairs, counts, len(features), len(grad), bool(inverse), bool(subm))
    weights = _used(filters, len(pairs))
    with torch.autocast('cpu', enabled=False):
        values = features.to(filters.dtype), weights, grad.to(filters.dtype).contiguous()
        grad_features, grad_weights = convolve_backward(*values, plan, subm)
    grad_filters = torch.zeros_like(filters)
    grad_filters.flatten(0, -3)[: len(pairs)] = grad_weights.permute(1, 2, 0)
    return [grad_features.to(features.dtype), grad_filters]


def patch(module):
    """Replace the kernels of pairs and of convolution for tensors on the CPU."""
    return [
        *(for_cpu(module, f'get_indice_pairs_{ndim}d_forward', _get_pairs) for ndim in (2, 3, 4)),
        *(for_cpu(module, f'get_indice_pairs_{ndim}d_backward', _get_pairs_on_grid) for ndim in (2, 3)),
        for_cpu(module, 'indice_conv_forward', _forward),
        for_cpu(module, 'indice_conv_backward', _backward),
    ]


WORKAROUND = Workaround(
    name='mmcv_sparse_conv',
    host='mmcv._ext',
    patch=patch,
    thread='',
    noted='2026-11, mmcv 2.1.0',
    until='mmcv convolves sparse tensors on the CPU',
)
