"""Image encoders of Segment Anything: transformers, segment_anything and timm have the same blocks.

Blocks take maps and attend in windows, but for a few that see the whole map. The map is clustered as one; windows
shrink with it, each block pads its own input and drops that again, so padding never becomes a token. Tables of
relative positions are interpolated by the stock code. The encoder of version 2 (Hiera) has stages; tokens are reduced
inside one of them.
"""

from torch import nn

from clusterplug.patch._hosts import Layout, class_names, first_norm
from clusterplug.patch._windows import Windows

NAME = 'sam'
_HIERA = {'Sam2HieraDetModel', 'HieraDet', 'Hiera'}
_ENCODERS = {'SamVisionEncoder', 'SamHQVisionEncoder', 'ImageEncoderViT', 'VisionTransformerSAM'}


def find(module: nn.Module) -> Layout | None:
    """Return the layout of a SAM image encoder."""
    if class_names(module) & _HIERA and hasattr(module, 'stage_ends'):
        return _hiera(module)
    if not class_names(module) & _ENCODERS:
        return None
    blocks = getattr(module, 'layers', None) or getattr(module, 'blocks', None)
    projection = getattr(module.patch_embed, 'projection', None) or getattr(module.patch_embed, 'proj', None)
    if blocks is None or projection is None or getattr(module, 'rope_global', None) is not None:
        return None
    return Layout(NAME, module, list(blocks), projection, maps=True, norm=first_norm, resize=Windows(), scopes=[module])


def _hiera(module: nn.Module) -> Layout:
    blocks = list(module.blocks)
    projection = getattr(module.patch_embed, 'projection', None) or module.patch_embed.proj
    stages, first = [], 0
    for end in module.stage_ends:
        # The block that halves the map runs on all tokens.
        pools = any(getattr(blocks[first], name, None) is not None for name in ('query_stride', 'q_stride'))
        stages.append(range(first + pools, end + 1))
        first = end + 1
    return Layout(
        NAME, module, blocks, projection, maps=True, norm=first_norm, resize=Windows(), scopes=[module], stages=stages
    )
