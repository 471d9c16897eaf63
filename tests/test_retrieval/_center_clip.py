# SPDX-License-Identifier: Apache-2.0
"""A small CenterCLIP, and batches for it."""

import pytest
import torch

pytest.importorskip('mmengine', reason='needs mmengine')
pytest.importorskip('transformers', reason='needs transformers: pip install clusterplug[video]')

from clusterplug.registry import MODELS

SIZES = dict(hidden_size=32, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2)
CONFIG = dict(
    vision_config=SIZES | dict(image_size=32, patch_size=8),
    text_config=SIZES | dict(vocab_size=60, max_position_embeddings=12, num_hidden_layers=2),
    projection_dim=32,
)
CLUSTERING = dict(after_block=2, segments=2, clusters=7)


def model_config(clustering=CLUSTERING, head=None):
    encoders = dict(type='clusterplug.TransformersEncoders', config=CONFIG, clustering=clustering)
    return dict(type='clusterplug.CenterCLIP', encoders=encoders, head=head)


def make(**options):
    torch.manual_seed(0)
    return MODELS.build(model_config(**options))


def batch(pairs=4, frames=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 59, (pairs, 12), generator=generator)
    tokens[:, 8] = 59  # the highest id ends a text
    mask = torch.ones(pairs, frames, dtype=torch.bool)
    mask[0, 4:] = False
    return dict(frames=torch.randn(pairs, frames, 3, 32, 32, generator=generator), frame_mask=mask, tokens=tokens)
