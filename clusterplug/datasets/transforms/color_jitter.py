# SPDX-License-Identifier: Apache-2.0
"""Changes of color of one small image, without the cost of many tensor operations."""

from collections.abc import Sequence

import mmcv
import numpy as np
import torch
from torch import Tensor

from clusterplug.core.checks import check_number

_GRAY = np.array([0.114, 0.587, 0.2989], np.float32)  # of blue, green, red, as torchvision has them


class FastColorJitter:
    """torchvision's ``v2.ColorJitter`` of one image (3, H, W), several times as fast for uint8 on a CPU.

    The same random numbers are drawn in the same order, so that a seed gives the same image, up to the rounding between
    the steps: torchvision goes back to whole levels after each, here that is done once (a level apart in the mean, at
    most 6 in 800 draws). Images of other types are torchvision's.

    Args:
        strengths: of brightness, contrast, saturation and hue: factors from [max(0, 1 - s), 1 + s], hue moved by
            [-s, s] of the circle.

    Raises:
        ValueError: not four numbers, a negative one, hue above 0.5.
    """

    def __init__(self, strengths: Sequence[float]):
        if len(strengths) != 4:
            raise ValueError(f'color_jitter must be four numbers, got {strengths}')
        names = ('brightness', 'contrast', 'saturation')
        strong = [check_number(each, f'color_jitter ({name})', 0) for name, each in zip(names, strengths)]
        self.strengths = (*strong, check_number(strengths[3], 'color_jitter (hue)', 0, 0.5))
        hue = self.strengths[3]
        self.ranges = [(max(0.0, 1 - each), 1 + each) if each else None for each in strong]
        self.ranges.append((-hue, hue) if hue else None)

    def __call__(self, image: Tensor) -> Tensor:
        if image.dtype != torch.uint8:
            return self._of_torchvision(image)
        order = torch.randperm(4).tolist()
        factors = [None if each is None else torch.empty(1).uniform_(*each).item() for each in self.ranges]
        x = np.ascontiguousarray(image.numpy()[::-1].transpose(1, 2, 0)).astype(np.float32) / 255  # H, W, BGR
        for step in order:
            factor = factors[step]
            if factor is None:
                continue
            if step == 3:
                x = _turned(x, factor)
                continue
            if step == 0:
                x = x * np.float32(factor)
            else:
                gray = x @ _GRAY
                gray = gray.mean() if step == 1 else gray[..., None]
                x = np.float32(factor) * x + np.float32(1 - factor) * gray
            x = x.clip(0, 1, out=x)
        levels = np.rint(x * 255).astype(np.uint8)
        return torch.from_numpy(np.ascontiguousarray(levels.transpose(2, 0, 1)[::-1]))

    def _of_torchvision(self, image: Tensor) -> Tensor:
        from torchvision.transforms import v2

        return v2.ColorJitter(*self.strengths)(image)


def _turned(x: np.ndarray, share: float) -> np.ndarray:
    """The image with its hue moved by a share of the circle."""
    hsv = mmcv.bgr2hsv(x)  # of float32: hue in degrees
    hsv[..., 0] = (hsv[..., 0] + 360 * share) % 360
    return mmcv.hsv2bgr(hsv)
