# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds of patched networks are those that the paper's Segmenter reports."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clusterplug import patch

timm = pytest.importorskip('timm', reason='needs timm: pip install timm')

CHANNELS = 1024


@pytest.mark.parametrize(
    ('size', 'num_classes', 'start', 'cells', 'published'),
    [
        (640, 150, None, None, 659),  # ADE20K
        (640, 150, 16, 28, 530),
        (640, 150, 10, 28, 444),
        (640, 150, 8, 20, 309),
        (768, 19, 12, 32, 691),  # Cityscapes
        (480, 60, None, None, 339),  # Pascal Context
        (480, 60, 14, 20, 251),
        (480, 60, 12, 15, 201),
    ],
)
def test_segmenter_vit_large(size, num_classes, start, cells, published):
    with torch.device('meta'):
        encoder = timm.create_model('vit_large_patch16_224', img_size=size, num_classes=0, global_pool='').eval()
    if start is not None:
        patch.apply(encoder, 'expedit', start=start, grid=(cells, cells))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        encoder(torch.empty(1, 3, size, size, device='meta'))
    # In the paper's Segmenter the two blocks of the mask transformer run on the cluster tokens and the classes too.
    tokens = (cells or size // 16) ** 2 + num_classes
    decoder = 2 * (12 * tokens * CHANNELS**2 + 2 * tokens**2 * CHANNELS)
    assert (counter.get_total_flops() / 2 + decoder) / 1e9 == pytest.approx(published, rel=0.02)
