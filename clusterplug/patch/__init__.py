# SPDX-License-Identifier: Apache-2.0
"""Token reduction inside trained transformers: one call applies it, one takes it away again."""

from clusterplug.patch._apply import apply, remove
from clusterplug.patch._hosts import Layout, hosts, register_host
from clusterplug.patch.centerclip import VideoSession, frame_mask

__all__ = ['Layout', 'VideoSession', 'apply', 'frame_mask', 'hosts', 'register_host', 'remove']
