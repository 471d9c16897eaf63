# SPDX-License-Identifier: Apache-2.0
"""Token sequences with class or register tokens in front, taken apart and put together."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_count


def split_map(tokens: Tensor, size: tuple[int, int] | None, num_prefix: int) -> tuple[Tensor | None, Tensor]:
    """Return the tokens in front (B, P, C) or None, and the map (B, H, W, C).

    Args:
        tokens: (B, P + H W, C) with ``size`` given, or (B, H, W, C).
        size: (H, W), or None for a map.
        num_prefix: P.

    Raises:
        TypeError: ``tokens`` is no tensor.
        ValueError: The number of tokens is not P + H W.
    """
    if not isinstance(tokens, Tensor):
        raise TypeError(f'tokens must be a torch.Tensor, got {type(tokens).__name__}')
    if size is None:
        if tokens.dim() != 4 or num_prefix:
            raise ValueError(
                f'tokens must have shape (batch, height, width, channels) and no prefix tokens when size is not given, '
                f'got {tuple(tokens.shape)} and num_prefix={num_prefix}; pass size=(height, width)'
            )
        return None, tokens
    expected = num_prefix + size[0] * size[1]
    if tokens.dim() != 3 or tokens.shape[1] != expected:
        raise ValueError(
            f'tokens must have shape (batch, {num_prefix} + {size[0]} * {size[1]} = {expected}, channels), got '
            f'{tuple(tokens.shape)}; check num_prefix (class, register and distillation tokens) and size'
        )
    prefix = tokens[:, :num_prefix] if num_prefix else None
    return prefix, tokens[:, num_prefix:].unflatten(1, tuple(size))


def join_map(prefix: Tensor | None, tokens: Tensor, as_map: bool) -> Tensor:
    """Return (B, P + H W, C) of what :func:`split_map` took apart, or the map as it is."""
    if as_map:
        return tokens
    tokens = tokens.flatten(1, 2)
    return tokens if prefix is None else torch.cat([prefix, tokens], 1)


def check_num_prefix(num_prefix: int) -> int:
    """Return ``num_prefix``; raise unless it is an int of at least 0."""
    return check_count(num_prefix, 'num_prefix', 0)
