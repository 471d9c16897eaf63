# SPDX-License-Identifier: Apache-2.0
"""The hooks themselves; classes, so that a copied model gets hooks of its own."""

import sys
from typing import TYPE_CHECKING

from torch import nn

from clusterplug.patch._store import Store, end_checkpointing

if TYPE_CHECKING:
    from clusterplug.patch._session import Session


class BlockHook:
    """A hook that knows its block's number."""

    def __init__(self, session: 'Session', index: int, when: str):
        self.session, self.index, self.when = session, index, when

    def __call__(self, block: nn.Module, args: tuple, last):
        if self.when == 'before':
            return self.session.before(self.index, block, args, last)
        return self.session.after(self.index, block, last)


class EndHook:
    """Drops what a failed call of the model holds; says when a call ended before its tokens were full again."""

    def __init__(self, store: Store, trunk: bool):
        self.store, self.trunk = store, trunk

    def __call__(self, module: nn.Module, args: tuple, output) -> None:
        if output is None:  # an error is on its way
            end_checkpointing(sys.exc_info()[1])
            self.store.drop()
        elif self.trunk and self.store.current.restore is not None:
            self.store.drop()
            raise RuntimeError(
                'the last block of the patch did not run, so that the tokens of this pass are still reduced; call '
                'clusterplug.patch.remove(model), then apply with an end that the model reaches'
            )


class ScopeHook:
    """Notes which hidden states the caller asks for."""

    def __init__(self, session: 'Session', first: bool):
        self.session, self.first = session, first

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        current = self.session.store.current
        if self.first:
            current.wanted = ()
        asked = kwargs.get('output_hidden_states')
        if asked is None:
            asked = getattr(getattr(module, 'config', None), 'output_hidden_states', False)
        if asked is None or asked is False:
            return
        number = len(self.session.layout.blocks)
        # Hidden state 0 is what the first block receives, number -1.
        if asked is True:
            current.wanted = tuple(range(-1, number))
        else:
            chosen = [asked] if isinstance(asked, int) else list(asked)
            current.wanted = (*current.wanted, *(index % (number + 1) - 1 for index in chosen))


class BlockForward:
    """Stands for the ``forward`` of a block.

    Args:
        block: The block.
        store: The passes.
    """

    def __init__(self, block: nn.Module, store: Store):
        self.block, self.store = block, store
        self.earlier = None  # of others, such as hooks that move weights

    def run(self, *args, **kwargs):
        """Run the block's own ``forward``, or that of others."""
        if self.earlier is not None:
            return self.earlier(*args, **kwargs)
        running = self.store.current.running
        block = self.block if running is None else running
        return type(block).forward(block, *args, **kwargs)


class LateReduction(BlockForward):
    """Reduces tokens after the hooks of the first block, where one of them reads the input (hidden state 0).

    Hooks behind a block get the arguments that the hooks in front of it have changed.
    """

    def __init__(self, block: nn.Module, session: 'Session'):
        super().__init__(block, session.store)
        self.session = session

    def __call__(self, *args, **kwargs):
        """Run the block, on reduced tokens where its hook has left that to this."""
        current = self.store.current
        if current.late:
            current.late = False
            args, kwargs = self.session.change(0, current.running, args, kwargs) or (args, kwargs)
        return self.run(*args, **kwargs)


def refuse_attentions(module: nn.Module, args: tuple, kwargs: dict) -> None:
    """Raise where the caller asks for maps of attention, which are those of reduced tokens.

    Raises:
        ValueError: It does.
    """
    asked = kwargs.get('output_attentions')
    if asked is None:
        asked = getattr(getattr(module, 'config', None), 'output_attentions', False)
    if asked:
        raise ValueError(
            'output_attentions must be False in a patched transformer, as reduced tokens attend to reduced tokens; '
            'call clusterplug.patch.remove(model) first'
        )
