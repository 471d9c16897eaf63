# SPDX-License-Identifier: Apache-2.0
"""Token reduction inside trained transformers: one call applies it, one takes it away again."""

from clusterplug.patch.application import apply, remove
from clusterplug.patch.hosts import hosts, register_host
from clusterplug.patch.layout import Layout
from clusterplug.patch.methods import Reduced, register_method
from clusterplug.patch.video import VideoSession, frame_mask

__all__ = [
    'Layout', 'Reduced', 'VideoSession', 'apply', 'frame_mask', 'hosts', 'register_host', 'register_method', 'remove',
]  # fmt: skip
