# SPDX-License-Identifier: Apache-2.0
"""One number or two: sizes of grids and folds."""


def as_pair(value: int | tuple[int, int], name: str) -> tuple[int, int]:
    """Return (down, across); raise unless ``value`` is an int of at least 1, or two of them."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or any(isinstance(each, bool) or not isinstance(each, int) for each in pair):
        raise TypeError(f'{name} must be an int or (down, across), got {value!r}')
    if min(pair) < 1:
        raise ValueError(f'{name} must be at least 1, got {value!r}')
    return pair
