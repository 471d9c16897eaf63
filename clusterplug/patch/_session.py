# SPDX-License-Identifier: Apache-2.0
"""The hooks that reduce tokens before one block and bring them back after another."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from clusterplug.core.numerics import backward_pass, static_size
from clusterplug.functional.tokens import check_grid
from clusterplug.patch._geometry import SharedTable
from clusterplug.patch._hooks import BlockHook, EndHook, LateReduction, ScopeHook, refuse_attentions
from clusterplug.patch._own_class import give_own_class, take_own_class
from clusterplug.patch._parts import Parts
from clusterplug.patch._size_bias import Biased
from clusterplug.patch._store import Store, autograd_state, checkpointing_message
from clusterplug.patch.layout import Layout
from clusterplug.patch.methods import Reduced


class Session:
    """All hooks of one patch.

    Args:
        layout: The transformer.
        method: What reduces.
        start: Block before which tokens are reduced.
        end: Block before which they are full again.
        grid: (h, w), or None with ``keep_ratio``.
        keep_ratio: Share of the tokens to keep.
        taps: Further blocks whose output must always be full.
    """

    def __init__(self, layout: Layout, method, start, end, grid, keep_ratio, taps):
        self.layout, self.method, self.start, self.end = layout, method, start, end
        self.grid, self.keep_ratio = grid, keep_ratio
        self.taps = frozenset(taps) | frozenset(layout.taps)
        self.store = Store(type(method).__name__.lower())
        self.every_block = getattr(method, 'every_block', False)
        self.handles, self.undo, self.own, self.warned = [], [], [], set()

    @property
    def indices(self) -> range:
        """The blocks that have hooks."""
        return range(self.start, self.end)

    def attach(self, model: nn.Module) -> None:
        """Register everything; ``model`` holds the transformer or is it."""
        layout = self.layout
        self.parts = Parts(layout)
        self._give_classes()
        for module in model.modules():
            if any(each is layout.trunk for each in module.modules()):
                end = EndHook(self.store, module is layout.trunk)
                self.handles.append(module.register_forward_hook(end, always_call=True))
        self.handles.append(layout.projection.register_forward_hook(self._see_size))
        self.handles.append(layout.trunk.register_forward_pre_hook(refuse_attentions, with_kwargs=True))
        for number, scope in enumerate(layout.scopes):
            hook = ScopeHook(self, first=number == 0)
            self.handles.append(scope.register_forward_pre_hook(hook, with_kwargs=True))
        for index in range(self.start, self.end):
            block = layout.blocks[index]
            before, after = BlockHook(self, index, 'before'), BlockHook(self, index, 'after')
            self.handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
            # Before the hooks that others have put there to read the output.
            self.handles.append(block.register_forward_hook(after, prepend=True))
            if getattr(self.method, 'size_bias', False):
                self._replace(block, 'forward', Biased(block, self.store, layout.num_prefix))
        if self.start == 0 and layout.scopes:
            self._replace(layout.blocks[0], 'forward', LateReduction(layout.blocks[0], self))
        if layout.wraps is not None:
            for name, method in layout.wraps(self.store).items():
                self._replace(layout.trunk, name, method)

    def _give_classes(self) -> None:
        first = self.layout.blocks[0]  # reached by everything that was compiled for an unpatched model
        given = {id(first): (first, 'block', ())}
        for index in self.indices:
            block = self.layout.blocks[index]
            given[id(block)] = (block, 'block', ())
            if self.layout.resize is not None:
                for name, (module, names) in self.layout.resize.parts(block).items():
                    given[id(module)] = (module, name, names)
        self.own = [module for module, _, _ in given.values()]
        for module, name, names in given.values():
            give_own_class(module, self.store, name, names)

    def _replace(self, module: nn.Module, name: str, value) -> None:
        value.earlier = vars(module).get(name)
        setattr(module, name, value)
        self.undo.append((module, name, value))

    def detach(self) -> None:
        """Take everything away, but nothing that others have put there since."""
        for handle in self.handles:
            handle.remove()
        for module, name, value in reversed(self.undo):
            if vars(module).get(name) is not value:
                continue  # That of others calls ours, which does nothing more.
            delattr(module, name)
            if value.earlier is not None:
                setattr(module, name, value.earlier)
        for module in self.own:
            take_own_class(module)
        self.store.drop()
        self.handles, self.undo, self.own = [], [], []

    def _see_size(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        current = self.store.current
        self.parts.check()
        wanted = current.wanted
        current.clear()
        current.wanted, current.task = wanted, backward_pass()
        size = output.shape[1:3] if self.layout.projection_last else output.shape[-2:]
        # While torch.jit.trace runs, sizes are tensors.
        current.size = tuple(int(length) for length in size) if torch.jit.is_tracing() else tuple(size)

    def before(self, index: int, block: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Hook before a block: reduce, or take up the reduced tokens that were put aside for a reader."""
        current = self.store.current
        if backward_pass() != (-1 if current.size is None else current.task):
            raise RuntimeError(checkpointing_message(self.store.method))
        current.running, current.windows, current.entry = block, None, autograd_state()
        current.late, current.counted = index == 0 and -1 in current.wanted, False
        return None if current.late else self.change(index, block, args, kwargs)

    def change(self, index: int, block: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Return what a block receives instead of full tokens, or None where it receives them."""
        current = self.store.current
        tokens = args[0] if args else kwargs['hidden_states']
        if index == self.start:
            tokens = self._reduce(block, tokens, args, kwargs)
        elif current.stash is not None:
            tokens, current.stash = current.stash, None
        if index > self.start and current.restore is not None and self.every_block:
            tokens = self._merge_again(index, block, tokens)
        if current.restore is None:
            return None
        if args:
            args = (tokens, *args[1:])
        else:
            kwargs = {**kwargs, 'hidden_states': tokens}
        if self.layout.resize is not None:
            current.windows = self.layout.resize.values(block, current.table.size, current.table.grid)
        if self.layout.adapt is not None:
            args, kwargs = self.layout.adapt(block, args, kwargs, current.table)
        return args, kwargs

    def after(self, index: int, block: nn.Module, output):
        """Hook after a block: bring the tokens back at the end, or for a reader."""
        current = self.store.current
        if current.late or (current.sizes is not None and not current.counted):
            raise RuntimeError(
                f'the forward of block {index} of {self.layout.host} was replaced after clusterplug.patch.apply; call '
                f'clusterplug.patch.remove(model), then apply again'
            )
        if current.restore is None:
            return None
        current.windows = None
        last = index == self.end - 1
        if not last and index not in self.taps and index not in current.wanted:
            return None
        tokens = output[0] if isinstance(output, tuple) else output
        full = self._restored(tokens)
        if last:
            current.clear()
        else:
            current.stash = tokens
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def _reduce(self, block: nn.Module, tokens: Tensor, args: tuple, kwargs: dict) -> Tensor:
        current, layout = self.store.current, self.layout
        size = current.size
        current.stash = None
        if size is None:
            raise RuntimeError(
                f'the patch of {layout.host} saw tokens but not the image they come from; call the model with an '
                f'image, and apply again where its patch projection was replaced after apply'
            )
        if layout.size is not None:
            size = layout.size(args, kwargs)
        elif layout.stages:
            size = tuple(int(length) for length in tokens.shape[1:3])
        num_prefix = layout.num_prefix
        self._check_tokens(tokens, size)
        grid = self._grid_for(block, size)
        current.schedule = None
        if self.every_block:
            current.schedule = self.method.schedule(size[0] * size[1], grid[0] * grid[1], self.end - self.start)
        if grid == size and not any(current.schedule or ()):
            current.restore = current.sizes = None
            self._warn_of_nothing(block, size)
            return tokens
        values = tokens if layout.maps else tokens[:, num_prefix:].unflatten(1, size)
        reduced = self._reduced(block, values, grid)
        keeps_grid = self.method.keeps_grid
        current.restore, current.sizes = reduced.restore, reduced.sizes
        current.table = SharedTable(size, grid if keeps_grid else None, reduced.places, num_prefix)
        current.merged = reduced.merged
        if layout.maps:
            return reduced.tokens.unflatten(1, grid)
        if num_prefix == 0:
            return reduced.tokens
        return _join(tokens[:, :num_prefix], reduced.tokens)

    def _reduced(self, block: nn.Module, values: Tensor, grid: tuple[int, int]):
        num_prefix = self.layout.num_prefix
        if self.every_block:
            number = self.store.current.schedule[0]
            return self.method.merge(values.flatten(1, 2), number, self._compared(block), num_prefix, values)
        options = {} if self.method.keeps_grid else dict(num_prefix=num_prefix)
        reduced = self.method(values, grid, lambda: self._compared(block)(values), **options)
        if not isinstance(reduced, Reduced) or static_size(reduced.tokens, 1) != grid[0] * grid[1]:
            got = tuple(reduced.tokens.shape) if isinstance(reduced, Reduced) else type(reduced).__name__
            raise ValueError(
                f'{type(self.method).__name__} must return a clusterplug.patch.Reduced with tokens (batch, '
                f'{grid[0] * grid[1]}, channels), got {got}'
            )
        return reduced

    def _compared(self, block: nn.Module) -> Callable[[Tensor], Tensor]:
        norm = self.layout.norm(block) if self.layout.norm is not None else None
        return norm or (lambda values: values)

    def _merge_again(self, index: int, block: nn.Module, tokens: Tensor) -> Tensor:
        """Merge some more of the tokens in front of a block."""
        current, num_prefix = self.store.current, self.layout.num_prefix
        number = current.schedule[index - self.start]
        if number == 0:
            return tokens
        reduced = self.method.merge(tokens[:, num_prefix:], number, self._compared(block), num_prefix, current.merged)
        current.restore, current.sizes, current.merged = reduced.restore, reduced.sizes, reduced.merged
        current.table = SharedTable(current.table.size, None, reduced.places, num_prefix)
        return reduced.tokens if num_prefix == 0 else _join(tokens[:, :num_prefix], reduced.tokens)

    def _restored(self, tokens: Tensor) -> Tensor:
        restore = self.store.current.restore
        if self.layout.maps:
            return restore(tokens.flatten(1, 2))
        num_prefix = self.layout.num_prefix
        full = restore(tokens[:, num_prefix:]).flatten(1, 2)
        return full if num_prefix == 0 else _join(tokens[:, :num_prefix], full)

    def _grid_for(self, block: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
        if self.grid is not None:
            return check_grid(self.grid, size)
        if self.layout.resize is not None:
            return self.layout.resize.grid(block, size, self.keep_ratio)
        side = self.keep_ratio**0.5
        return max(1, round(size[0] * side)), max(1, round(size[1] * side))

    def _warn_of_nothing(self, block: nn.Module, size: tuple[int, int]) -> None:
        """Warn once for each size of map where a share below one comes to all tokens."""
        if self.grid is not None or self.keep_ratio == 1 or torch.compiler.is_compiling() or size in self.warned:
            return
        self.warned.add(size)
        window = getattr(self.layout.resize and self.layout.resize.holder(block), 'window_size', None)
        warnings.warn(
            f'keep_ratio={self.keep_ratio:g} keeps all {size[0]} x {size[1]} tokens of {self.layout.host}'
            + (f' with windows of {window}, which shrink by whole tokens' if window else '')
            + ': nothing is reduced; pass a smaller keep_ratio, or a grid',
            stacklevel=2,
        )

    def _check_tokens(self, tokens: Tensor, size: tuple[int, int]) -> None:
        if self.layout.maps:
            if tuple(tokens.shape[1:3]) != size:
                raise ValueError(
                    f'{self.layout.host} must pass maps (batch, {size[0]}, {size[1]}, channels) between its blocks, '
                    f'got {tuple(tokens.shape)}'
                )
        elif tokens.shape[1] != self.layout.num_prefix + size[0] * size[1]:
            others = tokens.shape[1] - size[0] * size[1]
            hint = (
                f'pass num_prefix={others} to apply() if the others are class, register or distillation tokens'
                if others >= 0
                else 'something else drops tokens of the map, which a patch cannot follow'
            )
            raise ValueError(
                f'{self.layout.host} must have {self.layout.num_prefix} tokens in front of a map of {size[0]} x '
                f'{size[1]} tokens, got {tokens.shape[1]} tokens in all: {hint}'
            )


def _join(prefix: Tensor, tokens: Tensor) -> Tensor:
    return torch.cat([prefix, tokens.to(prefix.dtype)], 1)
