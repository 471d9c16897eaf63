"""Distances between all pairs of two sets of points: batched, in blocks, accurate far from the origin."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_device, check_points
from clusterplug.functional._numerics import no_autocast, working_dtype

__all__ = ['pairwise_distances']

METRICS = ('euclidean', 'sqeuclidean', 'cosine', 'manhattan', 'chebyshev')
# Up to this many dimensions coordinate differences are as fast as a product, and exact for near-equal points.
DIRECT_DIMENSIONS = 4


def pairwise_distances(
    x: Tensor, y: Tensor | None = None, *, metric: str = 'euclidean', max_bytes: int = 256 * 2**20
) -> Tensor:
    """Return the distance of every point of ``x`` to every point of ``y``.

    The squared distance is |x|^2 - 2 x.y + |y|^2 with the mean of ``y`` subtracted from both first, so that an offset
    far larger than the spread costs no digits. 'cosine' is 1 - x.y / (|x| |y|), in [0, 2].

    Args:
        x: (..., N, D), floating. fp16 and bf16 are computed in fp32, float64 stays.
        y: (..., M, D) with leading dimensions that broadcast against those of ``x``; None = ``x`` itself, with an
            exactly zero diagonal.
        metric: 'euclidean', 'sqeuclidean', 'cosine', 'manhattan' or 'chebyshev'.
        max_bytes: Memory in bytes that a block of rows may take beside the result.

    Returns:
        (..., N, M) in the type of ``x``, never negative. A zero vector has cosine distance 1 to everything (0 to
        itself when ``y`` is None). The gradient of 'euclidean' at distance 0 is 0.

    Raises:
        TypeError: ``x`` or ``y`` is not floating.
        ValueError: Another number of dimensions or device, an unknown metric, ``max_bytes`` < 1.

    Source: textbook formulas. **Differs from ``torch.cdist``**: centred first, fp16 and bf16 on the CPU too, cosine,
    bounded working memory.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> pairwise_distances(x)
        tensor([[0., 5.],
                [5., 0.]])
    """
    check_points(x)
    if metric not in METRICS:
        raise ValueError(f'metric must be one of {", ".join(METRICS)}, got {metric!r}')
    if max_bytes < 1:
        raise ValueError(f'max_bytes must be at least 1, got {max_bytes}')
    if y is not None:
        check_points(y, 'y')
        check_device(y, x.device, 'y')
        if y.shape[-1] != x.shape[-1]:
            raise ValueError(f'y must have the dimension of x, {x.shape[-1]}, got shape {tuple(y.shape)}')
    with no_autocast(x):
        return _in_blocks(x, y, metric, max_bytes)


def _in_blocks(x: Tensor, y: Tensor | None, metric: str, max_bytes: int) -> Tensor:
    dtype = torch.promote_types(working_dtype(x.dtype), working_dtype(x.dtype if y is None else y.dtype))
    left, right = _prepared(x.to(dtype), (x if y is None else y).to(dtype), metric)
    lead = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    row_bytes = max(1, lead.numel() * right.shape[-2] * left.element_size())
    blocks = left.split(max(1, max_bytes // row_bytes), -2)
    parts = []
    for index, block in enumerate(blocks):
        part = _BLOCK[metric](block, right)
        if y is None:
            start = index * blocks[0].shape[-2]
            row = torch.arange(block.shape[-2], device=x.device)
            part = part.masked_fill(row.unsqueeze(-1) + start == torch.arange(right.shape[-2], device=x.device), 0.0)
        parts.append(part.to(x.dtype))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -2)


def _prepared(x: Tensor, y: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Return points whose plain distance or product is the metric's."""
    if metric == 'cosine':
        return _unit(x), _unit(y)
    offset = y.mean(-2, keepdim=True).detach()
    return x - offset, y - offset


def _unit(x: Tensor) -> Tensor:
    # dividing by the largest entry first keeps the squares of huge and tiny vectors in range
    largest = x.detach().abs().amax(-1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1.0)
    return torch.nn.functional.normalize(x, dim=-1)


def _squared(x: Tensor, y: Tensor) -> Tensor:
    if x.shape[-1] <= DIRECT_DIMENSIONS:
        return sum((x[..., i].unsqueeze(-1) - y[..., i].unsqueeze(-2)).square() for i in range(x.shape[-1]))
    norms = x.square().sum(-1, keepdim=True) + y.square().sum(-1).unsqueeze(-2)
    return torch.sub(norms, x @ y.mT, alpha=2.0).clamp(min=0.0)


def _euclidean(x: Tensor, y: Tensor) -> Tensor:
    squared = _squared(x, y)
    positive = squared > 0
    # the derivative of the root at 0 is infinite: take the root of 1 there and put the 0 back
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


_BLOCK = {
    'euclidean': _euclidean,
    'sqeuclidean': _squared,
    'cosine': lambda x, y: (1.0 - x @ y.mT).clamp(0.0, 2.0),
    'manhattan': lambda x, y: torch.cdist(x, y, p=1.0),
    'chebyshev': lambda x, y: torch.cdist(x, y, p=float('inf')),
}
