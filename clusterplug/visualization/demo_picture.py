# SPDX-License-Identifier: Apache-2.0
"""A drawn landscape, for looking at clusters without a photograph."""

import numpy as np


def demo_picture(size: int = 224, seed: int = 0) -> np.ndarray:
    """Draw sky, sun, a hill, a meadow, a house and two trees, with a little noise.

    Args:
        size: Pixels of each side, at least 16.
        seed: Of the noise.

    Returns:
        (size, size, 3) uint8 RGB.

    Raises:
        ValueError: ``size`` is too small to draw in.

    Example:
        >>> demo_picture(64).shape
        (64, 64, 3)
    """
    if size < 16:
        raise ValueError(f'size must be at least 16, got {size}')
    row, column = (np.mgrid[:size, :size] + 0.5) / size
    picture = np.empty((size, size, 3))
    picture[:] = np.array([110, 170, 235]) + row[..., None] * np.array([90, 60, 15])
    hill = row > 0.55 - 0.22 * np.exp(-(((column - 0.25) / 0.18) ** 2)) - 0.12 * np.exp(-(((column - 0.85) / 0.2) ** 2))
    meadow = row > 0.62 + 0.03 * np.sin(6 * column)
    wall = (np.abs(column - 0.58) < 0.13) & (row > 0.48) & (row < 0.74)
    roof = (row > 0.34) & (row < 0.48) & (np.abs(column - 0.58) < 1.25 * (row - 0.34))
    door = (np.abs(column - 0.58) < 0.028) & (row > 0.61) & (row < 0.74)
    window = (np.abs(np.abs(column - 0.58) - 0.08) < 0.025) & (np.abs(row - 0.56) < 0.028)
    shapes = [
        ((row - 0.15) ** 2 + (column - 0.8) ** 2 < 0.006, (255, 225, 90)),
        (hill, (110, 125, 150)),
        (meadow, (95, 165, 70)),
        (wall, (225, 205, 175)),
        (roof, (180, 60, 45)),
        (door, (105, 65, 40)),
        (window, (70, 95, 140)),
    ]
    for middle, foot in ((0.16, 0.82), (0.86, 0.88)):
        shapes.append(((np.abs(column - middle) < 0.016) & (row > foot - 0.18) & (row < foot), (95, 65, 40)))
        shapes.append(((row - foot + 0.24) ** 2 + (column - middle) ** 2 < 0.0095, (35, 105, 50)))
    for where, color in shapes:
        picture[where] = color
    noise = np.random.default_rng(seed).normal(0, 6, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)
