# SPDX-License-Identifier: Apache-2.0
"""transformers: ViT, DeiT, DINOv2, DINOv2 with registers, DINOv3, CLIP and SigLIP vision, BEiT, DPT, Depth Anything."""

import math

import torch
from torch import nn

from clusterplug.patch._geometry import SharedTable, coordinate_steps, joined_steps
from clusterplug.patch.layout import Layout, class_names, comes_from, first_norm, own, own_parameter

NAME = 'transformers'

# Class of the trunk -> the attribute paths of its blocks and of its patch projection. Backbones and models for a task
# hold one of these or have the same parts.
_TRUNKS = {
    'ViTModel': 'embeddings.patch_embeddings.projection',
    'DeiTModel': 'embeddings.patch_embeddings.projection',
    'Dinov2Model': 'embeddings.patch_embeddings.projection',
    'Dinov2Backbone': 'embeddings.patch_embeddings.projection',
    'Dinov2WithRegistersModel': 'embeddings.patch_embeddings.projection',
    'Dinov2WithRegistersBackbone': 'embeddings.patch_embeddings.projection',
    'DINOv3ViTModel': 'embeddings.patch_embeddings',
    'DINOv3ViTBackbone': 'embeddings.patch_embeddings',
    'CLIPVisionModel': 'embeddings.patch_embedding',
    'CLIPVisionTransformer': 'embeddings.patch_embedding',
    'SiglipVisionModel': 'embeddings.patch_embedding',
    'SiglipVisionTransformer': 'embeddings.patch_embedding',
    'BeitModel': 'embeddings.patch_embeddings.projection',
    'BeitBackbone': 'embeddings.patch_embeddings.projection',
    'DPTModel': 'embeddings.patch_embeddings.projection',
}
_BLOCKS = ('layers', 'layer', 'encoder.layers', 'encoder.layer', 'model.layers', 'model.layer')
_PREFIX = ('cls_token', 'class_embedding', 'distillation_token', 'register_tokens')


def find(module: nn.Module) -> Layout | None:
    """Return the layout of a vision transformer of transformers."""
    name = next((name for name in _TRUNKS if name in class_names(module)), None)
    if name is None or not comes_from(module, 'transformers'):
        return None
    blocks = next((found for path in _BLOCKS if (found := own(module, path)) is not None), None)
    projection = own(module, _TRUNKS[name])
    if projection is None and name == 'DPTModel':
        projection = own(module, 'embeddings.projection')  # of the hybrid, over the features of its ResNet
    if blocks is None or projection is None:
        return None
    beit = name.startswith('Beit')
    rotary = name.startswith('DINOv3')
    return Layout(
        NAME,
        module,
        list(blocks),
        projection,
        _num_prefix(own(module, 'embeddings')),
        norm=first_norm,
        needs_grid=beit and _has_relative_positions(module),
        adapt=_Beit(module) if beit else _Rotary(module) if rotary else without_mask,
        scopes=[module, *_between(module, blocks)],
    )


def _between(trunk: nn.Module, blocks: nn.Module) -> list[nn.Module]:
    """Return the modules inside the trunk that hold the blocks, outermost first."""
    return [module for module in trunk.modules() if module is not trunk and blocks in module.children()]


def _num_prefix(embeddings: nn.Module) -> int:
    count = 0
    for name in _PREFIX:
        value = own_parameter(embeddings, name)
        if value is not None:
            count += value.shape[1] if value.dim() == 3 else 1
    return count


def without_mask(block: nn.Module, args: tuple, kwargs: dict, table: SharedTable) -> tuple[tuple, dict]:
    """Drop the mask of the full map. It says nothing when it is made by torch.compile, in place of None."""
    mask = args[1] if len(args) > 1 else kwargs.get('attention_mask')
    if mask is None:
        return args, kwargs
    if not torch.compiler.is_compiling():
        raise ValueError(
            'attention_mask must be None in a patched transformer, as reduced tokens have other neighbors; '
            'call clusterplug.patch.remove(model) first'
        )
    if len(args) > 1:
        return (args[0], None, *args[2:]), kwargs
    return args, {**kwargs, 'attention_mask': None}


class _Rotary:
    """Rotary embeddings of DINOv3 at the positions of reduced tokens."""

    def __init__(self, trunk: nn.Module):
        self.trunk = trunk

    def __call__(self, block: nn.Module, args: tuple, kwargs: dict, table: SharedTable) -> tuple[tuple, dict]:
        args, kwargs = without_mask(block, args, kwargs, table)
        cosine, sine = kwargs['position_embeddings']
        return args, {**kwargs, 'position_embeddings': table.rotation(cosine, sine, self._steps)}

    def _steps(self, size: tuple[int, int]):
        bands = 2 * math.pi * own(self.trunk, 'rope_embeddings').inv_freq.float()
        units, config = coordinate_steps(size, 'centered'), self.trunk.config
        stretch = 1.0
        if self.trunk.training:
            stretch = (config.pos_embed_jitter or 1.0) * (config.pos_embed_rescale or 1.0)
        return joined_steps(bands, units, halves=True), stretch


def _has_relative_positions(module: nn.Module) -> bool:
    config = module.config
    return config.use_relative_position_bias or config.use_shared_relative_position_bias


class _Beit:
    """Relative positions of the grid: the blocks interpolate their own tables, the shared one is asked again."""

    def __init__(self, trunk: nn.Module):
        self.trunk = trunk

    def __call__(self, block: nn.Module, args: tuple, kwargs: dict, table: SharedTable) -> tuple[tuple, dict]:
        if not _has_relative_positions(self.trunk):
            return args, kwargs
        patch = self.trunk.config.patch_size
        height, width = table.grid
        kwargs = {**kwargs, 'resolution': (height * patch, width * patch), 'interpolate_pos_encoding': True}
        shared = getattr(self.trunk, 'shared_position_bias', None)
        if shared is None and hasattr(self.trunk, 'encoder'):
            shared = getattr(self.trunk.encoder, 'relative_position_bias', None)
        if shared is not None:
            kwargs['attention_mask'] = shared(
                table.grid, interpolate_pos_encoding=True, dim_size=table.num_prefix + height * width
            )
        return args, kwargs
