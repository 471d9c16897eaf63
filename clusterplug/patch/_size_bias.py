"""Attention that knows how many tokens each reduced token stands for, in blocks that know nothing of it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clusterplug.functional import size_biased_attention
from clusterplug.patch._store import Store

_ATTENTION = F.scaled_dot_product_attention


class SizeBias(TorchFunctionMode):
    """While entered, fused attention over all reduced tokens counts each by its size; other calls stay as they are.

    Args:
        sizes: (B, M).
        num_prefix: Tokens in front, of size one.
    """

    def __init__(self, sizes: Tensor, num_prefix: int):
        super().__init__()
        self.sizes = F.pad(sizes, (num_prefix, 0), value=1.0)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Call ``func``, or attention with sizes."""
        kwargs = kwargs or {}
        if func is _ATTENTION and len(args) >= 3:
            options = dict(zip(('attn_mask', 'dropout_p', 'is_causal'), args[3:])) | kwargs
            scale = options.pop('scale', None)
            key = args[1]
            fits = key.dim() == 4 and (key.shape[0], key.shape[2]) == tuple(self.sizes.shape)
            # A mask, dropout or a causal order: the kernel does as it is told.
            if fits and all(
                value is None or (isinstance(value, (bool, float, int)) and not value) for value in options.values()
            ):
                return size_biased_attention(*args[:3], self.sizes, scale)
        if func is Tensor.unflatten:
            # 2026-11, torch 2.11: Dynamo cannot trace the super() call of this method inside a mode.
            return torch.unflatten(*args, **kwargs)
        return func(*args, **kwargs)


class Biased:
    """Stands for the ``forward`` of a block; a class, so that a copied model gets one of its own."""

    def __init__(self, block: nn.Module, store: Store, num_prefix: int):
        self.block, self.store, self.num_prefix = block, store, num_prefix

    def __call__(self, *args, **kwargs):
        """Run the block, with sizes where tokens are reduced."""
        sizes = self.store.current.sizes
        running = self.store.current.running
        block = self.block if running is None else running
        forward = type(block).forward
        if sizes is None:
            return forward(block, *args, **kwargs)
        with SizeBias(sizes, self.num_prefix):
            return forward(block, *args, **kwargs)
