# SPDX-License-Identifier: Apache-2.0
"""Rain, snow and fog: weaker echoes from far away and from wet ground, and returns from drops near the sensor."""

from __future__ import annotations

import numpy as np

from clusterplug.datasets.lidar_city.scanner.sensor import MIN_RANGE
from clusterplug.datasets.lidar_city.world.scene_settings import Weather


def weakened(strength: np.ndarray, distance: np.ndarray, rise: np.ndarray, weather: Weather) -> np.ndarray:
    r"""Energy of echoes through bad air: ``strength * exp(-2 extinction distance) * (1 - wet mirror)``.

    A film of water mirrors the light of beams that come in flat away from the sensor: ``mirror`` is 0 for beams that
    go up and 1 for those that reach the ground at less than 4 degrees.

    Args:
        strength, distance: (R,) echo and meters.
        rise: (R,) vertical part of the unit directions in the sensor's frame.
        weather: what the air does.

    Example:
        >>> air = Weather(extinction=0.05, clutter=0.0, reach=1.0, wet=0.0)
        >>> round(float(weakened(np.float64(1.0), np.float64(10.0), np.float64(0.1), air)), 4)
        0.3679
    """
    with np.errstate(over='ignore', invalid='ignore'):
        through = np.exp(-2.0 * weather.extinction * distance)
    mirror = np.where(rise < 0, np.exp(-np.maximum(-rise - 0.07, 0.0) / 0.07), 0.0)
    return (strength * through * (1.0 - weather.wet * mirror)).astype(np.asarray(strength).dtype)


def clutter(
    measured: np.ndarray, counted: np.ndarray, weather: Weather, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Which pulses come back from a drop or a flake, and from how far.

    Args:
        measured: (R,) distance of what else the pulse would have met, meters.
        counted: (R,) whether it would have come back at all.

    Returns:
        (R,) bool and (R,) float32 meters: only drops in front of what stands there.
    """
    chance = rng.random(len(measured), dtype=np.float32) < weather.clutter
    shown = (MIN_RANGE + rng.exponential(weather.reach, len(measured))).astype(np.float32)
    return chance & ((shown < measured) | ~counted), shown
