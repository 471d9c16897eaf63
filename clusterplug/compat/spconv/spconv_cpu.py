# SPDX-License-Identifier: Apache-2.0
"""Sparse convolution on the CPU that is correct with threads, trains, and knows bias: spconv's own is none of these.

spconv 2.3.8 on the CPU asks for a CUDA stream in the backward pass, refuses bias in evaluation, has no bfloat16,
and its threaded ``scatter_add_cpu`` loses updates: with two threads the results are wrong by whole units.

The convolution here sums, over the offsets k of the kernel and the pairs (i, o) of voxels that k connects,
``y[o] = sum_k sum_(i,o) W_k x[i]``: one gather of all pairs, one matrix product per offset, and one segmented sum.
"""

import inspect
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.compat.workaround import Workaround


class NeighbourPlan(NamedTuple):
    """The P pairs of a kernel map, ordered by offset, and how to sum pair rows per output and per input.

    The central offset of a submanifold convolution connects each voxel with itself and is left out.
    """

    counts: list[int]  # pairs of each offset, length K
    inputs: Tensor  # (P,) int32, row of the input voxel
    outputs: Tensor  # (P,) int32, row of the output voxel
    by_output: tuple[Tensor, Tensor]  # pairs grouped by output voxel: (P,) order, (num_outputs + 1,) limits
    by_input: tuple[Tensor, Tensor]  # pairs grouped by input voxel: (P,) order, (num_inputs + 1,) limits


def neighbour_plan(pairs: Tensor, counts: Tensor, num_inputs: int, num_outputs: int, inverse: bool, subm: bool):
    """Plan for spconv's kernel map ``pairs`` (2, K, N) with ``counts`` (K,); kept with the map, which layers share."""
    key = (num_inputs, num_outputs, inverse, subm)
    plans = pairs.__dict__.setdefault('_clusterplug_plans', {})
    if key not in plans:
        sizes = counts.tolist()
        last, centre = len(sizes) - 1, len(sizes) // 2
        if subm:  # spconv counts one half of the symmetric offsets only
            sizes = [0 if k == centre else sizes[min(k, last - k)] for k in range(len(sizes))]
        source, target = pairs[int(inverse)], pairs[int(not inverse)]
        inputs = torch.cat([source[k, :size] for k, size in enumerate(sizes)])
        outputs = torch.cat([target[k, :size] for k, size in enumerate(sizes)])
        plans[key] = NeighbourPlan(sizes, inputs, outputs, _group(outputs, num_outputs), _group(inputs, num_inputs))
    return plans[key]


