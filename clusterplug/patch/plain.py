"""Transformers in the form of the original ViT, DINO and MAE code: blocks, patch_embed.proj, cls_token."""

from torch import nn

from clusterplug.patch._hosts import Layout, comes_from, first_norm

NAME = 'plain'


def find(module: nn.Module) -> Layout | None:
    """Return the layout of a module with ``blocks``, ``patch_embed.proj`` and parameters for tokens in front."""
    blocks = getattr(module, 'blocks', None)
    projection = getattr(getattr(module, 'patch_embed', None), 'proj', None)
    if not isinstance(blocks, (nn.ModuleList, nn.Sequential)) or not isinstance(projection, nn.Conv2d):
        return None
    if comes_from(module, 'timm') or not len(blocks) or hasattr(blocks[0], 'window_size'):
        return None
    num_prefix = sum(
        value.shape[1]
        for name in ('cls_token', 'register_tokens', 'dist_token')
        if (value := getattr(module, name, None)) is not None and value.dim() == 3
    )
    return Layout(NAME, module, list(blocks), projection, num_prefix, norm=first_norm)
