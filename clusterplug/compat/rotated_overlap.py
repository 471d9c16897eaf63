# SPDX-License-Identifier: Apache-2.0
"""Overlap of turned rectangles in the plane, exact also for boxes whose sides coincide.

mmcv's ``box_iou_rotated`` looks for crossings of the sides and their convex hull, and loses area when sides lie on
each other: a box and the same box turned by half a turn can have IoU 0 there.
"""

import torch
from torch import Tensor

_PAIRS = 50_000  # at a time: about 40 MB


def rotated_overlap(boxes: Tensor, others: Tensor) -> Tensor:
    r"""Area common to each pair of turned rectangles.

    Seen from the second rectangle, the outline of the first is a closed path. Moving every point of it to the nearest
    point of the second rectangle changes no winding number inside, so the area that the moved path encloses is the
    area in common: :math:`\frac12 \sum_i c_i \times c_{i+1}`, with corners where an edge crosses one of the four lines.

    Args:
        boxes: (N, 5) center x, center y, size along x, size along y, angle from x to y in radians.
        others: (M, 5) likewise.

    Returns:
        (N, M) areas in float64, on the device of ``boxes``.

    Example:
        >>> square = torch.tensor([[0.0, 0.0, 2.0, 2.0, 0.0]])
        >>> turned = torch.tensor([[0.0, 0.0, 2.0, 2.0, torch.pi], [1.0, 0.0, 2.0, 2.0, 0.0]])
        >>> [round(area, 6) for area in rotated_overlap(square, turned)[0].tolist()]
        [4.0, 2.0]
    """
    boxes, others = boxes.double(), others.double()
    result = boxes.new_zeros(len(boxes), len(others))
    if not result.numel():
        return result
    reach = (boxes[:, 2:4].norm(dim=1)[:, None] + others[:, 2:4].norm(dim=1)) / 2
    near = torch.cdist(boxes[:, :2], others[:, :2], compute_mode='donot_use_mm_for_euclid_dist') < reach
    rows, columns = near.nonzero(as_tuple=True)
    for some, more in zip(rows.split(_PAIRS), columns.split(_PAIRS), strict=True):
        result[some, more] = _pair_overlap(boxes[some], others[more])
    return result


def rotated_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """(N, M) intersection over union of :func:`rotated_overlap`, 0 for boxes without area."""
    common = rotated_overlap(boxes, others)
    areas = boxes[:, 2:4].double().prod(1)[:, None] + others[:, 2:4].double().prod(1)
    return common / (areas - common).clamp_min(1e-12)


def _pair_overlap(boxes: Tensor, others: Tensor) -> Tensor:
    """(P,) overlap of pairs of boxes (P, 5)."""
    cos, sin = others[:, 4].cos(), others[:, 4].sin()
    x, y = _corners(boxes, others[:, :2])
    x, y = cos[:, None] * x + sin[:, None] * y, cos[:, None] * y - sin[:, None] * x
    half = others[:, 2:4, None] / 2
    start = torch.stack([x, y], 1)  # (P, 2, 4)
    step = start.roll(-1, 2) - start
    # where each edge crosses the lines of the four sides, between its ends; parallel ones cross nowhere
    times = torch.stack([(half - start) / step, (-half - start) / step], -1)
    times = times.nan_to_num(0, 0, 0).clamp(0, 1).permute(0, 2, 1, 3).flatten(2).sort(2).values
    times = torch.cat([torch.zeros_like(times[..., :1]), times], 2)  # (P, 4, 5); the end is the next edge's start
    path = (start[..., None] + step[..., None] * times[:, None]).flatten(2)  # (P, 2, 20)
    path = torch.maximum(torch.minimum(path, half), -half)
    following = path.roll(-1, 2)
    return (path[:, 0] * following[:, 1] - path[:, 1] * following[:, 0]).sum(1).abs() / 2


def _corners(boxes: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    """(P, 4) x and y of the corners, counter-clockwise, relative to ``origin`` (P, 2)."""
    x = boxes[:, 2:3] / 2 * boxes.new_tensor([-1, 1, 1, -1])
    y = boxes[:, 3:4] / 2 * boxes.new_tensor([-1, -1, 1, 1])
    cos, sin = boxes[:, 4:5].cos(), boxes[:, 4:5].sin()
    centers = boxes[:, :2] - origin
    return cos * x - sin * y + centers[:, :1], sin * x + cos * y + centers[:, 1:]
