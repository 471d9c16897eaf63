# SPDX-License-Identifier: Apache-2.0
"""What the hooks of a patch tell each other during one forward pass."""

import inspect
import threading
import types

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

_checkpoint_code = inspect.unwrap(checkpoint).__code__


class _Pass:
    """One forward pass."""

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        self.size = None  # (H, W) of the token map
        self.restore = None  # set while tokens are reduced
        self.table = None
        self.merged = None  # what merging in every block goes on from
        self.schedule = None  # tokens that each block merges
        self.sizes = None  # tokens in each reduced one, where attention is to know
        self.windows = None  # (part, name) -> value of the block under way, for hosts with windows
        self.running = None  # the block under way: that of a copy, where DataParallel made one
        self.stash = None  # reduced tokens while the full ones are on their way to a reader
        self.wanted = ()  # blocks whose output somebody reads in this pass
        self.task = -1  # the backward pass that this pass is part of, when it is computed again
        self.late = False  # whether the block under way reduces its tokens itself, after its hooks
        self.counted = False  # whether the attention of the block under way was told the sizes
        self.entry = None  # autograd's state when the block under way was called
        self.frames = self.mask = None  # of videos: frames of each, and which of them are real
        self.results = []  # what the stages of the pass kept
        self.block_input = None  # tokens and frames, for the attention of the block under way
        self.again = None  # backward pass, block, frames and mask of the last block that was computed again


class _Threads(threading.local):
    def __init__(self):
        self.current = _Pass()
        self.masks = []


_REMEMBERED = 2048  # inputs of blocks, of all threads


class Store:
    """The pass of this thread, as DataParallel runs copies of a model that share their hooks; one when compiled.

    Args:
        method: Name of the method, for messages.
    """

    def __init__(self, method: str = ''):
        self.method = method
        self._threads, self._compiled = _Threads(), _Pass()
        self._given = {}
        self.masked = []  # one entry for each frame_mask that is open in any thread

    @property
    def current(self) -> _Pass:
        """The pass that is under way."""
        return self._compiled if torch.compiler.is_compiling() else self._threads.current

    @property
    def masks(self) -> list:
        """The frame masks that are open in this thread, innermost last."""
        return self._threads.masks

    def remember(self, index: int, tokens: Tensor, given: tuple) -> None:
        """Keep what belongs to the input of a block, by its memory: gradient checkpointing keeps that input alive."""
        key = _key(index, tokens)
        if key is None:
            return
        self._given.pop(key, None)
        self._given[key] = given, StorageWeakRef(tokens.untyped_storage())
        while len(self._given) > _REMEMBERED:
            self._given.pop(next(iter(self._given)), None)

    def recall(self, index: int, tokens: Tensor) -> tuple | None:
        """Return what belongs to the input of a block that is computed again, in any thread, after any passes.

        None where other tokens have come to lie at the address of that input since.
        """
        given, storage = self._given.get(_key(index, tokens), (None, None))
        return given if storage and storage.cdata == tokens.untyped_storage()._cdata else None

    def drop(self) -> None:
        """Forget a pass that failed, with all tensors that it held."""
        self._threads.current = _Pass()

    def refuse_checkpointing(self) -> None:
        """Raise if the block under way runs inside gradient checkpointing that started after its hooks.

        It would be computed again in the backward pass, without its hooks: with other windows or sizes, and so with
        wrong gradients.
        """
        entry = self.current.entry
        if entry is None or torch.compiler.is_compiling():
            return
        grad, hooks = autograd_state()
        # Reentrant checkpointing switches gradients off, the other one sets hooks for saved tensors.
        if (entry[0] and not grad) or hooks != entry[1]:
            raise RuntimeError(checkpointing_message(self.method))

    def __deepcopy__(self, memo):
        return Store(self.method)

    def __reduce__(self):
        return Store, (self.method,)


def _key(index: int, tokens: Tensor) -> tuple | None:
    try:
        address = tokens.data_ptr()
    except RuntimeError:
        return None  # a tensor without memory, while something traces
    return (index, address, tokens.device, tuple(tokens.shape)) if address else None


def autograd_state() -> tuple | None:
    """Return whether gradients are on, and the hooks for saved tensors; None while compiling."""
    if torch.compiler.is_compiling():
        return None
    return torch.is_grad_enabled(), torch._C._autograd._top_saved_tensors_default_hooks(True)


def end_checkpointing(error: BaseException | None) -> None:
    """End gradient checkpointing that an error has left open, the innermost first.

    The form without reentrance sets hooks for saved tensors in a generator and does not close it when what it runs
    fails (2026-11, torch 2.11). So the hooks stay for as long as somebody keeps the error, as a notebook does, and
    meanwhile every other model of the thread is computed again with them.
    """
    frames, trace = [], getattr(error, '__traceback__', None)
    while trace is not None:
        if trace.tb_frame.f_code is _checkpoint_code:
            frames.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(frames):
        generator = frame.f_locals.get('gen')
        if isinstance(generator, types.GeneratorType):
            generator.close()


def checkpointing_message(method: str) -> str:
    """Return why a block cannot be computed again."""
    return (
        f"method '{method}' does not support gradient checkpointing of single blocks here: a block that is computed "
        f'again in the backward pass does not know the reduced tokens of its forward pass. Switch gradient '
        f'checkpointing off, pass the whole model to torch.utils.checkpoint.checkpoint, or call '
        f'clusterplug.patch.remove(model) first'
    )
