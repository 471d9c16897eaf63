# SPDX-License-Identifier: Apache-2.0
"""Several augmented crops of an image, some large, some small."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from torch import Tensor

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.datasets.transforms.color_jitter import FastColorJitter
from clusterplug.registry import TRANSFORMS

_OVERSHOOT = 0.1  # of bicubic resizing at edges; such levels mean white and black


def image_tensor(image: np.ndarray, channel_order: str) -> Tensor:
    """(3, H, W) RGB tensor of an image (H, W, 3), or (H, W) repeated three times."""
    if not isinstance(image, np.ndarray):
        raise TypeError(f'img must be a NumPy array (H, W, 3), got {type(image).__name__}')
    if image.ndim == 2:
        image = image[..., None].repeat(3, 2)
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f'img must be (H, W) or (H, W, 3), got shape {image.shape}')
    if image.shape[2] == 1:
        image = image.repeat(3, 2)
    if channel_order == 'bgr':
        image = image[..., ::-1]
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _check_levels(image: Tensor) -> None:
    """Raise where changes of color would cut values off: they take levels 0 .. 255 as uint8, or floats 0 .. 1."""
    if image.dtype == torch.uint8:
        return
    if not image.is_floating_point():
        raise TypeError(f'img must be uint8, or floats within 0 .. 1, got {image.dtype}')
    low, high = (float(each) for each in image.aminmax())
    if not -_OVERSHOOT <= low <= high <= 1 + _OVERSHOOT:
        raise ValueError(
            f'img must be uint8, or floats within 0 .. 1, got floats from {low:g} to {high:g}, which changes of color '
            f'would cut off; load images without to_float32'
        )


@TRANSFORMS.register_module()
class MultiCrop(BaseTransform):
    """Cut crops of several sizes out of ``img`` and change their colors: ``views``, a list of RGB tensors (3, h, w).

    Args:
        num_crops: crops of each size; the full crops come first.
        sizes: their side in pixels.
        scales: share of the area of the image that a crop of each size covers, (least, most).
        flip: probability of a horizontal flip.
        color_jitter: strength of changes of brightness, contrast, saturation and hue.
        jitter_prob: probability of color jitter.
        gray_prob: probability of a gray image.
        blur_prob: probability of Gaussian blur.
        blur_sigma: its standard deviation in pixels, (least, most).
        channel_order: order of the channels of ``img``: ``'bgr'`` (as mmcv loads them) or ``'rgb'``.

    Random numbers come from torch's global generator, which data loaders seed in every worker.

    Raises:
        ValueError, TypeError: lists of different lengths, numbers out of range; an image that is neither uint8 nor
            floats within 0 .. 1. An image that is smaller than a crop is enlarged, with one warning.

    Source: Caron et al., NeurIPS 2020, section 4 and the official code's scripts: 2 x 224 + 6 x 96, without
    solarization. **Differs from the authors' code**: blur is drawn from torch's generator (theirs from NumPy's, which
    was the same in all workers); operations of torchvision v2 on tensors and OpenCV, so that pixels differ by rounding.

    Example:
        >>> crops = MultiCrop((2, 4), (32, 16), ((0.3, 1), (0.1, 0.3)))
        >>> views = crops(dict(img=np.zeros((40, 50, 3), np.uint8)))['views']
        >>> [tuple(view.shape) for view in views][1:3]
        [(3, 32, 32), (3, 16, 16)]
    """

    def __init__(
        self,
        num_crops: Sequence[int] = (2, 6),
        sizes: Sequence[int] = (224, 96),
        scales: Sequence[Sequence[float]] = ((0.14, 1.0), (0.05, 0.14)),
        flip: float = 0.5,
        color_jitter: Sequence[float] = (0.8, 0.8, 0.8, 0.2),
        jitter_prob: float = 0.8,
        gray_prob: float = 0.2,
        blur_prob: float = 0.5,
        blur_sigma: Sequence[float] = (0.1, 2.0),
        channel_order: str = 'bgr',
    ):
        if not len(num_crops) == len(sizes) == len(scales) or not num_crops:
            raise ValueError(
                f'num_crops, sizes and scales must have one entry a size, got {len(num_crops)}, {len(sizes)} and '
                f'{len(scales)}'
            )
        self.num_crops = [check_count(number, 'num_crops', 1) for number in num_crops]
        self.sizes = [check_count(size, 'sizes', 1) for size in sizes]
        for scale in scales:
            if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
                raise ValueError(f'scales must be pairs (least, most) with 0 < least <= most <= 1, got {scale}')
        probabilities = dict(flip=flip, jitter_prob=jitter_prob, gray_prob=gray_prob, blur_prob=blur_prob)
        for name, value in probabilities.items():
            check_number(value, name, 0, 1)
        jitter = FastColorJitter(color_jitter)
        check_number(blur_sigma[0], 'blur_sigma', above=0)
        self.channel_order = check_choice(channel_order, 'channel_order', ('bgr', 'rgb'))
        from torchvision.transforms import v2

        kernel = 2 * math.ceil(2 * blur_sigma[1]) + 1
        blurs = [v2.GaussianBlur(min(kernel, 2 * ((size + 1) // 2) - 1), tuple(blur_sigma)) for size in self.sizes]
        self._pipelines = [
            v2.Compose([
                v2.RandomResizedCrop(size, scale=tuple(scale), antialias=True),
                v2.RandomHorizontalFlip(flip),
                v2.RandomApply([jitter], jitter_prob),
                v2.RandomGrayscale(gray_prob),
                v2.RandomApply([blur], blur_prob),
            ])
            for size, scale, blur in zip(self.sizes, scales, blurs)
        ]  # fmt: skip
        self._warned = False

    def transform(self, results: dict) -> dict:
        """Add ``views``; ``img`` stays."""
        image = image_tensor(results['img'], self.channel_order)
        _check_levels(image)
        if not self._warned and min(image.shape[1:]) < max(self.sizes):
            self._warned = True
            warnings.warn(
                f'MultiCrop enlarges images of {tuple(image.shape[1:])} pixels to crops of {max(self.sizes)}; smaller '
                f'sizes train faster and lose nothing',
                stacklevel=2,
            )
        results['views'] = [
            pipeline(image) for pipeline, number in zip(self._pipelines, self.num_crops) for _ in range(number)
        ]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(num_crops={self.num_crops}, sizes={self.sizes})'
