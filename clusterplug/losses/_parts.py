# SPDX-License-Identifier: Apache-2.0
"""The composed parts of a loss, from configs, and the flat names that such options had before."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from clusterplug.registry import MODELS


def build_part(name: str, given: nn.Module | dict | None, default: type[nn.Module]) -> Any:
    """A part of a loss: a module as it is, a config built (without ``type``: the default), None: the default.

    Raises:
        TypeError: anything else.
    """
    if given is None:
        return default()
    if isinstance(given, nn.Module):
        return given
    if not isinstance(given, dict):
        raise TypeError(f'{name} must be None, a dict(type=...) or a module, got {type(given).__name__}')
    options = dict(given)
    kind = options.pop('type', default)
    if kind in (default, default.__name__, f'clusterplug.{default.__name__}'):
        return default(**options)  # so that the parts of clusterplug need no registry
    return MODELS.build({'type': kind, **options})


def move_options(
    owner: str,
    parts: dict[str, nn.Module | dict | None],
    flat: Mapping[str, tuple[object, str, str]],
    stacklevel: int = 3,
) -> dict[str, nn.Module | dict | None]:
    """Put options that came under their former flat names into the parts that have them now, with a warning each.

    Args:
        owner: whose options, for messages.
        parts: the parts by name, as they were passed.
        flat: former name -> (value, None if not given; part; name there).
        stacklevel: of the warning, as of :func:`warnings.warn`.

    Returns:
        The parts with the options.

    Raises:
        ValueError: an option that was given in both places, or next to a part that is a module.
    """
    parts = dict(parts)
    for name, (value, part, new) in flat.items():
        if value is None:
            continue
        place = f'{part}=dict({new}={value!r})'
        warnings.warn(f'{owner}: {name} has moved; write {place}', DeprecationWarning, stacklevel=stacklevel)
        given = parts[part] or {}
        if isinstance(given, nn.Module) or new in given:
            raise ValueError(f'{owner}: {name} was given next to {part}, which has it now; write {place} alone')
        parts[part] = {**given, new: value}
    return parts
