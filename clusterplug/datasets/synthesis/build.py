# SPDX-License-Identifier: Apache-2.0
"""Generators from configs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from clusterplug.core.checks import check_choice
from clusterplug.datasets.synthesis.attributes import AttributeGenerator, CallableGenerator
from clusterplug.datasets.synthesis.chat import ChatGenerator
from clusterplug.datasets.synthesis.endpoints import ChatEndpoint, TransformersChat
from clusterplug.datasets.synthesis.lidar_scenes import LidarCityGenerator

__all__ = ['build_generator']

_GENERATORS = {each.__name__: each for each in (LidarCityGenerator, AttributeGenerator, CallableGenerator)}
_FUNCTIONS = ('samples', 'pivots', 'criterion', 'complete', 'route')


def build_generator(config: Mapping):
    """Build a generator from ``dict(type=..., ...)``.

    Args:
        config: ``type`` is ``LidarCityGenerator``, ``AttributeGenerator``, ``CallableGenerator`` (functions as
            ``'module:function'``) or ``ChatGenerator``, whose ``chat`` is ``dict(type='ChatEndpoint', url=...,
            model=...)`` or ``dict(type='TransformersChat', path=...)``.

    Raises:
        TypeError, ValueError: There is no such type, or its arguments do not fit.
        ImportError: A function's module, or transformers, is missing.

    Example:
        >>> build_generator(dict(type='AttributeGenerator', attributes=dict(color=['red', 'blue']))).attributes
        {'color': ['red', 'blue']}
    """
    if not isinstance(config, Mapping) or 'type' not in config:
        raise TypeError(f"generator must be dict(type='LidarCityGenerator', ...), got {config!r:.80}")
    options = {**config}
    kind = check_choice(options.pop('type'), 'type of generator', [*_GENERATORS, 'ChatGenerator'])
    if kind == 'ChatGenerator':
        return ChatGenerator(chat=_chat(options.pop('chat', None)), **options)
    if kind == 'CallableGenerator':
        options |= {name: _function(options[name], name) for name in _FUNCTIONS if options.get(name) is not None}
    return _GENERATORS[kind](**options)


def _chat(config) -> Callable:
    if callable(config):
        return config
    if not isinstance(config, Mapping) or 'type' not in config:
        raise TypeError(f"chat must be dict(type='ChatEndpoint', url=..., model=...), got {config!r:.80}")
    options = {**config}
    kind = check_choice(options.pop('type'), 'type of chat', ('ChatEndpoint', 'TransformersChat'))
    return ChatEndpoint(**options) if kind == 'ChatEndpoint' else TransformersChat.from_pretrained(**options)


def _function(value, name: str) -> Callable:
    if callable(value):
        return value
    module, _, function = str(value).partition(':')
    if not function:
        raise ValueError(f"{name} must be 'module:function', got {value!r}")
    found = getattr(importlib.import_module(module), function, None)
    if not callable(found):
        raise ValueError(f'{name} must be a function, but {module} has no function {function}')
    return found
