# SPDX-License-Identifier: Apache-2.0
"""Streets of the LiDAR city as samples: attributes of scenes become parameters of the generator of scans."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from clusterplug.core.checks import check_choice, check_count
from clusterplug.datasets.lidar_city.generate import generate_lidar_city
from clusterplug.datasets.lidar_city.world.scene_settings import SceneSettings, scene_settings
from clusterplug.datasets.synthesis.attributes import AttributeGenerator

__all__ = ['SCENE_ATTRIBUTES', 'LidarCityGenerator', 'write_lidar_city']

# Order: that of the criteria. A tree of depth d divides by the first d.
SCENE_ATTRIBUTES: dict[str, tuple] = {
    'weather': ('clear', 'rain', 'snow', 'fog'),
    'street': ('residential', 'downtown', 'suburb'),
    'sensor_height': ('low', 'normal', 'high'),
    'objects': ('cars', 'heavy', 'two_wheelers'),
    'traffic': ('none', 'light', 'normal', 'dense'),
    'people': ('none', 'few', 'normal', 'many'),
    'parked': ('none', 'light', 'normal', 'full'),
    'greenery': ('bare', 'sparse', 'normal'),
    'beams': (64, 32, 16),
}


class LidarCityGenerator(AttributeGenerator):
    """Scenes of the LiDAR city as a :class:`Generator`: each sample is a dict for ``generate_lidar_city``.

    Args:
        attributes: {setting of a scene: its values}, in the order of the criteria; by default
            :data:`SCENE_ATTRIBUTES`. A value is the name of a level, or a number.
        weights: {setting: one weight a value}: how likely values are where a leaf leaves them open; uniform by default.

    Raises:
        TypeError, ValueError: A setting or a value that the city does not have.

    Example:
        >>> from clusterplug.datasets.synthesis import PartitionTree
        >>> scenes = LidarCityGenerator({'weather': ['clear', 'fog'], 'traffic': ['none', 'dense']})
        >>> tree = PartitionTree(max_depth=2).grow(scenes)
        >>> sorted(tuple(leaf.description().values()) for leaf in tree.leaves)
        [('clear', 'dense'), ('clear', 'none'), ('fog', 'dense'), ('fog', 'none')]
    """

    def __init__(self, attributes: Mapping[str, Sequence] | None = None, weights: Mapping | None = None):
        super().__init__(SCENE_ATTRIBUTES if attributes is None else attributes, weights)
        for name, values in self.attributes.items():
            check_choice(name, 'a setting of attributes', SceneSettings._fields)
            for value in () if callable(values) else values:
                scene_settings({name: value}, 'attributes')


def write_lidar_city(
    scenes: Sequence[Mapping],
    out_dir: str | os.PathLike,
    *,
    val_scenes: Sequence[Mapping] | None = None,
    scans_per_scene: int = 1,
    **options,
) -> Path:
    """Scan each scene in a street of its own: a LiDAR city in the SemanticKITTI layout.

    Args:
        scenes: What is asked of each training street, such as the samples of a tree.
        out_dir: Target folder; an interrupted run is continued by the same call.
        val_scenes: The same for validation streets. None: one street without wishes.
        scans_per_scene: Scans on each street.
        **options: ``seed``, ``columns``, ``spacing``, ``workers``, ``overwrite`` and ``progress`` of
            :func:`generate_lidar_city`.

    Raises:
        TypeError, ValueError: No scenes, or settings that the city does not have.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     city = write_lidar_city([{'weather': 'fog'}], folder, columns=32, progress=False)
        ...     len(list(city.glob('sequences/*/velodyne/*.bin')))
        2
    """
    scans = check_count(scans_per_scene, 'scans_per_scene', 1)
    for name, given in (('scenes', scenes), ('val_scenes', val_scenes)):
        if given is not None and not len(given):
            raise ValueError(f'{name} must have at least one scene, got none; fill the leaves of the tree first')
    return generate_lidar_city(
        out_dir,
        num_train=len(scenes) * scans,
        num_val=scans * len(val_scenes or [None]),
        scans_per_street=scans,
        train_scenes=list(scenes),
        val_scenes=None if val_scenes is None else list(val_scenes),
        **options,
    )
