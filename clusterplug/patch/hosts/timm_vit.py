# SPDX-License-Identifier: Apache-2.0
"""timm's VisionTransformer family: ViT, DeiT, DINOv2 and v3, CLIP, SigLIP, and Eva with rotary embeddings."""

import functools
import math

import torch
from torch import nn

from clusterplug.core.numerics import host_checks_allowed
from clusterplug.patch._geometry import SharedTable, coordinate_steps, joined_steps
from clusterplug.patch._store import Store
from clusterplug.patch.layout import Layout, class_names, comes_from, first_norm, own

NAME = 'timm'
_ROTARY = ('RotaryEmbeddingCat', 'RotaryEmbeddingMixed', 'RotaryEmbeddingDinoV3')


def find(module: nn.Module) -> Layout | None:
    """Return the layout of timm's VisionTransformer and Eva and what is derived from them."""
    if not comes_from(module, 'timm') or not class_names(module) & {'VisionTransformer', 'Eva'}:
        return None
    blocks, projection = own(module, 'blocks'), own(module, 'patch_embed.proj')
    if blocks is None or projection is None or own(module, 'rel_pos_bias') is not None:
        return None
    rope = own(module, 'rope')
    if rope is not None and type(rope).__name__ not in _ROTARY:
        return None  # MRope: its table is built from text and image positions together.
    return Layout(
        NAME,
        module,
        list(blocks),
        projection,
        module.num_prefix_tokens,
        norm=first_norm,
        adapt=None if rope is None else Rotary(module),
        wraps=functools.partial(_wraps, module),
    )


def _wraps(module: nn.Module, store: Store) -> dict:
    return {'forward_intermediates': Intermediates(module, store)}


class Rotary:
    """Rotary embeddings at the positions of reduced tokens."""

    def __init__(self, trunk: nn.Module):
        self.trunk = trunk

    def __call__(self, block: nn.Module, args: tuple, kwargs: dict, table: SharedTable) -> tuple[tuple, dict]:
        """Replace the table of the full map."""
        rope = kwargs.get('rope')
        if rope is None:
            return args, kwargs
        made = table.made(rope)
        if made is None:
            sine, cosine = rope.chunk(2, -1)
            cosine, sine = table.rotation(cosine, sine, self._steps)
            made = table.keep(rope, torch.cat([sine, cosine], -1))
        return args, {**kwargs, 'rope': made}

    def _steps(self, size: tuple[int, int]):
        rope = own(self.trunk, 'rope')
        stretch = 1.0
        if self.trunk.training:
            stretch = (getattr(rope, 'jitter_coords', None) or 1.0) * (getattr(rope, 'rescale_coords', None) or 1.0)
        kind = type(rope).__name__
        if kind == 'RotaryEmbeddingMixed':
            # One frequency a head and block, at most 1 radian at first, and learned from there.
            if host_checks_allowed(rope.freqs) and float(rope.freqs.detach().abs().max()) * stretch >= math.pi:
                raise ValueError(
                    'the learned frequencies of the rotary embeddings turn by half a turn or more from a token to the '
                    'next: which way cannot be read from their table, so tokens cannot be reduced in this model'
                )
            return None, stretch
        reference = None
        if kind == 'RotaryEmbeddingDinoV3':
            bands, grid_type = 2 * math.pi / rope.periods.float(), 'centered'
        else:
            bands, reference = rope.bands.float(), rope.ref_feat_shape
            grid_type = getattr(rope, 'grid_type', 'pixel' if rope.in_pixels else 'index')
        units = coordinate_steps(size, grid_type, reference, getattr(rope, 'normalize_coords', 'separate'))
        halves = getattr(rope, 'rotate_half', False)
        return joined_steps(bands, units, halves=halves, columns_first=rope.grid_indexing == 'xy'), stretch


class Intermediates:
    """``forward_intermediates`` that tells the hooks which blocks it will read."""

    def __init__(self, module: nn.Module, store: Store):
        self.module, self.store = module, store
        self.earlier = None  # that of others on this module

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
        forward = self.earlier or functools.partial(type(self.module).forward_intermediates, self.module)
        try:
            return forward(x, indices, *args, **kwargs)
        finally:
            # Also where blocks after the last one that was asked for did not run.
            self.store.current.clear()
