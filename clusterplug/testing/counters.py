# SPDX-License-Identifier: Apache-2.0
"""Count what a function asks of the device: launched operations, and waits of the host for the device.

Both counts are taken from the operations that torch dispatches, so they do not depend on the machine and can be
tested on a CPU; code with a way of its own for the CPU takes that of an accelerator meanwhile.
"""

from collections import Counter
from collections.abc import Callable

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from clusterplug.core.numerics import as_on_accelerator

# Allocation and bookkeeping: nothing runs on the device.
_NO_LAUNCH = {
    'alias', 'detach', 'empty', 'empty_like', 'empty_strided', 'lift_fresh', 'new_empty', 'new_empty_strided',
    'resize_', 'set_', 'sym_size', '_reshape_alias', '_unsafe_view',
}  # fmt: skip
# The size or the value of the result is needed on the host before the call returns.
_WAITS = {
    '_local_scalar_dense', '_unique', '_unique2', 'bincount', 'equal', 'is_nonzero', 'masked_select', 'multinomial',
    'nonzero', 'unique_consecutive', 'unique_dim', 'unique_dim_consecutive',
}  # fmt: skip
_HOST_METHODS = {'__array__', 'cpu', 'numpy', 'tolist'}


def count_launches(fn: Callable[[], object]) -> Counter:
    """Operations that ``fn()`` launches, by name; views, allocations and metadata are not counted.

    One entry is one call of an ATen operation: an operation that runs several kernels (a sort) counts once.
    Backward passes inside ``fn`` are included.

    Args:
        fn: Called once without arguments; its result is dropped.

    Returns:
        Counter: Name of the operation -> number of calls; ``.total()`` is the number of launches.

    Example:
        >>> import torch
        >>> x = torch.ones(2, 3)
        >>> count_launches(lambda: (x.T @ x).exp())
        Counter({'mm': 1, 'exp': 1})
    """
    with as_on_accelerator(), _Launches() as mode:
        fn()
    return mode.counts


def count_host_syncs(fn: Callable[[], object]) -> Counter:
    """Calls in ``fn()`` for which the host waits when the tensors are on a GPU, by name.

    Counted are values that are read (``item``, ``tolist``, ``numpy``, ``cpu``, ``bool(x)``), results whose size
    depends on the data (``nonzero``, ``unique``, ``masked_select``, boolean indices, ``repeat_interleave`` without
    ``output_size``) and copies from a device to the host.

    Args:
        fn: Called once without arguments; its result is dropped.

    Returns:
        Counter: Name -> number of calls; ``.total()`` is the number of waits.

    Example:
        >>> import torch
        >>> x = torch.arange(4)
        >>> count_host_syncs(lambda: x[x > 1].sum().item())
        Counter({'index': 1, '_local_scalar_dense': 1})
    """
    with as_on_accelerator(), _HostCalls() as methods, _Waits() as mode:
        fn()
    return methods.counts + mode.counts


class _Launches(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        returns_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if func.namespace != 'prim' and name not in _NO_LAUNCH and not returns_view:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class _Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        result = func(*args, **(kwargs or {}))
        if name in _WAITS or _has_data_dependent_size(name, args, kwargs or {}) or _leaves_device(name, args, result):
            self.counts[name] += 1
        return result


class _HostCalls(TorchFunctionMode):
    """Methods that read memory without any dispatched operation when the tensor is on the CPU already."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, '__name__', '')
        if name in _HOST_METHODS or (name == 'to' and 'cpu' in args[1:] + tuple((kwargs or {}).values())):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def _has_data_dependent_size(name: str, args: tuple, kwargs: dict) -> bool:
    if name == 'repeat_interleave':
        return kwargs.get('output_size') is None
    if name in ('index', 'index_put', 'index_put_', '_unsafe_index', '_index_put_impl_'):
        masks = [i for i in args[1] if isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8)]
        # x[mask] = number becomes a masked_fill, which needs no count.
        filled = name != 'index' and len(args) > 2 and args[2].numel() == 1 and args[2].device.type == 'cpu'
        return bool(masks) and not filled
    return False


def _leaves_device(name: str, args: tuple, result) -> bool:
    if name == 'copy_':
        source, target = args[1], args[0]
    elif name == '_to_copy':
        source, target = args[0], result
    else:
        return False
    return source.device.type != 'cpu' and target.device.type == 'cpu'
