# SPDX-License-Identifier: Apache-2.0
"""The parts that a patch belongs to: one transformer in the model, each block once, the same blocks in every pass."""

from collections.abc import Iterable

import torch
from torch import nn

from clusterplug.patch.hosts import find_layout
from clusterplug.patch.layout import Layout


class Parts:
    """Where the blocks of a patched transformer are, to see when others change them.

    Args:
        layout: The transformer.
    """

    def __init__(self, layout: Layout):
        self.layout = layout
        paths = {id(module): path for path, module in layout.trunk.named_modules()}
        self.paths = [paths.get(id(block)) for block in layout.blocks]
        self.lengths = {path.rpartition('.')[0]: 0 for path in self.paths if path}
        for path in self.lengths:
            self.lengths[path] = len(list(layout.trunk.get_submodule(path).children()))

    def check(self) -> None:
        """Raise where blocks were cut off, added or replaced since; a wrapper around a block is none of these."""
        if torch.compiler.is_compiling():
            return
        for index, (path, block) in enumerate(zip(self.paths, self.layout.blocks)):
            if path is None:
                continue
            found = _get(self.layout.trunk, path)
            if found is not block and (found is None or all(each is not block for each in found.modules())):
                what = 'is gone' if found is None else f'is another {type(found).__name__}'
                raise RuntimeError(self._message(f'block {index} ({path}) {what}'))
        for path, length in self.lengths.items():
            now = len(_get(self.layout.trunk, path)._modules)
            if now != length:
                raise RuntimeError(self._message(f'{path or "it"} had {length} blocks and has {now}'))

    def _message(self, what: str) -> str:
        return (
            f'the blocks of {type(self.layout.trunk).__name__} were changed after clusterplug.patch.apply: {what}; '
            f'call clusterplug.patch.remove(model), change the model, then apply again'
        )


def check_one_transformer(model: nn.Module, trunk: nn.Module) -> None:
    """Raise where ``model`` holds other transformers next to ``trunk``: which one is meant?

    Raises:
        ValueError: There are several; the message has their paths.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    others = [layout.trunk for layout in _next_to(model, trunk)]
    if others:
        names = [f'{paths[id(each)] or "itself"} ({type(each).__name__})' for each in (trunk, *others)]
        raise ValueError(
            f'{type(model).__name__} holds {len(names)} transformers: {", ".join(names)}; call apply on each one that '
            f'is to be patched, e.g. apply(model.{paths[id(trunk)]})'
        )


def _next_to(module: nn.Module, trunk: nn.Module) -> Iterable[Layout]:
    if module is trunk:
        return
    if any(each is trunk for each in module.modules()):
        for child in module.children():
            yield from _next_to(child, trunk)
        return
    try:
        layout = find_layout(module)
    except ValueError:
        return
    yield layout
    yield from _next_to(module, layout.trunk)


def check_tied(layout: Layout, indices: Iterable[int]) -> None:
    """Raise where one of the patched blocks stands at several positions.

    Raises:
        ValueError: It does.
    """
    positions = {}
    for index, block in enumerate(layout.blocks):
        positions.setdefault(id(block), []).append(index)
    for index in indices:
        same = positions[id(layout.blocks[index])]
        if len(same) > 1:
            raise ValueError(
                f'blocks {", ".join(map(str, same))} of {layout.host} are one module (tied blocks): a patch cannot '
                f'know which of them runs; pass start and end around them, or copy.deepcopy them'
            )


def _get(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split('.') if path else ():
        module = module._modules.get(name)
        if module is None:
            return None
    return module
