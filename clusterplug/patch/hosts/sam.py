# SPDX-License-Identifier: Apache-2.0
"""Image encoders of Segment Anything: transformers, segment_anything and timm have the same blocks.

Blocks take maps and attend in windows, but for a few that see the whole map. The map is clustered as one; windows
shrink with it, each block pads its own input and drops that again, so padding never becomes a token. Tables of
relative positions are interpolated by the stock code. The encoder of version 2 (Hiera) has stages; tokens are reduced
inside one of them.
"""

from torch import nn

from clusterplug.patch._windows import Windows
from clusterplug.patch.layout import Layout, class_names, comes_from, first_norm, own

NAME = 'sam'
# timm and Meta have another Hiera, without windows, whose tokens are not in the order of the map.
_HIERA = (('Sam2HieraDetModel', ('transformers',)), ('HieraDet', ('timm',)), ('Hiera', ('sam2',)))
_ENCODERS = {'SamVisionEncoder', 'SamHQVisionEncoder', 'ImageEncoderViT', 'VisionTransformerSAM'}


def find(module: nn.Module) -> Layout | None:
    """Return the layout of a SAM image encoder."""
    projection = own(module, 'patch_embed.projection') or own(module, 'patch_embed.proj')
    if projection is None:
        return None
    if any(name in class_names(module) and comes_from(module, *packages) for name, packages in _HIERA):
        return _hiera(module, projection)
    if not class_names(module) & _ENCODERS:
        return None
    blocks = own(module, 'layers') or own(module, 'blocks')
    if blocks is None or own(module, 'rope_global') is not None:
        return None
    # SAM-HQ hands out the maps of the blocks without windows; encoders of other packages may do so as well.
    known = comes_from(module, 'transformers', 'segment_anything', 'timm') and 'SamHQVisionEncoder' not in class_names(
        module
    )
    taps = [] if known else [index for index, block in enumerate(blocks) if vars(block).get('window_size') == 0]
    return Layout(
        NAME,
        module,
        list(blocks),
        projection,
        maps=True,
        norm=first_norm,
        resize=Windows(),
        scopes=[module],
        taps=taps,
    )


def _hiera(module: nn.Module, projection: nn.Module) -> Layout | None:
    blocks = own(module, 'blocks')
    if blocks is None or 'stage_ends' not in vars(module):
        return None
    blocks, stages, first = list(blocks), [], 0
    for end in module.stage_ends:
        # The block that halves the map runs on all tokens.
        pools = any(getattr(blocks[first], name, None) is not None for name in ('query_stride', 'q_stride'))
        stages.append(range(first + pools, end + 1))
        first = end + 1
    return Layout(
        NAME, module, blocks, projection, maps=True, norm=first_norm, resize=Windows(), scopes=[module], stages=stages
    )
