# SPDX-License-Identifier: Apache-2.0
"""A drive as a volume: scans of one place, one behind the other in time, as pictures from above."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from clusterplug.core.checks import check_count, check_number
from clusterplug.registry import TRANSFORMS

_MOST = 64  # more different ages than this are no ages of scans


@TRANSFORMS.register_module()
class SweepSlices(BaseTransform):
    """Draw the points of several scans from above, one picture a scan, oldest first: ``img`` (S, size, size, 3) uint8.

    Belongs behind what puts scans together in one frame with their age as a column of the points
    (:class:`~clusterplug.datasets.previous_scans.AddPreviousScans`; ``LoadPointsFromMultiSweeps`` of mmdet3d), and
    before :class:`SliceViews`. The channels of a pixel are the height of its highest point, the logarithm of the number
    of its points, and their mean intensity; x points upwards and y to the left.

    Args:
        radius: half the width of the pictures in meters, around the current sensor.
        size: pixels of a side.
        heights: (lowest, highest) z in meters, which become 1 and 255; 0 is a pixel without a point.
        most_points: number of points in a pixel that is drawn as 255.
        least_slices: where there are fewer scans (at the beginning of a drive) the oldest is repeated.
        age: column with the age.
        intensity: column with the intensity in 0 .. 1; None: its channel stays 0.

    Raises:
        ValueError: an option out of range; points without these columns, or without a finite point.

    Example:
        >>> points = np.array([[1.0, 0, 0, 0.5, 0.0], [5, 5, 1, 0.2, 0.1]])  # x, y, z, intensity, age
        >>> SweepSlices(radius=10, size=4)(dict(points=points))['img'].shape
        (2, 4, 4, 3)
    """

    def __init__(
        self,
        radius: float = 30.0,
        size: int = 64,
        heights: Sequence[float] = (-3.0, 3.0),
        most_points: int = 20,
        least_slices: int = 2,
        age: int = 4,
        intensity: int | None = 3,
    ):
        self.radius, self.size = check_number(radius, 'radius', above=0), check_count(size, 'size', 1)
        if len(heights) != 2 or not heights[0] < heights[1]:
            raise ValueError(f'heights must be (lowest, highest), got {heights}')
        self.heights = (float(heights[0]), float(heights[1]))
        self.most_points = check_count(most_points, 'most_points', 1)
        self.least_slices = check_count(least_slices, 'least_slices', 1)
        self.age = check_count(age, 'age', 3)
        self.intensity = None if intensity is None else check_count(intensity, 'intensity', 3)

    def transform(self, results: dict) -> dict:
        """Add ``img``."""
        points = _array(results['points'])
        wanted = max(self.age, self.intensity or 0)
        if points.ndim != 2 or points.shape[1] <= wanted:
            raise ValueError(
                f'points must have a column {wanted} (age {self.age}, intensity {self.intensity}), got shape '
                f'{points.shape}; put AddPreviousScans before SweepSlices'
            )
        points = points[np.isfinite(points).all(1)]
        if not len(points):
            raise ValueError('points must hold at least one finite point, got none')
        ages = np.unique(points[:, self.age])[::-1]
        if len(ages) > _MOST:
            raise ValueError(
                f'column {self.age} must be the age of the scan of each point, got {len(ages)} different values'
            )
        slices = [self._picture(points[points[:, self.age] == each]) for each in ages]
        slices = [slices[0]] * (self.least_slices - len(slices)) + slices
        results['img'] = np.stack(slices)
        return results

    def _picture(self, points: np.ndarray) -> np.ndarray:
        scale = self.size / (2 * self.radius)
        rows, columns = (np.floor((self.radius - points[:, n]) * scale).astype(np.int64) for n in (0, 1))
        inside = (rows >= 0) & (rows < self.size) & (columns >= 0) & (columns < self.size)
        pixel, points = (rows * self.size + columns)[inside], points[inside]
        counts = np.bincount(pixel, minlength=self.size**2)
        low, high = self.heights
        top = np.zeros(self.size**2)
        np.maximum.at(top, pixel, 1 + 254 * ((points[:, 2] - low) / (high - low)).clip(0, 1))
        share = np.log1p(counts) / np.log1p(self.most_points)
        channels = [top, 255 * share.clip(0, 1), np.zeros(self.size**2)]
        if self.intensity is not None:
            sums = np.bincount(pixel, points[:, self.intensity].clip(0, 1), minlength=self.size**2)
            channels[2] = 255 * sums / np.maximum(counts, 1)
        return np.stack(channels, -1).round().astype(np.uint8).reshape(self.size, self.size, 3)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(radius={self.radius}, size={self.size})'


def _array(points: Any) -> np.ndarray:
    """Points of mmdet3d, a tensor or an array."""
    points = getattr(points, 'tensor', points)
    return np.asarray(points.detach().cpu() if hasattr(points, 'detach') else points, dtype=np.float64)
