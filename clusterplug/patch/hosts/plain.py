# SPDX-License-Identifier: Apache-2.0
"""Transformers in the form of the original ViT, DINO and MAE code: blocks, patch_embed.proj, cls_token."""

from torch import nn

from clusterplug.patch.layout import Layout, comes_from, first_norm, own, own_parameter

NAME = 'plain'
_PREFIX = ('cls_token', 'register_tokens', 'reg_token', 'storage_tokens', 'dist_token', 'distillation_token')
# Parts whose name holds one of these place tokens on a grid inside the blocks, which reduced tokens have not.
_POSITIONS = ('rope', 'rotary', 'rel_pos', 'relative_position', 'freqs_cos')


def find(module: nn.Module) -> Layout | None:
    """Return the layout of a module with ``blocks``, ``patch_embed.proj`` and parameters for tokens in front.

    Blocks of one width over the sequence of all tokens; those with windows, stages or positions of their own are left
    to hosts that know them.
    """
    blocks, projection = own(module, 'blocks'), own(module, 'patch_embed.proj')
    if not isinstance(blocks, (nn.ModuleList, nn.Sequential)) or not isinstance(projection, nn.Conv2d):
        return None
    if comes_from(module, 'timm', 'transformers') or not len(blocks):
        return None
    if any('window_size' in vars(part) for block in blocks for part in block.modules()):
        return None
    names = [name for name, _ in module.named_modules()]
    names += [name for name, _ in module.named_parameters()] + [name for name, _ in module.named_buffers()]
    if any(word in part for name in names for part in name.split('.') for word in _POSITIONS):
        return None
    norms = [norm for block in blocks if (norm := first_norm(block)) is not None]
    if any(value.shape[-1] != projection.out_channels for norm in norms for value in norm.parameters()):
        return None
    prefix = [own_parameter(module, name) for name in _PREFIX]
    num_prefix = sum(value.shape[1] for value in prefix if value is not None and value.dim() == 3)
    return Layout(NAME, module, list(blocks), projection, num_prefix, norm=first_norm)