def _group(rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    limits = torch.zeros(num_rows + 1, dtype=torch.int32)
    limits[1:] = torch.bincount(rows, minlength=num_rows).cumsum(0)
    return torch.argsort(rows, stable=True).int(), limits


def _segment_sum(values: Tensor, groups: tuple[Tensor, Tensor]) -> Tensor:
    """Sum the rows of ``values`` (P, C) per group: embedding_bag is threaded, ordered, and 6 x index_add's speed."""
    order, limits = groups
    if len(order) == 0:
        return values.new_zeros(len(limits) - 1, values.shape[1])
    return F.embedding_bag(order, values, limits, mode='sum', include_last_offset=True)


def convolve(features: Tensor, filters: Tensor, plan: NeighbourPlan, subm: bool) -> Tensor:
    """Sparse convolution of ``features`` (N, C) with ``filters`` (C', *kernel, C); returns (num_outputs, C')."""
    weights = filters.flatten(1, -2).permute(1, 2, 0).contiguous()  # (K, C, C')
    gathered = features.index_select(0, plan.inputs)
    products = gathered.new_empty(len(gathered), weights.shape[2])
    for k, (rows, out) in enumerate(zip(gathered.split(plan.counts), products.split(plan.counts))):
        if len(rows):
            torch.mm(rows, weights[k], out=out)
    result = _segment_sum(products, plan.by_output)
    return result.addmm_(features, weights[len(weights) // 2]) if subm else result


def convolve_backward(features: Tensor, filters: Tensor, grad: Tensor, plan: NeighbourPlan, subm: bool):
    """Gradients (N, C) of the features and (C', *kernel, C) of the filters, for ``grad`` (num_outputs, C')."""
    weights = filters.flatten(1, -2).transpose(0, 1).contiguous()  # (K, C', C)
    grad_weights = torch.zeros_like(weights)
    gathered, grads = features.index_select(0, plan.inputs), grad.index_select(0, plan.outputs)
    for k, (rows, row_grads) in enumerate(zip(gathered.split(plan.counts), grads.split(plan.counts))):
        if len(rows):
            torch.mm(row_grads.T, rows, out=grad_weights[k])
            torch.mm(row_grads, weights[k], out=rows)  # the gathered rows are not needed any more
    grad_features = _segment_sum(gathered, plan.by_input)
    if subm:
        centre = len(weights) // 2
        grad_features.addmm_(grad, weights[centre])
        torch.mm(grad.T, features, out=grad_weights[centre])
    return grad_features, grad_weights.transpose(0, 1).reshape(filters.shape)


def _activate(features: Tensor, activation, alpha: float) -> Tensor:
    """Apply spconv's fused activation, compared by name so that this file needs no cumm."""
    functions = {
        'None_': lambda x: x,
        'ReLU': F.relu_,
        'Sigmoid': torch.sigmoid_,
        'LeakyReLU': lambda x: F.leaky_relu_(x, alpha),
    }
    name = str(activation).rpartition('.')[2]
    if name not in functions:
        raise ValueError(f'activation must be one of {sorted(functions)} on the CPU, got {name}')
    return functions[name](features)


def _forward(
    features, filters, indice_pairs, indice_pair_num, num_activate_out, inverse, subm, bias, act_alpha, act_type, **_
):  # fmt: skip
    """Take the arguments of spconv's ``indice_conv``; what only CUDA needs is ignored."""
    plan = neighbour_plan(indice_pairs, indice_pair_num, len(features), num_activate_out, inverse, subm)
    # CPU autocast would cast every product to bfloat16, which few CPUs are fast at: stay with the weights' type.
    with torch.autocast('cpu', enabled=False):
        result = convolve(features.to(filters.dtype), filters, plan, subm)
        if bias is not None:
            result += bias
        return _activate(result, act_type, act_alpha)


def _backward(features, filters, out_bp, indice_pairs, indice_pair_num, inverse, subm, **_):
    """Take the arguments of spconv's ``indice_conv_backward``; what only CUDA needs is ignored."""
    plan = neighbour_plan(indice_pairs, indice_pair_num, len(features), len(out_bp), inverse, subm)
    with torch.autocast('cpu', enabled=False):
        values = features.to(filters.dtype), filters, out_bp.to(filters.dtype)
        grad_features, grad_filters = convolve_backward(*values, plan, subm)
    return grad_features.to(features.dtype), grad_filters


def patch(module):
    """Replace ``indice_conv`` and ``indice_conv_backward`` for tensors on the CPU; CUDA tensors go to spconv."""
    host_forward, host_backward = module.indice_conv, module.indice_conv_backward
    forward_signature, backward_signature = inspect.signature(host_forward), inspect.signature(host_backward)

    def indice_conv(features, filters, indice_pairs, indice_pair_num, num_activate_out, *args, **kwargs):
        arguments = (features, filters, indice_pairs, indice_pair_num, num_activate_out, *args)
        if features.device.type != 'cpu':
            return host_forward(*arguments, **kwargs)
        options = forward_signature.bind(*arguments, **kwargs)
        options.apply_defaults()
        return _forward(**options.arguments)

    def indice_conv_backward(features, filters, out_bp, indice_pairs, indice_pair_num, *args, **kwargs):
        arguments = (features, filters, out_bp, indice_pairs, indice_pair_num, *args)
        if features.device.type != 'cpu':
            return host_backward(*arguments, **kwargs)
        options = backward_signature.bind(*arguments, **kwargs)
        options.apply_defaults()
        return _backward(**options.arguments)

    return [(module, 'indice_conv', indice_conv), (module, 'indice_conv_backward', indice_conv_backward)]


WORKAROUND = Workaround(
    name='spconv_cpu',
    host='spconv.pytorch.ops',
    patch=patch,
    thread='traveller59/spconv#719, #679',
    noted='2026-11, spconv 2.3.8',
    until='spconv trains on the CPU and its scatter is safe with threads',
)
