# SPDX-License-Identifier: Apache-2.0
"""Data made on purpose: trees that divide a space of scenes, and what fills their leaves."""

from clusterplug.datasets.synthesis._calls import Cost
from clusterplug.datasets.synthesis._filling import Synthesis
from clusterplug.datasets.synthesis._rebalancing import Rebalanced
from clusterplug.datasets.synthesis._routing import Routed
from clusterplug.datasets.synthesis.answers import find_json, value_key
from clusterplug.datasets.synthesis.attributes import AttributeGenerator, CallableGenerator
from clusterplug.datasets.synthesis.build import build_generator
from clusterplug.datasets.synthesis.chat import ChatGenerator
from clusterplug.datasets.synthesis.endpoints import ChatEndpoint, TransformersChat
from clusterplug.datasets.synthesis.lidar_scenes import SCENE_ATTRIBUTES, LidarCityGenerator, write_lidar_city
from clusterplug.datasets.synthesis.node import Node
from clusterplug.datasets.synthesis.partition_tree import PartitionTree
from clusterplug.datasets.synthesis.protocol import BudgetExceeded, Generator, GeneratorUnavailable, InvalidAnswer
from clusterplug.datasets.synthesis.report import Coverage, coverage, mean_cosine

__all__ = [
    'SCENE_ATTRIBUTES',
    'AttributeGenerator',
    'BudgetExceeded',
    'CallableGenerator',
    'ChatEndpoint',
    'ChatGenerator',
    'Cost',
    'Coverage',
    'Generator',
    'GeneratorUnavailable',
    'InvalidAnswer',
    'LidarCityGenerator',
    'Node',
    'PartitionTree',
    'Rebalanced',
    'Routed',
    'Synthesis',
    'TransformersChat',
    'build_generator',
    'coverage',
    'find_json',
    'mean_cosine',
    'value_key',
    'write_lidar_city',
]
