# SPDX-License-Identifier: Apache-2.0
"""Transformers of the usual libraries: one file each, which recognizes its own and describes its parts."""

from clusterplug.patch.hosts.finders import find_layout, hosts, register_host

__all__ = ['find_layout', 'hosts', 'register_host']
