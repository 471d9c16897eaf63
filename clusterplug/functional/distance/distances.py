# SPDX-License-Identifier: Apache-2.0
"""Distances between all pairs of two sets of points: batched, in blocks, accurate far from the origin."""

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

from clusterplug.core.checks import check_device, check_points
from clusterplug.core.numerics import host_checks_allowed, no_autocast, working_dtype
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

__all__ = ['pairwise_distances']

METRICS = ('euclidean', 'sqeuclidean', 'cosine', 'manhattan', 'chebyshev')
# Up to this many dimensions coordinate differences are as fast as a product, and exact for near-equal points.
DIRECT_DIMENSIONS = 4
# The same for so few numbers that finding an origin for the product takes longer.
DIRECT_NUMBERS = 2**16


def pairwise_distances(
    x: Tensor, y: Tensor | None = None, *, metric: str = 'euclidean', max_bytes: int = 256 * 2**20
) -> Tensor:
    """Return the distance of every point of ``x`` to every point of ``y``.

    The squared distance is |x|^2 - 2 x.y + |y|^2 with a point amid most points subtracted from both first, so that
    neither an offset far larger than the spread nor a few outliers cost digits. 'cosine' is 1 - x.y / (|x| |y|), in
    [0, 2].

    Args:
        x: (..., N, D), floating. fp16 and bf16 are computed in fp32, float64 stays.
        y: (..., M, D) with leading dimensions that broadcast against those of ``x``; None = ``x`` itself, with an
            exactly zero diagonal.
        metric: 'euclidean', 'sqeuclidean', 'cosine', 'manhattan' or 'chebyshev'.
        max_bytes: Memory in bytes that a block of rows may take beside the result.

    Returns:
        (..., N, M) in the type of ``x``, never negative. NaN or inf in a point gives NaN or inf in its row and
        column, as ``torch.cdist`` does, and nowhere else. A zero vector has cosine distance 1 to everything (0 to
        itself when ``y`` is None). The gradient of 'euclidean' at distance 0 is 0.

    Raises:
        TypeError: ``x`` or ``y`` is not floating.
        ValueError: Another number of dimensions or device, an unknown metric, ``max_bytes`` < 1.

    Source: textbook formulas. **Differs from ``torch.cdist``**: centered first, fp16 and bf16 on the CPU too, cosine,
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
    measure = _MEASURE[metric](x.to(dtype), None if y is None else y.to(dtype))
    lead = torch.broadcast_shapes(measure.left.shape[:-2], measure.right.shape[:-2])
    row_bytes = max(1, lead.numel() * measure.right.shape[-2] * measure.left.element_size())
    step = max(1, max_bytes // row_bytes)
    parts = []
    for start in range(0, x.shape[-2], step):
        part = measure(slice(start, min(start + step, x.shape[-2])))
        if y is None:
            own = part.diagonal(start, -2, -1)
            # a point without a position has no distance to itself either
            kept = torch.where(own.isnan(), own, 0.0)
            if part.requires_grad:
                part = part.diagonal_scatter(kept, start, -2, -1)
            else:
                own.copy_(kept)
        parts.append(part.to(x.dtype))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -2)


class _Difference:
    """A metric made of coordinate differences, which no common offset changes."""

    power: float

    def __init__(self, x: Tensor, y: Tensor | None) -> None:
        self.left, self.right = x, x if y is None else y

    def __call__(self, part: slice) -> Tensor:
        return torch.cdist(self.left[..., part, :], self.right, p=self.power)


class _Manhattan(_Difference):
    power = 1.0


class _Chebyshev(_Difference):
    power = float('inf')

    def __call__(self, part: slice) -> Tensor:
        distances = super().__call__(part)
        left, right = self.left[..., part, :].detach(), self.right.detach()
        # the maximum of cdist passes over NaN: the sum of its differences does not
        if host_checks_allowed(left) and bool(torch.isfinite(left.sum() + right.sum())):
            return distances
        return torch.where(torch.cdist(left, right, p=1.0).isnan(), torch.nan, distances)


class _Cosine:
    def __init__(self, x: Tensor, y: Tensor | None) -> None:
        self.left = _unit(x)
        self.right = self.left if y is None else _unit(y)

    def __call__(self, part: slice) -> Tensor:
        return (1.0 - self.left[..., part, :] @ self.right.mT).clamp(0.0, 2.0)


def _unit(x: Tensor) -> Tensor:
    # dividing by the largest entry first keeps the squares of huge and tiny vectors in range
    largest = x.detach().abs().amax(-1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1.0)
    return torch.nn.functional.normalize(x, dim=-1)


class _SquaredEuclidean:
    """The product form about an origin amid most points, in a unit that keeps their squares in range.

    Rows that leave the range nevertheless, NaN and inf among them, are ignored in the product, and get their
    distances from differences. (On accelerators, where nobody may look for them, these rows hold NaN or inf.)
    """

    def __init__(self, x: Tensor, y: Tensor | None) -> None:
        other = x if y is None else y
        elements = torch.broadcast_shapes(x.shape[:-2], other.shape[:-2]).numel() * x.shape[-2] * other.shape[-2]
        self.direct = x.shape[-1] <= DIRECT_DIMENSIONS or elements * x.shape[-1] <= DIRECT_NUMBERS
        self.left, self.right = x, other
        self.unit: Tensor | None = None
        self.far: tuple[Tensor, Tensor, Tensor, Tensor] | None = None  # left, right, which rows of each are far
        rows = None
        if not self.direct:
            rows = typical_rows(x, y)
            origin = typical_origin(rows)
            self.left = x - origin
            self.right = self.left if y is None else y - origin
        self._square()
        looks = host_checks_allowed(x)
        if looks and squares_fit(self.left_squares) and squares_fit(self.right_squares):
            return
        whole = self.left, self.right
        self.unit = self._unit(typical_rows(x, y) if rows is None else rows)
        self.left, self.right = self.left / self.unit, self.right / self.unit
        self._square()
        if looks:
            self._set_aside(*whole)

    def _unit(self, rows: Tensor) -> Tensor:
        origin = typical_origin(rows)
        largest = [finite(each.detach()).abs().amax((-2, -1), keepdim=True) for each in (self.left, self.right)]
        return unit_of(typical_size(rows, origin), torch.maximum(*largest))

    def _square(self) -> None:
        self.left_squares = self.left.square().sum(-1)
        self.right_squares = self.left_squares if self.right is self.left else self.right.square().sum(-1)

    def _set_aside(self, left: Tensor, right: Tensor) -> None:
        far = too_large(self.left_squares), too_large(self.right_squares)
        if any(bool(each.any()) for each in far):
            self.left = self.left.masked_fill(far[0].unsqueeze(-1), 0.0)
            self.right = self.right.masked_fill(far[1].unsqueeze(-1), 0.0)
            self._square()
            self.far = left, right, far[0], far[1]

    def __call__(self, part: slice) -> Tensor:
        squared = self._squares(self.left[..., part, :], self.left_squares[..., part])
        if self.unit is not None:
            squared = squared * self.unit * self.unit
        return squared if self.far is None else self._with_far(squared, part, lambda distances: distances.square())

    def _squares(self, left: Tensor, squares: Tensor) -> Tensor:
        right = self.right
        if not self.direct:
            norms = squares.unsqueeze(-1) + self.right_squares.unsqueeze(-2)
            product = left @ right.mT
            if product.requires_grad:
                return torch.sub(norms, product, alpha=2.0).clamp(min=0.0)
            return norms.sub_(product, alpha=2.0).clamp_(min=0.0)
        if left.shape[-1] > DIRECT_DIMENSIONS:
            return (left.unsqueeze(-2) - right.unsqueeze(-3)).square().sum(-1)
        columns = zip(left.unbind(-1), right.unbind(-1))
        return reduce(torch.add, ((first.unsqueeze(-1) - second.unsqueeze(-2)).square() for first, second in columns))

    def _with_far(self, values: Tensor, part: slice, of_distance: Callable[[Tensor], Tensor]) -> Tensor:
        assert self.far is not None, 'called where some rows are far'
        lead, (left, right, far_left, far_right) = values.shape[:-2], self.far
        left, far_left = left[..., part, :], far_left[..., part]
        left, right = (each.expand(*lead, *each.shape[-2:]).reshape(-1, *each.shape[-2:]) for each in (left, right))
        far_left, far_right = (
            each.expand(*lead, each.shape[-1]).reshape(-1, each.shape[-1]) for each in (far_left, far_right)
        )
        flat = values.reshape(-1, *values.shape[-2:]).clone()
        for index in (far_left.any(-1) | far_right.any(-1)).nonzero().flatten().tolist():
            rows, columns = far_left[index].nonzero().flatten(), far_right[index].nonzero().flatten()
            if len(rows):
                flat[index, rows] = of_distance(exact_distances(left[index, rows], right[index]))
            if len(columns):
                flat[index, :, columns] = of_distance(exact_distances(right[index, columns], left[index])).mT
        return flat.view(values.shape)


class _Euclidean(_SquaredEuclidean):
    def __call__(self, part: slice) -> Tensor:
        squared = self._squares(self.left[..., part, :], self.left_squares[..., part])
        if torch.is_grad_enabled():
            zero = squared == 0
            # the derivative of the root at 0 is infinite: take the root of 1 there and put the 0 back
            distances = torch.where(zero, 0.0, torch.where(zero, 1.0, squared).sqrt())
        else:
            distances = squared.sqrt_()
        if self.unit is not None:
            distances = distances * self.unit
        return distances if self.far is None else self._with_far(distances, part, lambda distances: distances)


_MEASURE: dict[str, type[_Difference | _Cosine | _SquaredEuclidean]] = {
    'euclidean': _Euclidean,
    'sqeuclidean': _SquaredEuclidean,
    'cosine': _Cosine,
    'manhattan': _Manhattan,
    'chebyshev': _Chebyshev,
}
