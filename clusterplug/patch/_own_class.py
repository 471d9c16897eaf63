"""A class of its own for a patched module: code compiled for other modules of its class must not run for it.

``torch.compile`` guards on the classes of modules, not on their hooks (``skip_nnmodule_hook_guards``, torch 2.11): a
patched model would silently run what was compiled for an equal model without a patch.
"""

import functools

from torch import nn

_MARK = '_clusterplug_own_class'


def give_own_class(module: nn.Module) -> None:
    """Make a module an instance of a subclass of its class, with the same name and behaviour; copies keep it."""
    module.__class__ = _subclass(type(module))
    # Guards on modules whose dict has not changed since they held are not checked again.
    setattr(module, _MARK, True)


def take_own_class(module: nn.Module) -> None:
    """Undo :func:`give_own_class`."""
    module.__class__ = type(module).__bases__[0]
    delattr(module, _MARK)


@functools.cache
def _subclass(cls: type) -> type:
    names = dict(__module__=cls.__module__, __qualname__=cls.__qualname__, __doc__=cls.__doc__, __reduce_ex__=_reduce)
    return type(cls.__name__, (cls,), names)


def _reduce(module: nn.Module, protocol: int):
    # The subclass cannot be found under its name; the state is what its class would have stored.
    cls = type(module).__bases__[0]
    return _rebuild, (cls,), cls.__reduce_ex__(module, protocol)[2]


def _rebuild(cls: type) -> nn.Module:
    own = _subclass(cls)
    return own.__new__(own)
