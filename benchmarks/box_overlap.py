# SPDX-License-Identifier: Apache-2.0
"""Rotated boxes compared with themselves after a quarter, half or whole turn, where the overlap is known to be 1.

    PYTHONPATH=. python benchmarks/box_overlap.py     # needs mmcv with its operators; some seconds

Counts how often ``mmcv.ops.box_iou_rotated``, and the exact clipping that replaces it in KITTI's evaluation here, miss
that by more than 1e-4 on a CPU. A quarter turn exchanges the sides. Independent of the machine's speed.
"""

import argparse
import math

import torch
from mmcv.ops import box_iou_rotated

from clusterplug.compat.rotated_overlap import rotated_iou


def turned(boxes: torch.Tensor, quarters: torch.Tensor) -> torch.Tensor:
    """The same rectangles (x, y, length, width, angle), written with another angle."""
    odd = quarters % 2 == 1
    sides = torch.where(odd[:, None], boxes[:, [3, 2]], boxes[:, 2:4])
    return torch.cat([boxes[:, :2], sides, boxes[:, 4:] + quarters[:, None] * math.pi / 2], 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--boxes', type=int, default=3000)
    number = parser.parse_args().boxes
    generator = torch.Generator().manual_seed(0)
    random = torch.rand(number, 5, generator=generator)
    low, high = torch.tensor([-40.0, -40.0, 0.5, 0.5, -math.pi]), torch.tensor([40.0, 40.0, 5.0, 3.0, math.pi])
    boxes = low + (high - low) * random
    quarters = torch.tensor([1, 2, 4])[torch.randint(0, 3, (number,), generator=generator)]
    others = turned(boxes, quarters)
    found = {
        'mmcv.ops.box_iou_rotated': box_iou_rotated(boxes, others, aligned=True),
        'clusterplug': rotated_iou(boxes.double(), others.double()).diagonal(),
    }
    for name, overlap in found.items():
        error = (overlap - 1).abs()
        print(f'{name}: {int((error > 1e-4).sum())} of {number} off by more than 1e-4, largest error {error.max():.2g}')


if __name__ == '__main__':
    main()
