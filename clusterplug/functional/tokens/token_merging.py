# SPDX-License-Identifier: Apache-2.0
"""Merging many tokens at once, and attention that knows how many tokens each one stands for."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.checks import check_points
from clusterplug.core.numerics import static_size, working_dtype
from clusterplug.functional.tokens.merging import MergedTokens, merge_tokens, most_merged

# scaled_dot_product_attention runs its fused kernels on heads whose width is a multiple of this.
HEAD_MULTIPLE = 8


def merge_tokens_to(
    tokens: Tensor,
    num_tokens: int,
    *,
    metric: Tensor | None = None,
    sizes: Tensor | None = None,
    num_protected: int = 0,
) -> MergedTokens:
    """Merge tokens until ``num_tokens`` are left, in as few rounds of :func:`merge_tokens` as that takes.

    A round removes at most every second of the free tokens. The metric of merged tokens is the size-weighted mean of
    theirs.

    Args:
        tokens: (..., N, C).
        num_tokens: How many to keep, more than ``num_protected`` (unless all are protected) and at most N.
        metric: (..., N, C') what to compare; default the tokens themselves.
        sizes: (..., N, 1) how many original tokens each stands for; default ones.
        num_protected: Tokens at the front that are left alone.

    Returns:
        MergedTokens(tokens, sizes, unmerge) of all rounds together.

    Raises:
        TypeError: ``num_tokens`` is not an int, or ``tokens`` not floating.
        ValueError: ``num_tokens`` is out of range; shapes do not fit.

    Source: as :func:`merge_tokens`.

    Example:
        >>> import torch
        >>> merged = merge_tokens_to(torch.randn(2, 17, 8), 5, num_protected=1)
        >>> merged.tokens.shape, merged.sizes.sum(1).flatten().tolist()
        (torch.Size([2, 5, 8]), [17.0, 17.0])
    """
    check_points(tokens, 'tokens')
    if isinstance(num_tokens, bool) or not isinstance(num_tokens, int):
        raise TypeError(f'num_tokens must be an int, got {type(num_tokens).__name__} ({num_tokens!r})')
    total = static_size(tokens, -2)
    least = min(total, num_protected + 1)
    if not least <= num_tokens <= total:
        raise ValueError(
            f'num_tokens must lie between {least} ({num_protected} protected and one other) and the number of tokens, '
            f'{total}, got {num_tokens}'
        )
    metric = tokens if metric is None else metric
    undo = []
    while True:
        surplus = static_size(tokens, -2) - num_tokens
        most = most_merged(static_size(tokens, -2), num_protected)
        merged = merge_tokens(tokens, min(surplus, most), metric=metric, sizes=sizes, num_protected=num_protected)
        undo.append(merged.unmerge)
        if surplus <= most:
            break
        metric = merge_tokens(metric, most, sizes=sizes, num_protected=num_protected).tokens
        tokens, sizes = merged.tokens, merged.sizes

    def unmerge(values: Tensor) -> Tensor:
        for step in reversed(undo):
            values = step(values)
        return values

    return MergedTokens(merged.tokens, merged.sizes, unmerge)


def size_biased_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sizes: Tensor,
    scale: float | None = None,
    *,
    dropout_p: float = 0.0,
    enable_gqa: bool = False,
) -> Tensor:
    r"""Attention in which a merged token counts as often as the tokens in it, on the fused kernels.

    .. math:: \mathrm{softmax}\left(q k^\top \cdot \mathrm{scale} + \log \mathrm{sizes}\right) v

    The bias travels in one more channel (the key gets log(size) / scale, the query 1), so that no mask is needed:
    the flash kernel takes no mask.

    Args:
        query: (B, heads, N, D).
        key: (B, heads, M, D).
        value: (B, heads, M, D').
        sizes: (B, M) how many tokens each key stands for, above 0; 0 leaves a key out.
        scale: Of the scores; default 1 / sqrt(D).
        dropout_p: Share of the attention that is dropped, as in ``scaled_dot_product_attention``.
        enable_gqa: Whether several heads of ``query`` may share one of ``key`` and ``value``.

    Returns:
        (B, heads, N, D') in the type of ``value``.

    Raises:
        ValueError: ``sizes`` does not fit ``key``.

    Source:
        Bolya et al., "Token Merging", ICLR 2023, section 3, proportional attention; there the bias is a mask.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 1, 2, 4, 8)
        >>> twice = torch.cat([k, k[:, :, :1]], 2), torch.cat([v, v[:, :, :1]], 2)
        >>> once = size_biased_attention(q, k, v, torch.tensor([[2.0, 1, 1, 1]]))
        >>> bool((once - F.scaled_dot_product_attention(q, *twice)).abs().max() < 1e-5)
        True
    """
    if tuple(sizes.shape) != (key.shape[0], key.shape[2]):
        raise ValueError(f'sizes must have shape {(key.shape[0], key.shape[2])} like key, got {tuple(sizes.shape)}')
    width = query.shape[-1]
    scale = width**-0.5 if scale is None else scale
    extra = HEAD_MULTIPLE - width % HEAD_MULTIPLE
    # A finite floor, as 16-bit types would make infinities (and then NaN) of log(0) / scale.
    bias = (sizes.to(working_dtype(torch.promote_types(sizes.dtype, key.dtype))).clamp_min(1e-4).log() / scale).to(
        key.dtype
    )
    bias = bias.masked_fill(sizes <= 0, -2e4)
    bias = F.pad(bias[:, None, :, None].expand(-1, key.shape[1], -1, -1), (0, extra - 1))
    one = F.pad(torch.ones_like(query[..., :1]), (0, extra - 1))
    query, key = torch.cat([query, one], -1), torch.cat([key, bias], -1)
    depth = value.shape[-1]
    value = F.pad(value, (0, key.shape[-1] - depth))
    options: dict[str, Any] = dict(enable_gqa=True) if enable_gqa else {}
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, scale=scale, **options)[..., :depth]
