# SPDX-License-Identifier: Apache-2.0
"""The list of transformers that are known, this package's and the users'."""

from collections.abc import Callable

import torch
from torch import nn

from clusterplug.patch.layout import Layout, is_wrapper

# Of this package, filled when the first one is asked for, and of users; later ones are asked first.
_BUILT_IN: dict[str, Callable[[nn.Module], Layout | None]] = {}
_REGISTERED: dict[str, Callable[[nn.Module], Layout | None]] = {}


def register_host(name: str, find: Callable[[nn.Module], Layout | None]) -> None:
    """Make a transformer known to :func:`apply`.

    Args:
        name: What messages call it; a name that exists is replaced, all others stay.
        find: Module -> its Layout, or None where the module is not such a transformer. It is asked for the model and
            all modules inside, after the hosts registered later and before those registered earlier.

    Raises:
        TypeError: ``name`` is no string or ``find`` cannot be called.

    Example:
        >>> from clusterplug.patch import Layout, register_host
        >>> def find(module):
        ...     if type(module).__name__ != 'MyTransformer':
        ...         return None
        ...     return Layout('mine', module, module.stages, module.stem, num_prefix=1)
        >>> register_host('mine', find)
    """
    if not isinstance(name, str):
        raise TypeError(f'name must be a string, got {type(name).__name__} ({name!r})')
    if not callable(find):
        raise TypeError(f'find must be a function of a module that returns a Layout or None, got {find!r}')
    _REGISTERED.pop(name, None)
    _REGISTERED[name] = find


def hosts() -> tuple[str, ...]:
    """Names of the transformers that are known.

    Returns:
        tuple: Names, in the order of their registration.

    Example:
        >>> 'timm' in hosts()
        True
    """
    return tuple(_finders())


def find_layout(model: nn.Module) -> Layout:
    """Return the layout of the first known transformer in ``model``.

    Raises:
        TypeError: A registered host returned something else than a Layout.
        ValueError: There is none, or wrappers stand where its own parts must be.
    """
    finders = _finders()
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, find in reversed(finders.items()):
            layout = find(module)
            if layout is None:
                continue
            if not isinstance(layout, Layout):
                raise TypeError(f"find of the host '{name}' must return a Layout or None, got {type(layout).__name__}")
            _check_blocks(layout)
            return layout
    classes = sorted({type(module).__name__ for module in model.modules()})
    number = len(list(model.modules()))
    wrappers = sorted({type(module).__name__ for module in model.modules() if is_wrapper(module)})
    hint = f' A part that is wrapped ({", ".join(wrappers)}) is not seen: wrap it after apply.' if wrappers else ''
    raise ValueError(
        f'{type(model).__name__} holds no transformer that clusterplug knows ({", ".join(finders)}). Looked in it and '
        f'all its {number} modules ({", ".join(classes[:12])}{", ..." if len(classes) > 12 else ""}).{hint} '
        f'Describe its blocks with clusterplug.patch.register_host(name, find)'
    )


def _check_blocks(layout: Layout) -> None:
    """Raise where a block is not the transformer's own: a wrapper answers for another module, or hides its windows."""
    for index, block in enumerate(layout.blocks):
        if is_wrapper(block):
            raise ValueError(
                f'block {index} of {layout.host} is wrapped in {type(block).__name__}, which forwards attributes; '
                f'call apply on the plain blocks, and wrap or compile them afterwards'
            )
        if layout.resize is not None and 'window_size' not in vars(block):
            inside = any('shift_size' in vars(module) for module in block.modules())
            if not inside:
                raise ValueError(
                    f'block {index} of {layout.host} has no window of its own, got {type(block).__name__}; call apply '
                    f'on the plain blocks, and wrap them afterwards'
                )


def _finders() -> dict[str, Callable[[nn.Module], Layout | None]]:
    """Return all hosts, first those of this package; a user's under the name of one of them takes its turn later."""
    if not _BUILT_IN:
        from clusterplug.patch.hosts import (
            mm_vit,
            open_clip_vit,
            plain,
            sam,
            swin,
            timm_vit,
            torchvision_vit,
            transformers_vit,
        )

        for module in (plain, mm_vit, torchvision_vit, sam, swin, open_clip_vit, transformers_vit, timm_vit):
            _BUILT_IN[module.NAME] = module.find
    return {name: find for name, find in _BUILT_IN.items() if name not in _REGISTERED} | _REGISTERED
