# SPDX-License-Identifier: Apache-2.0
"""What every picture of a point cloud asks of its input."""

import numpy as np


def check_cloud(points: np.ndarray, colors: np.ndarray, name: str = 'colors') -> None:
    """Refuse points that are not (N, 3 or more), and colors that are not (N, 3)."""
    if points.ndim != 2 or points.shape[1] < 3:
        raise ValueError(f'points must be (N, 3 or more), got {points.shape}')
    if colors.shape != (len(points), 3):
        raise ValueError(f'{name} must have shape ({len(points)}, 3), got {colors.shape}')
