# SPDX-License-Identifier: Apache-2.0
"""A spinning 64-beam lidar: where its beams point and how it stands on the car."""

from __future__ import annotations

import numpy as np

from clusterplug.datasets.lidar_city.world.scene_settings import SENSOR_HEIGHT

__all__ = [
    'MAX_RANGE',
    'MIN_RANGE',
    'NUM_BEAMS',
    'RANGE_NOISE',
    'SENSOR_HEIGHT',
    'beam_directions',
    'beam_elevations',
    'rotation',
]

NUM_BEAMS = 64
MAX_RANGE = 80.0
MIN_RANGE = 2.0
RANGE_NOISE = 0.015


def beam_elevations() -> np.ndarray:
    """Elevation of the 64 beams in radians, highest first.

    Two blocks as in the Velodyne HDL-64E: 32 beams from +2 to -8.33 degrees, a third of a degree apart, and 32 beams
    from -8.83 to -24.8 degrees, about half a degree apart.

    Returns:
        (64,) float64.

    Example:
        >>> beams = np.degrees(beam_elevations())
        >>> float(beams[0].round(2)), float(beams[31].round(2)), float(beams[63].round(2))
        (2.0, -8.33, -24.8)
    """
    upper = np.linspace(2.0, -8.0 - 1.0 / 3.0, 32)
    lower = np.linspace(-8.0 - 5.0 / 6.0, -24.8, 32)
    return np.radians(np.concatenate([upper, lower]))


def beam_directions(columns: int, phase: float = 0.0) -> np.ndarray:
    """Unit vectors of one turn in the sensor's frame (x forward, y left, z up).

    Args:
        columns: firings in a turn.
        phase: azimuth of the first firing, in firings (0 to 1); a real sensor never starts at the same angle.

    Returns:
        (64, columns, 3) float32; the turn runs clockwise seen from above, beginning behind the car.

    Example:
        >>> rays = beam_directions(4)
        >>> rays.shape, bool(np.allclose(np.linalg.norm(rays, axis=-1), 1))
        ((64, 4, 3), True)
    """
    elevation = beam_elevations()[:, None]
    azimuth = np.pi - 2.0 * np.pi * (np.arange(columns) + phase)[None] / columns
    return np.stack(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.broadcast_to(np.sin(elevation), (NUM_BEAMS, columns)),
        ],
        axis=-1,
    ).astype(np.float32)


def rotation(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """Rotation matrix from the sensor's frame to the world: roll about x, pitch about y, yaw about z (radians)."""
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    about_z = np.array([[cy, -sy, 0.0], [sy, cy, 0.0], [0.0, 0.0, 1.0]])
    about_y = np.array([[cp, 0.0, sp], [0.0, 1.0, 0.0], [-sp, 0.0, cp]])
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, cr, -sr], [0.0, sr, cr]])
    return about_z @ about_y @ about_x
