# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing that trains sparse layers: mmengine leaves the choice of the variant to torch.

torch then takes the reentrant one, which gives gradients only to layers whose arguments are tensors: a layer that takes
a sparse tensor of spconv or mmcv gets none, with a warning at most. The other variant has no such limit, and is what
torch recommends.
"""

from functools import wraps

from torch.utils.checkpoint import checkpoint

from clusterplug.compat.workaround import Workaround


def patch(module):
    """Replace ``wrap_forward``, with which ``activation_checkpointing`` of a config wraps layers."""

    def wrap_forward(forward):
        @wraps(forward)
        def wrapper(*args, **kwargs):
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)

        return wrapper

    return [(module, 'wrap_forward', wrap_forward)]


WORKAROUND = Workaround(
    name='activation_checkpointing',
    host='mmengine.runner.activation_checkpointing',
    patch=patch,
    thread='',
    noted='2026-11, mmengine 0.10.7',
    until='mmengine passes use_reentrant=False',
)
