# SPDX-License-Identifier: Apache-2.0
"""VisionTransformer of mmsegmentation and mmpretrain, alone or as the backbone of a segmentor or classifier."""

from torch import nn

from clusterplug.patch.layout import Layout, class_names, first_norm, own

NAME = 'mm'


def find(module: nn.Module) -> Layout | None:
    """Return the layout of a ViT with ``layers``, ``patch_embed.projection`` and ``out_indices``."""
    blocks, projection = own(module, 'layers'), own(module, 'patch_embed.projection')
    if 'VisionTransformer' not in class_names(module) or not isinstance(projection, nn.Conv2d):
        return None
    if not isinstance(blocks, nn.ModuleList) or 'out_indices' not in vars(module):
        return None
    number = len(blocks)
    indices = [module.out_indices] if isinstance(module.out_indices, int) else module.out_indices
    # mmpretrain counts its tokens in front; mmsegmentation has a class token or none.
    num_prefix = vars(module).get('num_extra_tokens')
    if num_prefix is None:
        num_prefix = int(module.with_cls_token)
    return Layout(
        NAME, module, list(blocks), projection, num_prefix, norm=first_norm, taps=[index % number for index in indices]
    )
