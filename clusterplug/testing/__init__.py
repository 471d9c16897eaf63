# SPDX-License-Identifier: Apache-2.0
"""Pieces for tests: a real Runner on tiny real files, gloo ranks, counters of operations and waits, bytes."""

from clusterplug.testing.counters import count_host_syncs, count_launches
from clusterplug.testing.distributed import run_gloo
from clusterplug.testing.forked import run_forked
from clusterplug.testing.peaks import peak_bytes, peak_of_process
from clusterplug.testing.toy_data import write_tiny_semantickitti
from clusterplug.testing.toy_hosts import tiny_host_config, write_tiny_layouts
from clusterplug.testing.toy_indoor import write_tiny_s3dis, write_tiny_scannet
from clusterplug.testing.toy_runner import build_tiny_runner, tiny_config, tiny_model

__all__ = [
    'build_tiny_runner',
    'count_host_syncs',
    'count_launches',
    'peak_bytes',
    'peak_of_process',
    'run_forked',
    'run_gloo',
    'tiny_config',
    'tiny_host_config',
    'tiny_model',
    'write_tiny_layouts',
    'write_tiny_s3dis',
    'write_tiny_scannet',
    'write_tiny_semantickitti',
]  # fmt: skip
