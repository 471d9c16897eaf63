"""Image encoders of Segment Anything: transformers, segment_anything and timm have the same blocks.

Blocks take maps and attend in windows, but for a few that see the whole map. The map is clustered as one; windows
shrink with it, each block pads its own input and drops that again, so padding never becomes a token. Tables of
relative positions are interpolated by the stock code.
"""

import math

from torch import nn

from clusterplug.patch._hosts import Layout, class_names, first_norm

NAME = 'sam'
_ENCODERS = {'SamVisionEncoder', 'SamHQVisionEncoder', 'ImageEncoderViT', 'VisionTransformerSAM'}


def find(module: nn.Module) -> Layout | None:
    """Return the layout of a SAM image encoder."""
    if not class_names(module) & _ENCODERS:
        return None
    blocks = getattr(module, 'layers', None) or getattr(module, 'blocks', None)
    projection = getattr(module.patch_embed, 'projection', None) or getattr(module.patch_embed, 'proj', None)
    if blocks is None or projection is None or getattr(module, 'rope_global', None) is not None:
        return None
    return Layout(
        NAME, module, list(blocks), projection, maps=True, norm=first_norm, resize=Windows(blocks), scopes=[module]
    )


class Windows:
    """Scales the windows of blocks with the map."""

    def __init__(self, blocks):
        self.sizes = {block: block.window_size for block in blocks}

    def do(self, block: nn.Module, size: tuple[int, int], grid: tuple[int, int]) -> None:
        """Set the window for a map that was reduced from ``size`` to ``grid``: about as many windows as before."""
        window = self.sizes[block]
        if window:
            block.window_size = max(math.ceil(cells / math.ceil(length / window)) for length, cells in zip(size, grid))

    def undo(self, block: nn.Module) -> None:
        """Set the window that the block had."""
        block.window_size = self.sizes[block]
