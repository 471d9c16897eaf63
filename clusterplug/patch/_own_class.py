# SPDX-License-Identifier: Apache-2.0
"""A class of its own for a patched module: the same module, with what a patch adds to its class.

``torch.compile`` guards on the classes of modules, not on their hooks (``skip_nnmodule_hook_guards``, torch 2.11): a
patched model would silently run what was compiled for an equal model without a patch. And what a pass needs of a
module (other windows, an end when it fails) must not be set on the module, which all threads share.
"""

import functools

import torch
from torch import nn

from clusterplug.patch._store import Store

_STORE, _PART, _PLAIN = '_clusterplug_store', '_clusterplug_part', '_clusterplug_plain'


def give_own_class(module: nn.Module, store: Store, part: str = '', names: tuple[str, ...] = ()) -> None:
    """Make a module an instance of a subclass of its class, with the same name and behavior; copies keep it.

    A call that fails, also by an interrupt, drops the pass of its thread.

    Args:
        module: The module.
        store: The passes.
        part: What the pass calls the module.
        names: Attributes, parameters and buffers that read as ``store.current.windows[part, name]`` where the pass of
            the thread has such a value, and as always elsewhere.
    """
    plain = {name: vars(module)[name] for name in names if name in vars(module)}
    module.__class__ = _subclass(type(module), names)
    # Guards on modules whose dict has not changed since they held are not checked again.
    vars(module).update({_STORE: store, _PART: part, _PLAIN: plain})


def take_own_class(module: nn.Module) -> None:
    """Undo :func:`give_own_class`; a class that others have made of it since stays, and does nothing more."""
    for name in (_STORE, _PART, _PLAIN):
        vars(module).pop(name, None)
    if '_clusterplug_base' in vars(type(module)):
        module.__class__ = type(module)._clusterplug_base[0]


@functools.cache
def _subclass(cls: type, names: tuple[str, ...]) -> type:
    def call(self, *args, **kwargs):
        if torch.compiler.is_compiling():
            return cls.__call__(self, *args, **kwargs)
        try:
            return cls.__call__(self, *args, **kwargs)
        except BaseException:
            store = vars(self).get(_STORE)
            if store is not None:
                store.drop()
            raise

    own = dict(__module__=cls.__module__, __qualname__=cls.__qualname__, __doc__=cls.__doc__, __reduce_ex__=_reduce)
    own |= dict(__call__=call, _clusterplug_base=(cls, names))
    own |= {name: _changeable(cls, name) for name in names}
    return type(cls.__name__, (cls,), own)


def _changeable(cls: type, name: str) -> property:
    of_class = {name: getattr(cls, name)} if hasattr(cls, name) else {}

    def get(self):
        own = vars(self)
        store = own.get(_STORE)
        if store is not None:
            windows = store.current.windows
            key = (own[_PART], name)
            if windows is not None and key in windows:
                store.refuse_checkpointing()
                return windows[key]
        if torch.compiler.is_compiling() and store is not None:
            own = own[_PLAIN]  # 2026-11, torch 2.11: to Dynamo, the dict of a module is its attributes, this one too
        for place in (self._parameters, self._buffers, own):
            if name in place:
                return place[name]
        if name not in of_class:
            raise AttributeError(name)  # nn.Module says it in its own words
        value = of_class[name]
        return value.__get__(self) if hasattr(value, '__get__') else value

    def put(self, value) -> None:
        vars(self)[name] = value
        if _PLAIN in vars(self):
            vars(self)[_PLAIN][name] = value

    def delete(self) -> None:
        del vars(self)[name]

    return property(get, put, delete)


def _reduce(module: nn.Module, protocol: int):
    # The subclass cannot be found under its name; the state is what its class would have stored.
    own = next(cls for cls in type(module).__mro__ if '_clusterplug_base' in vars(cls))
    cls, names = own._clusterplug_base
    return _rebuild, (cls, names), cls.__reduce_ex__(module, protocol)[2]


def _rebuild(cls: type, names: tuple[str, ...]) -> nn.Module:
    own = _subclass(cls, names)
    return own.__new__(own)
