# SPDX-License-Identifier: Apache-2.0
"""Attention that knows how many tokens each reduced token stands for, in blocks that know nothing of it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clusterplug.functional import size_biased_attention
from clusterplug.patch._hooks import BlockForward
from clusterplug.patch._store import Store

_ATTENTION = F.scaled_dot_product_attention
_ATTENTION_ARGUMENTS = ('query', 'key', 'value', 'attn_mask', 'dropout_p', 'is_causal', 'scale', 'enable_gqa')
_MULTIHEAD = F.multi_head_attention_forward
_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


class SizeBias(TorchFunctionMode):
    """While entered, attention over all reduced tokens counts each by its size; other calls stay as they are.

    Seen are ``scaled_dot_product_attention``, ``softmax`` of scores (B, heads, N, M), and ``MultiheadAttention``.

    Args:
        sizes: (B, M).
        num_prefix: Tokens in front, of size one.
        store: The passes, to see that a block is not checkpointed, as its recomputation would not have the sizes.
    """

    def __init__(self, sizes: Tensor, num_prefix: int, store: Store | None = None):
        super().__init__()
        self.store = store
        self.sizes = F.pad(sizes, (num_prefix, 0), value=1.0)
        self.uses = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Call ``func``, or attention with sizes."""
        kwargs = kwargs or {}
        if func is _ATTENTION:
            return self._attention(func, dict(zip(_ATTENTION_ARGUMENTS, args)) | kwargs)
        if func in _SOFTMAX:
            return self._softmax(func, args, kwargs)
        if func is _MULTIHEAD:
            return self._multihead(func, args, kwargs)
        if func is Tensor.unflatten:
            # 2026-11, torch 2.11: Dynamo cannot trace the super() call of this method inside a mode.
            return torch.unflatten(*args, **kwargs)
        return func(*args, **kwargs)

    def _attention(self, func, given: dict) -> Tensor:
        """Attention on the fused kernels, without a mask where the block has none."""
        key = given['key']
        # A causal order has no meaning between tokens of an image: left alone, and reported as not seen.
        if key.dim() != 4 or not self._fits(key.shape[0], key.shape[2]) or given.get('is_causal'):
            return func(**given)
        self._use()
        mask = given.get('attn_mask')
        if mask is not None:
            return func(**given | dict(attn_mask=self._with_bias(mask, given['query'].dtype)))
        options = {name: given[name] for name in ('dropout_p', 'enable_gqa') if given.get(name)}
        parts = given['query'], key, given['value'], self.sizes, given.get('scale')
        return size_biased_attention(*parts, **options)

    def _softmax(self, func, args: tuple, kwargs: dict) -> Tensor:
        """Attention written out: the bias comes on top of the scores."""
        given = dict(zip(('input', 'dim'), args)) | kwargs
        scores = given['input']
        if scores.dim() != 4 or given.get('dim') not in (-1, 3) or not self._fits(scores.shape[0], scores.shape[3]):
            return func(*args, **kwargs)
        self._use()
        scores = scores.to(given.get('dtype') or scores.dtype)
        return torch.softmax(scores + self._bias(scores.dtype)[:, None, None], -1)

    def _multihead(self, func, args: tuple, kwargs: dict):
        """``nn.MultiheadAttention``, whose padding mask is added to the scores."""
        key = args[1] if len(args) > 1 else kwargs['key']
        if key.dim() != 3 or not self._fits(key.shape[1], key.shape[0]) or len(args) > 14:
            return func(*args, **kwargs)
        self._use()
        mask, bias = kwargs.get('key_padding_mask'), self._bias(key.dtype)
        if mask is not None:
            bias = bias.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else bias + mask
        mask = kwargs.get('attn_mask')
        if mask is not None and mask.dtype == torch.bool:
            kwargs = kwargs | dict(attn_mask=torch.zeros_like(mask, dtype=key.dtype).masked_fill(mask, -torch.inf))
        return func(*args, **kwargs | dict(key_padding_mask=bias))

    def _use(self) -> None:
        self.uses += 1
        if self.store is not None:
            self.store.refuse_checkpointing()

    def _fits(self, batch: int, tokens: int) -> bool:
        return (batch, tokens) == tuple(self.sizes.shape)

    def _bias(self, dtype: torch.dtype) -> Tensor:
        sizes = self.sizes.to(torch.promote_types(self.sizes.dtype, dtype))
        return sizes.clamp_min(1e-4).log().masked_fill(sizes <= 0, -1e4).to(dtype)

    def _with_bias(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a mask of attention, True = takes part or added to the scores, with the sizes in it."""
        bias = self._bias(dtype)[:, None, None]
        return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask + bias


class Biased(BlockForward):
    """Counts reduced tokens by size in the attention of a block."""

    def __init__(self, block: nn.Module, store: Store, num_prefix: int):
        super().__init__(block, store)
        self.num_prefix = num_prefix

    def __call__(self, *args, **kwargs):
        """Run the block, with sizes where tokens are reduced."""
        sizes = self.store.current.sizes
        if sizes is None:
            return self.run(*args, **kwargs)
        self.store.current.counted = True
        mode = SizeBias(sizes, self.num_prefix, self.store)
        with mode:
            output = self.run(*args, **kwargs)
        if mode.uses == 0:
            raise ValueError(
                f'size_bias=True has no effect in {type(self.block).__name__}: its attention over all '
                f'{mode.sizes.shape[1]} tokens is none of scaled_dot_product_attention, softmax of (batch, heads, '
                f'tokens, tokens) and MultiheadAttention; pass size_bias=False, or choose another implementation of '
                f'attention'
            )
        return output
