# SPDX-License-Identifier: Apache-2.0
"""Swin and Swin V2 of timm, torchvision, transformers (with Mask2Former's and MaskFormer's), and the mm packages.

Tokens are reduced inside one stage, and full again at its end, before norms and patch merging. The map is clustered as
one; its windows keep their number and shrink, as do their shifts; biases of relative positions are interpolated at the
distances of the clusters (V2: computed for them).
"""

from torch import nn

from clusterplug.patch._geometry import SharedTable
from clusterplug.patch._windows import ShiftedWindows
from clusterplug.patch.layout import Layout, class_names, comes_from, first_norm, own

NAME = 'swin'
_CLASSES = {
    'SwinTransformer', 'SwinTransformerV2', 'SwinModel', 'Swinv2Model', 'MaskFormerSwinModel', 'DonutSwinModel',
}  # fmt: skip


def find(module: nn.Module) -> Layout | None:
    """Return the layout of a Swin transformer."""
    if not class_names(module) & _CLASSES:
        return None
    if comes_from(module, 'torchvision'):
        parts = own(module, 'features') or ()
        stages = [part for part in parts if isinstance(part, nn.Sequential) and own(part[0], 'attn') is not None]
        projection, sequences = own(module, 'features.0.0'), False
    else:
        holder, path, sequences = _parts(module)
        stages = [own(stage, 'blocks') for stage in own(module, holder) or ()]
        projection = own(module, path)
    if not stages or projection is None or any(stage is None for stage in stages):
        return None
    bounds = [0]
    for stage in stages:
        bounds.append(bounds[-1] + len(stage))
    return Layout(
        NAME,
        module,
        [block for stage in stages for block in stage],
        projection,
        maps=not sequences,
        needs_grid=True,
        norm=first_norm,
        adapt=_on_grid if sequences else None,
        resize=ShiftedWindows(),
        # The only Swin that hands out what is between its blocks.
        scopes=[module] if type(module).__name__ == 'MaskFormerSwinModel' else (),
        stages=[range(first, last) for first, last in zip(bounds, bounds[1:])],
        size=_size if sequences else None,
    )


def _parts(module: nn.Module) -> tuple[str, str, bool]:
    """Return the paths of stages and projection, and whether blocks take sequences."""
    if comes_from(module, 'timm'):
        return 'layers', 'patch_embed.proj', False
    if comes_from(module, 'transformers'):
        return 'encoder.layers', 'embeddings.patch_embeddings.projection', True
    return 'stages', 'patch_embed.projection', True


def _size(args: tuple, kwargs: dict) -> tuple[int, int]:
    """Return (height, width), which blocks over sequences get as second argument."""
    if len(args) > 1:
        return tuple(args[1])
    return tuple(next(kwargs[name] for name in ('input_dimensions', 'hw_shape') if name in kwargs))


def _on_grid(block: nn.Module, args: tuple, kwargs: dict, table: SharedTable) -> tuple[tuple, dict]:
    if len(args) > 1:
        return (args[0], table.grid, *args[2:]), kwargs
    name = next(name for name in ('input_dimensions', 'hw_shape') if name in kwargs)
    return args, {**kwargs, name: table.grid}
