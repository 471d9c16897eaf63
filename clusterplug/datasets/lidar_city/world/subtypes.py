# SPDX-License-Identifier: Apache-2.0
"""The hidden sub-type of every point, from its instance id."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

import numpy as np

UNKNOWN = -1


@lru_cache(maxsize=64)
def _table(path: str, _modified: int) -> np.ndarray:
    with open(path) as file:
        try:
            instances = json.load(file)['instances']
        except (ValueError, KeyError) as error:
            raise ValueError(f'{path} is not a sub-type table of a LiDAR city ({error}); generate it again') from error
    table = np.full(max((int(number) for number in instances), default=0) + 1, UNKNOWN, dtype=np.int64)
    for number, entry in instances.items():
        table[int(number)] = entry['subtype_id']
    return table


def load_subtypes(label_file: str | os.PathLike) -> np.ndarray:
    """Sub-type of every point of a scan.

    Args:
        label_file: a ``sequences/NN/labels/FFFFFF.label`` file of a LiDAR city.

    Returns:
        (N,) int64 rows of :data:`clusterplug.datasets.lidar_city.SUBTYPES` (unique over all classes), -1 for points
        without an instance (stray returns). In the order of the points.

    Raises:
        FileNotFoundError: the label file or the sequence's ``subtypes.json`` is missing.
        ValueError: the label file is truncated, or names instances that the table does not know.

    Example:
        >>> import tempfile
        >>> from clusterplug.datasets.lidar_city import SUBTYPES, generate_lidar_city, load_subtypes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = generate_lidar_city(folder, num_train=1, num_val=1, columns=64, progress=False)
        ...     ids = load_subtypes(f'{folder}/sequences/00/labels/000000.label')
        >>> SUBTYPES[ids.max()].class_name in ('pole', 'traffic-sign', 'other-object')
        True
    """
    path = Path(label_file)
    if not path.is_file():
        raise FileNotFoundError(f'no such label file: {path}')
    table_path = path.parent.parent / 'subtypes.json'
    if not table_path.is_file():
        raise FileNotFoundError(
            f'{table_path} is missing: {path} is not part of a complete LiDAR city; generate it again'
        )
    size = path.stat().st_size
    if size % 4:
        raise ValueError(f'{path} is truncated: {size} bytes are not a multiple of the 4 bytes a label takes')
    instance = np.fromfile(path, dtype='<u4') >> 16
    table = _table(str(table_path), table_path.stat().st_mtime_ns)
    if len(instance) and instance.max() >= len(table):
        raise ValueError(f'{path} names instance {instance.max()}, but {table_path} knows 1 to {len(table) - 1}')
    return table[instance]
