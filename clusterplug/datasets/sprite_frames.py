# SPDX-License-Identifier: Apache-2.0
"""Single frames of the moving sprites, drawn at first use: images whose factors are known."""

import numpy as np
import torch
from torch.utils.data import Dataset

from clusterplug.core.checks import check_count
from clusterplug.datasets.moving_sprites import all_sprites, render_sprite
from clusterplug.registry import DATASETS

__all__ = ['SpriteFrames']


@DATASETS.register_module()
class SpriteFrames(Dataset):
    """Images (3, size, size) uint8 of one sprite on a patchy background, all sprites in turn.

    Args:
        num_images: N.
        size: Pixels, at least 16.
        seed: Of everything random; another seed for other images.

    Indexing gives ``dict(inputs=image)``; image i shows ``all_sprites()[i % 144]``. All are drawn when one is asked
    for, so that each epoch sees the same ones.

    Raises:
        ValueError: A number out of range.

    Example:
        >>> SpriteFrames(4, 16)[3]['inputs'].shape
        torch.Size([3, 16, 16])
    """

    def __init__(self, num_images: int = 4096, size: int = 24, seed: int = 0):
        self.num_images = check_count(num_images, 'num_images', 1)
        self.size, self.seed = check_count(size, 'size', 16), check_count(seed, 'seed')
        self._images = None

    @property
    def images(self) -> torch.Tensor:
        """(N, 3, size, size) uint8."""
        if self._images is None:
            sprites, frames = all_sprites(), []
            for number in range(self.num_images):
                generator = np.random.default_rng([self.seed, number])
                frames.append(render_sprite(sprites[number % len(sprites)], 1, self.size, generator)[0])
            self._images = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()
        return self._images

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=self.images[index])
