"""Swin and Swin V2 of timm, torchvision, transformers (with Mask2Former's and MaskFormer's), and the mm packages.

Tokens are reduced inside one stage, and full again at its end, before norms and patch merging. The map is clustered as
one; its windows keep their number and shrink, as do their shifts; biases of relative positions are interpolated at the
distances of the clusters (V2: computed for them).
"""

from torch import nn

from clusterplug.patch._geometry import SharedTable
from clusterplug.patch._hosts import Layout, class_names, comes_from, first_norm
from clusterplug.patch._windows import ShiftedWindows

NAME = 'swin'
_CLASSES = {
    'SwinTransformer', 'SwinTransformerV2', 'SwinModel', 'Swinv2Model', 'MaskFormerSwinModel', 'DonutSwinModel',
}  # fmt: skip


def find(module: nn.Module) -> Layout | None:
    """Return the layout of a Swin transformer."""
    if not class_names(module) & _CLASSES:
        return None
    if comes_from(module, 'timm'):
        stages, projection, sequences = [stage.blocks for stage in module.layers], module.patch_embed.proj, False
    elif comes_from(module, 'torchvision'):
        stages = [part for part in module.features if isinstance(part, nn.Sequential) and hasattr(part[0], 'attn')]
        projection, sequences = module.features[0][0], False
    elif comes_from(module, 'transformers'):
        stages, sequences = [stage.blocks for stage in module.encoder.layers], True
        projection = module.embeddings.patch_embeddings.projection
    elif hasattr(module, 'stages') and hasattr(getattr(module, 'patch_embed', None), 'projection'):
        stages, projection, sequences = [stage.blocks for stage in module.stages], module.patch_embed.projection, True
    else:
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
