# SPDX-License-Identifier: Apache-2.0
"""The step from a list of samples to a batch on the device."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor

from clusterplug.registry import MODELS

CLIP_MEAN = (122.771, 116.746, 104.094)
CLIP_STD = (68.501, 66.632, 70.323)


@MODELS.register_module()
class VideoTextPreprocessor(BaseDataPreprocessor):
    """Stack videos, put captions into one batch, scale uint8 frames on the device.

    Args:
        mean: Of each color, in 0 to 255. Defaults to CLIP's.
        std: Likewise.

    Example:
        >>> item = dict(frames=torch.zeros(4, 3, 8, 8, dtype=torch.uint8), frame_mask=torch.ones(4, dtype=torch.bool),
        ...             tokens=torch.ones(2, 5, dtype=torch.int64))
        >>> batch = VideoTextPreprocessor()(dict(inputs={k: [v] for k, v in item.items()}, data_samples=[None]))
        >>> {name: tuple(value.shape) for name, value in batch['inputs'].items()}
        {'frames': (1, 4, 3, 8, 8), 'frame_mask': (1, 4), 'tokens': (2, 5), 'num_captions': (1,)}
    """

    def __init__(self, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD):
        super().__init__()
        self.register_buffer('mean', torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Make a batch.

        Args:
            data: ``inputs``: dict of lists ``frames`` (T, 3, H, W) uint8 or (T, C) features, ``frame_mask`` (T,),
                ``tokens`` (C, L); and ``data_samples``.
            training: Not used.

        Returns:
            ``inputs``: frames (B, T, ...), frame_mask (B, T), tokens (all captions, L), num_captions (B,) on the CPU;
            and ``data_samples``.

        Raises:
            ValueError: Videos of a batch have different sizes.
        """
        inputs = data['inputs']
        num_captions = torch.tensor([len(tokens) for tokens in inputs['tokens']])
        inputs = self.cast_data(inputs)
        shapes = {tuple(frames.shape) for frames in inputs['frames']}
        if len(shapes) > 1:
            raise ValueError(f'videos of a batch must have one size, got {sorted(shapes)}; crop them in the pipeline')
        frames = torch.stack(list(inputs['frames']))
        if frames.dtype == torch.uint8:
            frames = (frames.float() - self.mean) / self.std
        batch = dict(
            frames=frames, frame_mask=torch.stack(list(inputs['frame_mask'])), tokens=torch.cat(list(inputs['tokens'])),
            num_captions=num_captions,
        )  # fmt: skip
        return dict(inputs=batch, data_samples=data.get('data_samples'))
