# SPDX-License-Identifier: Apache-2.0
"""LiDAR city: generated streets, scanned by a simulated 64-beam lidar, with hidden sub-types of every class.

The files have the SemanticKITTI layout, so mmdet3d's own ``SemanticKittiDataset`` and pipelines load them. Every
point carries an instance id (of its sidewalk, its building, its car ...), and ``subtypes.json`` tells what kind of
building or car that is: the ground truth for discovered subclasses, which no training pipeline reads.
"""

from clusterplug.datasets.lidar_city.generate import generate_lidar_city
from clusterplug.datasets.lidar_city.objects import CityObject, city_objects, shape_features, side_view
from clusterplug.datasets.lidar_city.world.catalogue import CLASSES, SUBTYPES, SubType
from clusterplug.datasets.lidar_city.world.subtypes import load_subtypes

__all__ = [
    'CLASSES', 'SUBTYPES', 'CityObject', 'SubType', 'city_objects', 'generate_lidar_city', 'load_subtypes',
    'shape_features', 'side_view',
]  # fmt: skip
