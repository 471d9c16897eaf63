# SPDX-License-Identifier: Apache-2.0
"""Points and rotated boxes."""

from torch import Tensor


def inside_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether each point lies in each box; on the top and bottom counts as inside, on the sides does not.

    Args:
        points: (N, 3) meters.
        boxes: (T, 7) x, y of the center, z of the bottom, sizes along x, y, z, angle about z in radians.

    Returns:
        (N, T) bool.

    Example:
        >>> box = torch.tensor([[0.0, 0, 0, 4, 2, 1, torch.pi / 2]])
        >>> inside_boxes(torch.tensor([[0.0, 1.9, 0.5], [1.9, 0.0, 0.5], [0.0, 0.0, 1.5]]), box)[:, 0].tolist()
        [True, False, False]
    """
    x, y, _ = local_coordinates(points, boxes)
    half = boxes[:, 3:6] / 2
    level = (points[:, 2:3] - (boxes[:, 2] + half[:, 2])).abs() <= half[:, 2]
    return level & (x.abs() < half[:, 0]) & (y.abs() < half[:, 1])


def local_coordinates(points: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, T) coordinates of points (N, 3) along the sides of boxes (T, 7), from the centre of their bottom."""
    x, y, z = (points[:, axis, None] - boxes[:, axis] for axis in range(3))
    cos, sin = boxes[:, 6].cos(), boxes[:, 6].sin()
    return x * cos + y * sin, y * cos - x * sin, z
