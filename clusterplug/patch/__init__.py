"""Token reduction inside trained transformers: one call applies it, one takes it away again."""

from clusterplug.patch._apply import apply, remove
from clusterplug.patch._hosts import Layout, hosts, register_host

__all__ = ['Layout', 'apply', 'hosts', 'register_host', 'remove']
