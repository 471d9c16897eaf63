# SPDX-License-Identifier: Apache-2.0
"""Colored points as a PLY file, which MeshLab, CloudCompare, Blender and Open3D read."""

import os
from pathlib import Path

import numpy as np

from clusterplug.core.files import whole_file
from clusterplug.visualization._checks import check_cloud

_VERTEX = np.dtype([('xyz', '<f4', 3), ('rgb', 'u1', 3)])


def save_ply(path: str | os.PathLike, points: np.ndarray, colors: np.ndarray) -> None:
    """Write points as binary little-endian PLY.

    Args:
        path: file to write, whole or not at all.
        points: (N, 3 or more) x, y, z in meters; N may be 0.
        colors: (N, 3) red, green, blue in 0 ... 255.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> import tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp()) / 'one.ply'
        >>> save_ply(file, np.zeros((1, 3)), np.full((1, 3), 255))
        >>> file.read_bytes().startswith(b'ply')
        True
    """
    points, colors = np.asarray(points), np.asarray(colors)
    check_cloud(points, colors)
    vertices = np.empty(len(points), _VERTEX)
    vertices['xyz'], vertices['rgb'] = points[:, :3], colors
    header = '\n'.join([
        'ply', 'format binary_little_endian 1.0', f'element vertex {len(points)}',
        *(f'property float {axis}' for axis in 'xyz'),
        *(f'property uchar {channel}' for channel in ('red', 'green', 'blue')),
        'end_header', '',
    ])  # fmt: skip
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, 'wb') as file:
        file.write(header.encode())
        file.write(vertices.tobytes())
