# SPDX-License-Identifier: Apache-2.0
"""What ranks of torch.distributed do together: gather with gradients, sums, maxima; nothing where it is not in use."""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks; 1 where torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this rank; 0 where torch.distributed is not in use."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def leave_ranks() -> None:
    """Give the process group back at the end of a program that went well; nothing where there is none.

    A process that ends with its group open is at times aborted (signal 6) although all its work is done: gloo's threads
    still hold tensors while the interpreter goes away (pytorch/pytorch 179291). Not for the way out of an error: there
    other ranks may wait in a collective, and the end of this process is what tells them.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        gathered = x.new_empty(dist.get_world_size(), *x.shape)
        dist.all_gather(list(gathered.unbind()), x.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, grad):
        # every rank's loss looks at every rank's rows: their gradients add up
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[dist.get_rank()]


def gather_ranks(x: Tensor) -> Tensor:
    """Stack the equally shaped ``x`` of all ranks: (...) to (R, ...). All ranks must call it in the same step.

    Differentiable: the gradient of a rank's ``x`` is the sum over the losses of all ranks (one all-reduce in
    backward). With one process it is ``x[None]``. bool tensors travel as uint8.
    """
    if world_size() == 1:
        return x[None]
    if x.dtype == torch.bool:
        return _Gather.apply(x.to(torch.uint8)).bool()
    return _Gather.apply(x)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad):
        # every rank's loss looks at the sum: their gradients add up
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad


def sum_ranks(x: Tensor) -> Tensor:
    """Sum the equally shaped ``x`` of all ranks. All ranks must call it in the same step.

    Differentiable as :func:`gather_ranks`, ``gather_ranks(x).sum(0)`` without the tensors of all ranks; with one
    process it is ``x`` itself.
    """
    return x if world_size() == 1 else _Sum.apply(x)


@torch.no_grad()
def gather_uneven(x: Tensor) -> Tensor:
    """Return the rows (N, ...) of all ranks behind each other, any N on each rank, 0 too; no gradient passes.

    All ranks must call it in the same step. The numbers of rows are read on the host; with one process nothing is, and
    the result is ``x`` itself.
    """
    if world_size() == 1:
        return x
    sizes = gather_ranks(torch.tensor(len(x), device=x.device)).tolist()
    padded = x.new_zeros(max(sizes), *x.shape[1:])
    padded[: len(x)] = x
    return torch.cat([rows[:size] for rows, size in zip(gather_ranks(padded), sizes, strict=True)])


def sum_over_ranks(values: Tensor, group) -> Tensor:
    """Return ``values`` summed over the ranks of ``group`` (unchanged without one)."""
    if group is None:
        return values
    values = values.clone()
    torch.distributed.all_reduce(values, group=group)
    return values


def max_over_ranks(values: Tensor, group) -> Tensor:
    """Return the elementwise maximum of ``values`` over the ranks of ``group`` (unchanged without one)."""
    if group is None:
        return values
    values = values.clone()
    torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX, group=group)
    return values
