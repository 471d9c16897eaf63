# SPDX-License-Identifier: Apache-2.0
"""torchvision's VisionTransformer."""

from torch import nn

from clusterplug.patch.layout import Layout, class_names, comes_from, first_norm, own

NAME = 'torchvision'


def find(module: nn.Module) -> Layout | None:
    """Return the layout of torchvision's ViT."""
    if not comes_from(module, 'torchvision') or 'VisionTransformer' not in class_names(module):
        return None
    blocks, projection = own(module, 'encoder.layers'), own(module, 'conv_proj')
    if blocks is None or projection is None:
        return None
    return Layout(NAME, module, list(blocks), projection, 1, norm=first_norm)
