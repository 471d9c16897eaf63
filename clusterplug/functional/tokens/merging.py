# SPDX-License-Identifier: Apache-2.0
"""Bipartite token matching: which tokens merge, and how to take any tensor through the merge and back."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_device, check_points
from clusterplug.core.numerics import exact_products, exporting, static_size, working_dtype

REDUCTIONS = ('mean', 'sum', 'max')


class TokenMatching(NamedTuple):
    """A matching of N tokens into N - r, to be applied to as many tensors as needed.

    Attributes:
        merge: ``merge(tokens, reduce='mean', sizes=None)``: (..., N, C) -> (..., N - r, C).
        unmerge: ``unmerge(merged)``: (..., N - r, C) -> (..., N, C), each token the merged one that it went into.
        target: (..., N) int64, where each token goes, 0 .. N - r - 1.
    """

    merge: Callable[..., Tensor]
    unmerge: Callable[[Tensor], Tensor]
    target: Tensor


class MergedTokens(NamedTuple):
    """Tokens after one merge.

    Attributes:
        tokens: (..., N - r, C), the size-weighted means.
        sizes: (..., N - r, 1), how many original tokens each stands for; fp32, or fp64 if the sizes given were.
        unmerge: ``unmerge(merged)``: (..., N - r, C) -> (..., N, C).
    """

    tokens: Tensor
    sizes: Tensor
    unmerge: Callable[[Tensor], Tensor]


def bipartite_matching(metric: Tensor, num_merged: int, *, num_protected: int = 0) -> TokenMatching:
    r"""Match the ``num_merged`` tokens that lose least with their most similar partners.

    Tokens 0, 2, 4, ... of the whole sequence are sources and tokens 1, 3, 5, ... destinations; the protected ones are
    neither, but counted. Each source finds the destination of highest cosine similarity; the ``num_merged`` sources
    of highest similarity go into theirs, all others stay:

    .. math:: t(i) = \arg\max_j \cos(a_i, b_j), \quad i \in \mathrm{top}_r \max_j \cos(a_i, b_j)

    Merged tokens keep the order of the input (a destination stays where it was), so protected tokens stay in front.
    Nothing is random; ties go to the lowest index. No value is read on the host. The choice carries no gradient,
    ``merge`` and ``unmerge`` do.

    Args:
        metric: (..., N, C) what to compare, such as attention keys averaged over heads; compared in fp32 at least.
        num_merged: r, how many tokens disappear, at most the number of sources, and 0 if there is no destination.
        num_protected: P, tokens at the front that neither merge nor are merged into (a class token: 1).

    Returns:
        TokenMatching(merge, unmerge, target).

    Raises:
        TypeError: If ``metric`` is not floating.
        ValueError: If ``num_merged`` or ``num_protected`` is out of range; ``merge`` and ``unmerge`` also, for a
            tensor with another number of tokens.

    Source:
        Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, section 3; official code facebookresearch/ToMe
        (CC-BY-NC 4.0, commit af95e4b, read for behavior, nothing copied). The same tokens merge, whether there is a
        class token, a distillation token too, or none.

        **Differs from the authors' code**: too large an r raises instead of being cut; the order of the tokens is
        kept instead of moving all kept sources to the front; any number of tokens can be protected; equal
        similarities are resolved by index.

    Example:
        >>> import torch
        >>> tokens = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [1.0, 0.1]])
        >>> matching = bipartite_matching(tokens, 1)
        >>> matching.target.tolist()
        [0, 1, 1, 2]
        >>> matching.merge(tokens)[1].tolist()
        [0.0, 1.5]
    """
    check_points(metric, 'metric')
    num_tokens = static_size(metric, -2)
    _check_counts(num_tokens, num_merged, num_protected)
    if num_merged == 0:
        target = torch.arange(num_tokens, device=metric.device).expand(metric.shape[:-1])
    else:
        with torch.no_grad(), exact_products(metric):
            target = _targets(metric, num_merged, num_protected)
    num_left = num_tokens - num_merged

    def merge(tokens: Tensor, reduce: str = 'mean', sizes: Tensor | None = None) -> Tensor:
        return merge_by_target(tokens, target, num_left, reduce=reduce, sizes=sizes)

    def unmerge(merged: Tensor) -> Tensor:
        _check_tokens(merged, (*target.shape[:-1], num_left), 'merged')
        return merged.gather(-2, target[..., None].expand(*target.shape, merged.shape[-1]))

    return TokenMatching(merge, unmerge, target)


def merge_tokens(
    tokens: Tensor,
    num_merged: int,
    *,
    metric: Tensor | None = None,
    sizes: Tensor | None = None,
    num_protected: int = 0,
) -> MergedTokens:
    """Merge ``num_merged`` tokens into their most similar partners by size-weighted means.

    Args:
        tokens: (..., N, C).
        num_merged: r, see :func:`bipartite_matching`.
        metric: (..., N, C') what to compare; default the tokens themselves.
        sizes: (..., N, 1) how many original tokens each stands for, as an earlier merge returned; default ones.
        num_protected: Tokens at the front that are left alone.

    Returns:
        MergedTokens(tokens, sizes, unmerge). ``log(sizes)`` added to attention scores counts a merged token as
        often as the tokens in it.

    Raises:
        TypeError, ValueError: As :func:`bipartite_matching`; also if ``sizes`` has another shape.

    Source: as :func:`bipartite_matching`.

    Example:
        >>> import torch
        >>> first = merge_tokens(torch.randn(2, 9, 4), 3, num_protected=1)
        >>> second = merge_tokens(first.tokens, 2, sizes=first.sizes, num_protected=1)
        >>> second.tokens.shape, second.sizes.sum(-2).flatten().tolist()
        (torch.Size([2, 4, 4]), [9.0, 9.0])
        >>> first.unmerge(second.unmerge(second.tokens)).shape
        torch.Size([2, 9, 4])
    """
    check_points(tokens, 'tokens')
    metric = tokens if metric is None else metric
    if metric.shape[:-1] != tokens.shape[:-1]:
        raise ValueError(
            f'metric must have the tokens of tokens, {tuple(tokens.shape[:-1])}, got {tuple(metric.shape[:-1])}'
        )
    matching = bipartite_matching(metric, num_merged, num_protected=num_protected)
    if sizes is None:
        sizes = torch.ones((*tokens.shape[:-1], 1), dtype=torch.float32, device=tokens.device)
    merged = matching.merge(tokens, sizes=sizes)
    return MergedTokens(merged, matching.merge(sizes, reduce='sum'), matching.unmerge)


def merge_by_target(
    tokens: Tensor, target: Tensor, num_left: int, *, reduce: str = 'mean', sizes: Tensor | None = None
) -> Tensor:
    """Bring together the tokens that have the same target.

    Args:
        tokens: (..., N, C).
        target: (..., N) int64 in 0 .. num_left - 1; each value occurs for ``'mean'`` and ``'max'``.
        num_left: Number of tokens afterwards.
        reduce: ``'mean'`` (weighted by ``sizes``), ``'sum'`` or ``'max'``.
        sizes: (..., N, 1) weights of the mean, or None for equal ones.

    Returns:
        (..., num_left, C) in the type of ``tokens``; sums are taken in fp32 at least.

    Raises:
        ValueError: If ``reduce`` is unknown or a shape does not fit.

    Example:
        >>> import torch
        >>> merge_by_target(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2).tolist()
        [[2.0], [5.0]]
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f'reduce must be one of {", ".join(REDUCTIONS)}, got {reduce!r}')
    _check_tokens(tokens, target.shape, 'tokens')
    if sizes is not None:
        _check_tokens(sizes, target.shape, 'sizes')
        check_device(sizes, tokens.device, 'sizes')
        if sizes.shape[-1] != 1:
            raise ValueError(f'sizes must have shape {(*target.shape, 1)}, got {tuple(sizes.shape)}')
    num_tokens, num_channels = static_size(tokens, -2), tokens.shape[-1]
    values = tokens.reshape(-1, num_channels).to(working_dtype(tokens.dtype))
    offset = torch.arange(values.shape[0] // num_tokens, device=target.device) * num_left
    place = (target.reshape(-1, num_tokens) + offset[:, None]).flatten()
    num_places = num_left * offset.shape[0]
    if reduce == 'max':
        index = place[:, None].expand_as(values)
        merged = values.new_zeros((num_places, num_channels))
        merged = merged.scatter_reduce(0, index, values, 'amax', include_self=False)
    elif reduce == 'sum':
        merged = values.new_zeros((num_places, num_channels)).index_add(0, place, values)
    else:
        weight = values.new_ones((values.shape[0], 1)) if sizes is None else sizes.reshape(-1, 1).to(values.dtype)
        total = values.new_zeros((num_places, 1)).index_add(0, place, weight)
        # Each token's share first: a token alone keeps its value to the last bit.
        share = weight / total.index_select(0, place)
        merged = values.new_zeros((num_places, num_channels)).index_add(0, place, values * share)
    return merged.to(tokens.dtype).reshape(*tokens.shape[:-2], num_left, num_channels)


def _targets(metric: Tensor, num_merged: int, num_protected: int) -> Tensor:
    """Return (..., N), the place of each token among those that stay."""
    num_tokens = static_size(metric, -2)
    metric = metric.to(working_dtype(metric.dtype))
    largest = metric.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(metric.dtype).tiny)
    metric = torch.nn.functional.normalize(metric / largest, dim=-1)
    first_source, first_destination = _roles(num_protected)
    sources, destinations = metric[..., first_source::2, :], metric[..., first_destination::2, :]
    similarity, partner = (sources @ destinations.mT).max(-1)
    merged = _highest(similarity, num_merged)
    source_index = merged * 2 + first_source
    # A tensor of False and not the number, which torch.jit.trace has no form of.
    gone = torch.zeros_like(source_index, dtype=torch.bool)
    stays = torch.ones(metric.shape[:-1], dtype=torch.bool, device=metric.device).scatter(-1, source_index, gone)
    place = stays.cumsum(-1) - 1
    destination_index = partner.gather(-1, merged) * 2 + first_destination
    return place.scatter(-1, source_index, place.gather(-1, destination_index)).view(*metric.shape[:-2], num_tokens)


