# SPDX-License-Identifier: Apache-2.0
"""open_clip's VisionTransformer: the image tower of CLIP models, OpenAI's weights among them."""

from torch import nn

from clusterplug.patch.layout import Layout, comes_from, first_norm, own

NAME = 'open_clip'


def find(module: nn.Module) -> Layout | None:
    """Return the layout of the image tower of an open_clip model."""
    if type(module).__name__ != 'VisionTransformer' or not comes_from(module, 'open_clip'):
        return None
    blocks, projection = own(module, 'transformer.resblocks'), own(module, 'conv1')
    if blocks is None or projection is None or not vars(own(module, 'transformer')).get('batch_first', True):
        return None  # Blocks that are not batch first take (tokens, batch, channels).
    return Layout(NAME, module, list(blocks), projection, 1, norm=first_norm)
