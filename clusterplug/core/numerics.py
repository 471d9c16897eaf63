# SPDX-License-Identifier: Apache-2.0
"""Precision rules that all share: at least fp32 inside, autocast off, the caller's type outside."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

_ON_ACCELERATOR: ContextVar[bool] = ContextVar('_ON_ACCELERATOR', default=False)
_is_exporting = getattr(torch.compiler, 'is_exporting', lambda: False)


def keep_fp32(fn: Callable[[Tensor], Tensor], *, widen: bool = True) -> Callable[[Tensor], Tensor]:
    """Wrap the function that ``nn.Module._apply`` maps over tensors, so that it moves but does not narrow below fp32.

    For state that a narrower type would spoil (``model.half()``, ``model.bfloat16()``). ``model.double()`` widens it as
    it does any module's, but with ``widen=False``: for modules that compute in fp32 whatever comes in.

    Example:
        >>> keep_fp32(lambda tensor: tensor.half())(torch.zeros(2)).dtype
        torch.float32
    """

    def moved(tensor: Tensor) -> Tensor:
        result = fn(tensor)
        narrowed = tensor.dtype in (torch.float32, torch.float64) and result.dtype in (torch.float16, torch.bfloat16)
        widened = tensor.dtype == torch.float32 and result.dtype == torch.float64
        if narrowed or (widened and not widen):
            return tensor.to(result.device, torch.float32)
        return result

    return moved


def keep_types(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """As :func:`keep_fp32`, but float64 stays float64, bit for bit: for sums, tables and what must sum to 1.

    Example:
        >>> keep_types(lambda tensor: tensor.half())(torch.zeros(2, dtype=torch.float64)).dtype
        torch.float64
    """
    narrow = keep_fp32(fn)

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(fn(tensor).device) if tensor.dtype == torch.float64 else narrow(tensor)

    return moved


def working_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the type to compute in: float64 if one of ``dtypes`` is, float32 for everything narrower."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def unit_rows(x: Tensor) -> Tensor:
    """Return ``x`` (..., D) with rows of length 1; rows of zeros stay zeros.

    Rows are divided by their largest entry first, as squares overflow. The slope of a unit vector grows without limit
    towards 0: no gradient reaches rows without an entry of 1e-30, as one of infinity would become NaN in the product
    that made the zeros (dropout, a mask). A row with NaN or infinity is NaN.

    Example:
        >>> unit_rows(torch.tensor([[3e30, 4e30], [0.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    largest = x.detach().abs().amax(-1, keepdim=True)
    x = torch.where(largest < 1e-30, x.detach(), x)
    return torch.nn.functional.normalize(x / largest.masked_fill(largest == 0, 1.0), dim=-1)


def no_autocast(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Return a context that switches autocast off on the tensor's device (nothing where it is off already)."""
    device_type = tensor.device.type
    if device_type != 'meta' and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Record gradients whatever the caller has switched off (``no_grad``, ``inference_mode``); decorates, too."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def backward_pass() -> int:
    """Return the number of the backward pass that runs in this thread, -1 without one or while compiling."""
    return -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()


def recordable(tensor: Tensor) -> Tensor:
    """Return the tensor itself, or a copy of one that was made in inference mode, which no graph can hold."""
    return tensor.clone() if tensor.is_inference() else tensor


def host_checks_allowed(tensor: Tensor) -> bool:
    """Return whether reading a value on the host costs nothing: on the CPU, not in ``torch.compile`` or ``vmap``."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return tensor.device.type == 'cpu'


@contextlib.contextmanager
def as_on_accelerator() -> Iterator[None]:
    """Let code that has a way of its own for the CPU take the way of the other devices, so that it can be counted."""
    token = _ON_ACCELERATOR.set(True)
    try:
        yield
    finally:
        _ON_ACCELERATOR.reset(token)


def on_host(tensor: Tensor) -> bool:
    """Tell whether work whose size depends on the data may be done: as :func:`host_checks_allowed`, if not counted."""
    return host_checks_allowed(tensor) and not _ON_ACCELERATOR.get()


def exporting() -> bool:
    """Return whether ``torch.export`` or an exporter to ONNX is at work; before torch 2.7 only the latter."""
    return _is_exporting() or torch.onnx.is_in_onnx_export()


def static_size(tensor: Tensor, dim: int) -> int:
    """Return a side of ``tensor`` as a number; while ``torch.jit.trace`` runs, sizes are tensors."""
    size = tensor.shape[dim]
    return int(size) if torch.jit.is_tracing() else size


@contextlib.contextmanager
def _without_tf32():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def exact_products(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Return a context in which fp32 products are fp32: autocast off, and TF32 too (not while compiling)."""
    if torch.compiler.is_compiling() or tensor.device.type != 'cuda' or not torch.backends.cuda.matmul.allow_tf32:
        return no_autocast(tensor)  # an ExitStack around it would break the graph
    stack = contextlib.ExitStack()
    stack.enter_context(no_autocast(tensor))
    stack.enter_context(_without_tf32())
    return stack


def plain_attention() -> contextlib.AbstractContextManager:
    """Scaled dot-product attention in its plain form: the fused ones have no forward derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.MATH)