def _roles(num_protected: int) -> tuple[int, int]:
    """Return the first source (an even number) and the first destination (an odd one) behind the protected tokens."""
    return num_protected + num_protected % 2, num_protected + 1 - num_protected % 2


def most_merged(num_tokens: int, num_protected: int = 0) -> int:
    """Return how many tokens one merge removes at most: all sources, if there is a destination.

    Example:
        >>> most_merged(5), most_merged(5, 1), most_merged(2, 1)
        (3, 2, 0)
    """
    first_source, first_destination = _roles(num_protected)
    return max(0, (num_tokens - first_source + 1) // 2) if num_tokens > first_destination else 0


def _highest(similarity: Tensor, number: int) -> Tensor:
    """Return the indices of the highest values (..., S), equal ones by index."""
    if exporting():
        # The stable sort has no ONNX form; TopK, which this one becomes, takes the lowest index of equal values.
        return similarity.topk(number, dim=-1).indices
    return similarity.sort(dim=-1, descending=True, stable=True).indices[..., :number]


def _check_counts(num_tokens: int, num_merged: int, num_protected: int) -> None:
    for name, value in (('num_merged', num_merged), ('num_protected', num_protected)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f'{name} must be an int, got {type(value).__name__} ({value!r})')
    if not 0 <= num_protected <= num_tokens:
        raise ValueError(
            f'num_protected must lie between 0 and the number of tokens, {num_tokens}, got {num_protected}'
        )
    most = most_merged(num_tokens, num_protected)
    if not 0 <= num_merged <= most:
        raise ValueError(
            f'num_merged must lie between 0 and {most} for {num_tokens} tokens of which {num_protected} are protected, '
            f'got {num_merged}; one merge removes at most every second of the free tokens: merge in several layers'
        )


def _check_tokens(tokens: Tensor, lead: tuple, name: str) -> None:
    if tuple(tokens.shape[:-1]) != tuple(lead):
        raise ValueError(f'{name} must have shape {(*lead, "C")}, got {tuple(tokens.shape)}')
