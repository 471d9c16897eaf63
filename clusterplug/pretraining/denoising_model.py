# SPDX-License-Identifier: Apache-2.0
"""A diffusion model that a config trains: a denoiser and its loss."""

from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from clusterplug.core.checks import check_choice
from clusterplug.registry import MODELS

__all__ = ['DenoisingModel']


@MODELS.register_module()
class DenoisingModel(BaseModel):
    """Trains a denoiser on the images of a dataset, which are brought to -1 .. 1.

    Args:
        denoiser: Module or config, ``(x, signal, noise) -> clean``, such as
            :class:`~clusterplug.layers.DenoisingUNet`.
        loss: Module or config; default :class:`~clusterplug.losses.DenoisingLoss` of schedule ``'vp'``.
        data_preprocessor: Of mmengine; it moves the batch.

    Batches are ``dict(inputs=...)`` of uint8 images (C, H, W) or (B, C, H, W). ``forward(inputs, mode='loss')`` gives
    ``dict(loss=...)``, the mean over the numbers of an image; ``mode='tensor'`` the images in -1 .. 1. The call
    :meth:`denoise` is what :func:`~clusterplug.analysis.run_sampler`, ``edit_sample`` and
    ``tools/latent_directions.py`` use.

    Raises:
        TypeError: images that are not uint8.

    Example:
        >>> model = DenoisingModel(dict(type='DenoisingUNet', in_channels=3, width=8))
        >>> sorted(model(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), mode='loss'))
        ['loss']
    """

    def __init__(self, denoiser: nn.Module | dict, loss: nn.Module | dict | None = None, data_preprocessor: Any = None):
        super().__init__(data_preprocessor=data_preprocessor)
        loss = dict(type='DenoisingLoss') if loss is None else loss
        self.denoiser = MODELS.build(denoiser) if isinstance(denoiser, dict) else denoiser
        self.loss = MODELS.build(loss) if isinstance(loss, dict) else loss

    def denoise(self, x: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """Return the clean images (B, C, H, W) expected from noisy ones, in -1 .. 1."""
        return self.denoiser(x, signal, noise)

    def forward(self, inputs: Tensor | list[Tensor], data_samples: Any = None, mode: str = 'tensor'):
        check_choice(mode, 'mode', ('tensor', 'loss', 'predict'))
        images = torch.stack(list(inputs)) if not isinstance(inputs, Tensor) else inputs
        if images.dtype != torch.uint8:
            raise TypeError(f'inputs must be uint8 images, got {images.dtype}')
        x = images.to(next(self.parameters()).device).float() / 127.5 - 1
        if mode != 'loss':
            return x
        return dict(loss=self.loss(self.denoiser, x) / max(1, x[0].numel()))
