"""What the hooks of a patch tell each other during one forward pass."""

import threading

import torch


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
        self.running = None  # the block under way: that of a copy, where DataParallel made one
        self.stash = None  # reduced tokens while the full ones are on their way to a reader
        self.wanted = ()  # blocks whose output somebody reads in this pass


class _Threads(threading.local):
    def __init__(self):
        self.current = _Pass()


class Store:
    """The pass of this thread, as DataParallel runs copies of a model that share their hooks; one when compiled."""

    def __init__(self):
        self._threads, self._compiled = _Threads(), _Pass()

    @property
    def current(self) -> _Pass:
        """The pass that is under way."""
        return self._compiled if torch.compiler.is_compiling() else self._threads.current

    def __deepcopy__(self, memo):
        return Store()

    def __reduce__(self):
        return Store, ()
