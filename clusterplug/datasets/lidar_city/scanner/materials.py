# SPDX-License-Identifier: Apache-2.0
"""What a surface returns: remission, scatter in range, drop-out and see-through share of every material."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Material(NamedTuple):
    """How a surface answers a laser pulse.

    Attributes:
        base: remission (0 to 1) at normal incidence and short range.
        spread: relative difference between instances (paint colors, kinds of stone): a log-normal deviation.
        speckle: relative difference from point to point.
        gloss: remission added close to normal incidence (lacquer, glass, retro-reflectors).
        fuzz: depth in meters over which the return scatters in front of the surface (grass, needles).
        lost: share of pulses that never come back (black lacquer, glass, water).
        porous: share of pulses that pass through (wire mesh, car windows, twigs).
    """

    base: float
    spread: float = 0.1
    speckle: float = 0.15
    gloss: float = 0.0
    fuzz: float = 0.0
    lost: float = 0.0
    porous: float = 0.0


MATERIALS: dict[str, Material] = {
    'paint': Material(0.08, spread=0.7, speckle=0.3, gloss=0.45, lost=0.06),
    'glass': Material(0.06, spread=0.3, speckle=0.5, gloss=0.25, lost=0.45, porous=0.3),
    'window': Material(0.10, spread=0.5, speckle=0.5, gloss=0.30, lost=0.55),
    'rubber': Material(0.05, spread=0.2, lost=0.08),
    'chrome': Material(0.30, spread=0.3, speckle=0.6, gloss=0.3, lost=0.05),
    'plate': Material(0.85, spread=0.05, gloss=0.1),
    'canvas': Material(0.38, spread=0.3),
    'skin': Material(0.45, spread=0.15),
    'cloth': Material(0.36, spread=0.45, speckle=0.2),
    'asphalt': Material(0.26, spread=0.12, speckle=0.25),
    'cobble': Material(0.34, spread=0.12, speckle=0.30, fuzz=0.012),
    'concrete': Material(0.4, spread=0.10, speckle=0.12),
    'marking': Material(0.62, spread=0.12, speckle=0.15),
    'slab': Material(0.42, spread=0.10, speckle=0.10),
    'brick_paving': Material(0.34, spread=0.10, speckle=0.18),
    'curb': Material(0.42, spread=0.10),
    'gravel': Material(0.36, spread=0.12, speckle=0.3, fuzz=0.03),
    'grass': Material(0.46, spread=0.10, speckle=0.18, fuzz=0.04),
    'tall_grass': Material(0.5, spread=0.10, speckle=0.22, fuzz=0.2),
    'soil': Material(0.3, spread=0.15, speckle=0.22, fuzz=0.02),
    'brick': Material(0.28, spread=0.25, speckle=0.15),
    'plaster': Material(0.38, spread=0.25, speckle=0.08),
    'stone': Material(0.3, spread=0.20, speckle=0.18),
    'roof_tile': Material(0.28, spread=0.25, speckle=0.15),
    'wood': Material(0.38, spread=0.25, speckle=0.15),
    'steel': Material(0.28, spread=0.35, speckle=0.3, gloss=0.2),
    'wire': Material(0.28, spread=0.25, speckle=0.4, porous=0.68),
    'sign_face': Material(0.93, spread=0.08, speckle=0.08, gloss=0.2),
    'bark': Material(0.36, spread=0.20, speckle=0.2, fuzz=0.01),
    'birch_bark': Material(0.52, spread=0.10, speckle=0.3),
    'leaf': Material(0.45, spread=0.18, speckle=0.35, fuzz=0.05),
    'needle': Material(0.30, spread=0.15, speckle=0.35, fuzz=0.08),
    'twig': Material(0.36, spread=0.15, speckle=0.35, fuzz=0.15),
}
MATERIAL_ID = {name: index for index, name in enumerate(MATERIALS)}

# Column arrays: one look-up per hit instead of one object per hit.
BASE, SPREAD, SPECKLE, GLOSS, FUZZ, LOST, POROUS = np.array(list(MATERIALS.values()), dtype=np.float32).T

# The weakest echo that the sensor still counts, on the scale of `echo_strength`; set so that asphalt seen from a
# 1.73 m high sensor fades away at about 55 m, as it does in the KITTI recordings.
DETECTION_THRESHOLD = 2.6e-4

# Share of echoes whose remission reads 0 although they were counted.
FAINT_SHARE = 0.03


def echo_strength(reflectance: np.ndarray, cosine: np.ndarray, distance: np.ndarray) -> np.ndarray:
    r"""Energy of a diffuse echo: ``reflectance * cos(incidence) * (10 m / distance)^2``.

    Args:
        reflectance: (...,) 0 to 1.
        cosine: (...,) cosine of the angle between ray and surface normal, 0 to 1.
        distance: (...,) meters.

    Example:
        >>> float(echo_strength(np.array(0.5), np.array(1.0), np.array(20.0)))
        0.125
    """
    return reflectance * cosine * (10.0 / distance) ** 2


def detection_probability(strength: np.ndarray) -> np.ndarray:
    """Chance that an echo is counted: a logistic curve in log strength, one half at the threshold.

    Example:
        >>> float(detection_probability(np.array(DETECTION_THRESHOLD)))
        0.5
    """
    ratio = DETECTION_THRESHOLD / np.maximum(strength, 1e-10)
    return 1.0 / (1.0 + ratio * ratio * ratio)


def remission(
    material: np.ndarray, gain: np.ndarray, cosine: np.ndarray, distance: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Remission in steps of 0.01 as KITTI stores it: diffuse part, gloss, distance, speckle.

    Args:
        material: (N,) int, rows of the material table.
        gain: (N,) factor of the instance (its own color).
        cosine: (N,) cosine of the incidence, 0 to 1.
        distance: (N,) meters.

    Returns:
        (N,) float32 in 0 to 0.99. Weak echoes read 0, which is common in the recordings, too.
    """
    diffuse = BASE.take(material) * gain * (0.7 + 0.3 * cosine) * np.exp(-distance / 160.0)
    mirrored = cosine**2
    mirrored *= mirrored
    mirrored *= mirrored  # cosine to the 8th; powers by squaring are ten times as fast
    value = diffuse + GLOSS.take(material) * mirrored * mirrored * mirrored
    value *= 1.0 + SPECKLE.take(material) * rng.standard_normal(len(material), dtype=np.float32)
    value += 0.025 * rng.standard_normal(len(material), dtype=np.float32)
    faint = rng.random(len(material), dtype=np.float32) < FAINT_SHARE
    value = np.where(faint | (value < 0.03), 0.0, np.clip(value, 0.0, 0.99))
    return (np.round(value * 100.0) / 100.0).astype(np.float32)
