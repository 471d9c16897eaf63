"""VisionTransformer of mmsegmentation and mmpretrain, alone or as the backbone of a segmentor or classifier."""

from torch import nn

from clusterplug.patch._hosts import Layout, class_names

NAME = 'mm'


def find(module: nn.Module) -> Layout | None:
    """Return the layout of a ViT with ``layers``, ``patch_embed.projection`` and ``out_indices``."""
    projection = getattr(getattr(module, 'patch_embed', None), 'projection', None)
    if 'VisionTransformer' not in class_names(module) or not isinstance(projection, nn.Conv2d):
        return None
    if not hasattr(module, 'out_indices') or not isinstance(getattr(module, 'layers', None), nn.ModuleList):
        return None
    number = len(module.layers)
    indices = [module.out_indices] if isinstance(module.out_indices, int) else module.out_indices
    # mmpretrain counts its tokens in front; mmsegmentation has a class token or none.
    num_prefix = getattr(module, 'num_extra_tokens', None)
    if num_prefix is None:
        num_prefix = int(module.with_cls_token)
    return Layout(
        NAME,
        module,
        list(module.layers),
        projection,
        num_prefix,
        norm=lambda block: getattr(block, 'ln1', None) or getattr(block, 'norm1', None),
        taps=[index % number for index in indices],
        knows_sizes=False,
    )
