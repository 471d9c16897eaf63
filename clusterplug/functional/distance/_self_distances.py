# SPDX-License-Identifier: Apache-2.0
"""All distances within one set of points: symmetric, zero diagonal, safe for any finite input."""

from collections.abc import Callable

import torch
from torch import Tensor

from clusterplug.core.numerics import host_checks_allowed, working_dtype
from clusterplug.core.origin import (
    exact_distances,
    finite,
    squares_fit,
    too_large,
    typical_origin,
    typical_rows,
    typical_size,
    unit_of,
)

METRICS = ('euclidean', 'cosine', 'precomputed')

# Up to this many dimensions the differences themselves cost no more than the product form, and are exact.
_DIRECT_DIMENSIONS = 8

_CACHED_DISTANCES = 2**19

# Rows and columns of a tile that stays in the first-level caches while it is mirrored.
_TILE = 128


def check_metric(metric: str, allowed: tuple = METRICS) -> None:
    """Raise unless ``metric`` is one of ``allowed``."""
    if metric not in allowed:
        raise ValueError(f'metric must be one of {", ".join(allowed)}, got {metric!r}')


def check_square(x: Tensor, metric: str) -> None:
    """Raise if ``x`` should be a matrix of distances (..., N, N) and is not square."""
    if metric == 'precomputed' and x.shape[-1] != x.shape[-2]:
        raise ValueError(
            f"x must be square (..., N, N) for metric='precomputed', got {tuple(x.shape)}; "
            f"pass the distances between the points, or the points with metric='euclidean'"
        )


def self_distances(x: Tensor, metric: str, mask: Tensor | None = None) -> Tensor:
    """Return the distances between all points of each problem.

    The matrix is symmetric bit for bit and zero on the diagonal, so that equal costs tie exactly and a tie goes to
    the lowest index. In more than 8 dimensions the Euclidean form is a product of points about an origin amid most of
    them; its rounding (4 eps of the two squared norms) is taken off each squared distance, so duplicates have
    distance zero.

    Args:
        x: (B, N, D) points, or (B, N, N) distances for ``'precomputed'``; any floating type.
        metric: ``'euclidean'``, ``'cosine'`` (1 - cosine; a zero vector has distance 1 to every other point) or
            ``'precomputed'`` (the two triangles are averaged, the diagonal is ignored).
        mask: (B, N) bool, True = valid. Rows and columns of other points hold finite, meaningless numbers.

    Returns:
        (B, N, N) in fp32, or fp64 for fp64 input.
    """
    num_points = x.shape[-2]
    # On a CPU the passes over one block run several times faster while the block stays in the cache.
    block = max(1, _CACHED_DISTANCES // num_points**2) if x.device.type == 'cpu' else len(x)
    if len(x) <= block or torch.compiler.is_compiling():
        return _block_distances(x, metric, mask)
    distances = x.new_empty((len(x), num_points, num_points), dtype=working_dtype(x.dtype))
    for start in range(0, len(x), block):
        part = slice(start, start + block)
        distances[part] = _block_distances(x[part], metric, None if mask is None else mask[part])
    return distances


def _block_distances(x: Tensor, metric: str, mask: Tensor | None) -> Tensor:
    x = x.to(working_dtype(x.dtype))
    if mask is not None:
        pairs = mask[..., None] if metric != 'precomputed' else mask[..., :, None] & mask[..., None, :]
        x = x.masked_fill(~pairs, 0)
    if metric == 'precomputed':
        distances = (x + x.mT).mul_(0.5)
    else:
        distances = _cosine(x) if metric == 'cosine' else _euclidean(x, mask)
    distances.diagonal(dim1=-2, dim2=-1).zero_()
    return distances


def _symmetric(x: Tensor, to_distance: Callable[[Tensor, slice, slice], Tensor]) -> Tensor:
    """Return (B, N, N) distances made in place from x @ x.mT, symmetric bit for bit: not every such product is."""
    num_points = x.shape[-2]
    everything = slice(0, num_points)
    if num_points <= _TILE or not host_checks_allowed(x):
        product = x @ x.mT
        return to_distance(torch.minimum(product, product.mT), everything, everything)
    # Reading a large matrix across its rows costs ten times what the product does: mirror it in tiles.
    distances = x.new_empty((*x.shape[:-1], num_points))
    for start in range(0, num_points, _TILE):
        part, before = slice(start, min(start + _TILE, num_points)), slice(0, start)
        strip = torch.matmul(x[..., part, :], x[..., : part.stop, :].mT)
        square = strip[..., start:]
        square.copy_(torch.minimum(square, square.mT))
        strip = to_distance(strip, part, slice(0, part.stop))
        distances[..., part, : part.stop] = strip
        distances[..., before, part] = strip[..., before].mT
    return distances


def _euclidean(x: Tensor, mask: Tensor | None) -> Tensor:
    rows = typical_rows(x, mask=mask)
    origin = typical_origin(rows)
    x = x - origin
    if mask is not None:
        x = x.masked_fill_(~mask[..., None], 0)
    squares, unit, far = x.square().sum(-1), None, None
    looks = host_checks_allowed(x)
    if not looks or not squares_fit(squares if mask is None else squares[mask]):
        whole = x
        unit = unit_of(typical_size(rows, origin), finite(x).abs().amax((-2, -1), keepdim=True))
        x = x / unit
        squares = x.square().sum(-1)
        far = too_large(squares) if looks else None
    distances = _products(x, squares, unit)
    if far is not None:
        for index in far.any(-1).nonzero().flatten().tolist():
            chosen = far[index].nonzero().flatten()
            exact = exact_distances(whole[index, chosen], whole[index])
            distances[index, chosen] = exact
            distances[index][:, chosen] = exact.mT
    return distances


def _products(x: Tensor, squares: Tensor, unit: Tensor | None) -> Tensor:
    if x.shape[-1] <= _DIRECT_DIMENSIONS:
        distances = torch.cdist(x, x, compute_mode='donot_use_mm_for_euclid_dist')
        return distances if unit is None else distances.mul_(unit)
    squares = squares * (1 - 4 * torch.finfo(x.dtype).eps)

    def to_distance(product: Tensor, rows: slice, columns: slice) -> Tensor:
        # the sum of the two squares first: it is the same seen from either point
        both = squares[..., rows, None] + squares[..., None, columns]
        distances = both.sub_(product, alpha=2).clamp_min_(0).sqrt_()
        return distances if unit is None else distances.mul_(unit)

    return _symmetric(x, to_distance)


def _cosine(x: Tensor) -> Tensor:
    # each point by its own largest entry: squares neither overflow nor vanish
    largest = x.abs().amax(-1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1)
    x = x / x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    one = 1 - 4 * torch.finfo(x.dtype).eps
    return _symmetric(x, lambda product, rows, columns: torch.sub(one, product).clamp_(0, 2))
