"""timm's VisionTransformer family: ViT, DeiT, DINOv2 and v3, CLIP, SigLIP, and Eva with rotary embeddings."""

import torch
from torch import nn

from clusterplug.patch._geometry import SharedTable
from clusterplug.patch._hosts import Layout, class_names, comes_from, first_norm
from clusterplug.patch._store import Store

NAME = 'timm'


def find(module: nn.Module) -> Layout | None:
    """Return the layout of timm's VisionTransformer and Eva and what is derived from them."""
    if not comes_from(module, 'timm') or not class_names(module) & {'VisionTransformer', 'Eva'}:
        return None
    projection = getattr(module.patch_embed, 'proj', None)
    if projection is None or hasattr(module, 'rel_pos_bias') or _is_mrope(module):
        return None
    rotary = getattr(module, 'rope', None) is not None
    return Layout(
        NAME,
        module,
        list(module.blocks),
        projection,
        module.num_prefix_tokens,
        norm=first_norm,
        adapt=_rotary if rotary else None,
        wraps=lambda store: {'forward_intermediates': Intermediates(module, store)},
    )


def _is_mrope(module: nn.Module) -> bool:
    # Its table is built from text and image positions together.
    return type(getattr(module, 'rope', None)).__name__ == 'RotaryEmbeddingMRope'


def _rotary(block: nn.Module, args: tuple, kwargs: dict, table: SharedTable) -> tuple[tuple, dict]:
    rope = kwargs.get('rope')
    if rope is None:
        return args, kwargs
    sine, cosine = rope.chunk(2, -1)
    for known, made in table._made:
        if known is rope:
            return args, {**kwargs, 'rope': made}
    cosine, sine = table.rotation(cosine, sine)
    made = torch.cat([sine, cosine], -1)
    table._made.append((rope, made))
    return args, {**kwargs, 'rope': made}


class Intermediates:
    """``forward_intermediates`` that tells the hooks which blocks it will read."""

    def __init__(self, module: nn.Module, store: Store):
        self.module, self.store = module, store

    def __call__(self, x, indices=None, *args, **kwargs):
        """As timm's, with features of full size."""
        number = len(self.module.blocks)
        if indices is None:
            wanted = range(number)
        elif isinstance(indices, int):
            wanted = range(number - indices, number)
        else:
            wanted = [index % number for index in indices]
        self.store.current.wanted = tuple(wanted)
        result = type(self.module).forward_intermediates(self.module, x, indices, *args, **kwargs)
        self.store.current.clear()
        return result
