# SPDX-License-Identifier: Apache-2.0
"""Prototype banks, queues and tables of samples: in the checkpoint, and the same on all ranks."""

from clusterplug.memory.clustered_memory import ClusteredMemory, Neighbors
from clusterplug.memory.feature_queue import FeatureQueue, LogitsBuffer, QueueContents
from clusterplug.memory.sample_table import SampleTable
from clusterplug.memory.subclass_memory import SubclassMemory, clusters_per_class

__all__ = [
    'ClusteredMemory',
    'FeatureQueue',
    'LogitsBuffer',
    'Neighbors',
    'QueueContents',
    'SampleTable',
    'SubclassMemory',
    'clusters_per_class',
]
