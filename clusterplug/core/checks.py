# SPDX-License-Identifier: Apache-2.0
"""Input validation of the kernels: each check says the name, what is allowed, what came, what to do next."""

import difflib
import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor


def check_points(x: Tensor, name: str = 'x', *, allow_empty: bool = False) -> None:
    """Raise unless ``x`` is a floating tensor (..., N, D) with N >= 1 and D >= 1; a batch of no problems is fine."""
    if not isinstance(x, Tensor):
        raise TypeError(f'{name} must be a torch.Tensor, got {type(x).__name__}; convert it with torch.as_tensor')
    if not x.is_floating_point():
        raise TypeError(f'{name} must have a floating dtype, got {x.dtype}; convert it with {name}.float()')
    if x.dim() < 2:
        raise ValueError(f'{name} must have shape (..., N, D), got {tuple(x.shape)}; add the missing dimension')
    if not allow_empty and 0 in x.shape[-2:]:
        raise ValueError(f'{name} must hold at least one point of at least one dimension, got shape {tuple(x.shape)}')


def check_num_clusters(num_clusters: int, num_points: int | None = None) -> int:
    """Return ``num_clusters`` as int; raise unless ``1 <= num_clusters`` (``<= num_points`` when that is given)."""
    number = check_count(num_clusters, 'num_clusters', 1)
    if num_points is not None and number > num_points:
        raise ValueError(
            f'num_clusters must not exceed the number of points, got {number} clusters for {num_points} points; '
            f'ask for at most {num_points} clusters'
        )
    return number


def check_count(value: Any, name: str, least: int = 0, most: int | None = None) -> int:
    """Return ``value``, an int or NumPy integer, as int; raise unless it lies in ``least`` .. ``most``."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    # Tensors of one element have an index as well; reading them would wait for the device.
    if number is None or isinstance(value, (bool, np.bool_, Tensor)):
        raise TypeError(f'{name} must be an int, got {type(value).__name__} ({value!r})')
    if number < least or (most is not None and number > most):
        allowed = f'at least {least}' if most is None else f'between {least} and {most}'
        raise ValueError(f'{name} must be {allowed}, got {number}')
    return number


def check_number(
    value: Any,
    name: str,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: float | None = None,
    finite: bool = True,
    hint: str = '',
) -> float:
    """Return ``value``, a Python or NumPy number, as float; raise unless it lies in ``least`` .. ``most``.

    Args:
        value: What came. Never NaN; infinite only with ``finite=False``.
        name: Name of the argument.
        least: Smallest value allowed.
        most: Largest value allowed.
        above: The value must be larger than this.
        finite: Refuse infinity.
        hint: What to do next, added to the message.

    Example:
        >>> import numpy as np
        >>> check_number(np.float32(0.5), 'epsilon', above=0)
        0.5
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
    try:
        number = float(value) if is_number else math.nan
    except OverflowError:  # a Python integer beyond fp64
        number = math.inf if value > 0 else -math.inf
    low = least if above is None else above
    inside = least <= number <= most and (above is None or number > above) and not (finite and math.isinf(number))
    if inside:
        return number
    bounds = [f'{">" if above is not None else ">="} {low:g}'] if low > -math.inf else []
    bounds += [f'<= {most:g}'] if most < math.inf else []
    allowed = ' '.join([f'a {"finite " if finite else ""}number', ' and '.join(bounds)]).strip()
    message = f'{name} must be {allowed}, got {value!r}' + (f'; {hint}' if hint else '')
    raise ValueError(message) if is_number else TypeError(message)


def check_choice(value: str, name: str, allowed: Iterable[str], more: str = '') -> str:
    """Return ``value``; raise unless it is one of the names ``allowed`` (``more`` says what else would be)."""
    known = list(allowed)
    if isinstance(value, str) and value in known:
        return value
    names = ', '.join(repr(each) for each in known)
    near = nearest_name(value, known) if isinstance(value, str) else ''
    raise ValueError(f'{name} must be one of {names}{more}, got {value!r}{near}')


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return the words `` (did you mean 'NAME'?)``, or nothing where no known name is near."""
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f' (did you mean {found[0]!r}?)' if found else ''


def check_mask(mask: Tensor | None, shape: tuple, device: torch.device, name: str = 'mask') -> None:
    """Raise unless ``mask`` is None or a bool tensor of ``shape`` on ``device`` (True = valid)."""
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f'{name} must be a bool tensor (True = valid), got {got}')
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f'{name} must have shape {tuple(shape)}, got {tuple(mask.shape)}')
    check_device(mask, device, name)


def check_device(tensor: Tensor, device: torch.device, name: str) -> None:
    """Raise unless ``tensor`` lies on ``device``."""
    if tensor.device != device:
        raise ValueError(f'{name} must be on the device of the points, {device}, got {tensor.device}; move it there')


def check_finite(x: Tensor, name: str = 'x', mask: Tensor | None = None) -> None:
    """Raise if a valid row of ``x`` (..., N, D) holds NaN or inf, naming the batch entries and counts.

    Reads the result on the host: on CUDA that is a synchronization, so call it only where one happens anyway.
    """
    # NaN and inf survive every sum: a finite one is proof, without the copies that isfinite makes.
    if bool(torch.isfinite(x.sum())):
        return
    bad = ~torch.isfinite(x).all(-1)
    if mask is not None:
        bad = bad & mask
    if bad.any():
        counts = bad.reshape(-1, bad.shape[-1]).sum(-1)
        entries = [f'{i}: {int(counts[i])}' for i in counts.nonzero().flatten().tolist()[:5]]
        raise ValueError(
            f'{name} must be finite, got NaN or inf in {int(counts.sum())} points '
            f'(batch entry: number of points - {", ".join(entries)}{", ..." if len(entries) == 5 else ""}); '
            f'drop them or pass a mask that is False there'
        )


@overload
def whole_number(name: str, value: Any, *, optional: Literal[False] = False, least: int = 1) -> int: ...


@overload
def whole_number(name: str, value: Any, *, optional: Literal[True], least: int = 1) -> int | None: ...


def whole_number(name: str, value: Any, *, optional: bool = False, least: int = 1) -> int | None:
    """Return ``value`` as an int of at least ``least``, NumPy integers too; None where that is allowed.

    Raises:
        ValueError: For anything else, with the name and what came.
    """
    if optional and value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f'{name} must be {"None or " * optional}an int of at least {least}, got {value!r}')
    return int(value)


def as_pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    """Return (down, across); raise unless ``value`` is an int of at least 1, or two of them."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or any(isinstance(each, bool) or not isinstance(each, int) for each in pair):
        raise TypeError(f'{name} must be an int or (down, across), got {value!r}')
    if min(pair) < 1:
        raise ValueError(f'{name} must be at least 1, got {value!r}')
    return pair
