# SPDX-License-Identifier: Apache-2.0
"""Running second moments of the units of two layers over the same positions: all that a comparison needs."""

import torch
import torch.distributed as dist
from torch import Tensor

from clusterplug.core.checks import check_number
from clusterplug.core.distributed import world_size
from clusterplug.core.numerics import exact_products, working_dtype
from clusterplug.functional import lasso_from_gram

# Rows whose products are summed in fp32 before they are added in float64.
_BLOCK = 8192
# Units whose products are taken at once; of products of a layer with itself only those right of the diagonal.
_PANEL = 256
# Variances below this share of the squared distance to the origin are rounding.
_ROUNDING = 1e-12


class UnitMoments:
    r"""Sums over positions of products of units, in O((C + D)^2) memory whatever the number of positions.

    With :math:`z = [x, y, \|x\|^2, \|y\|^2, 1]` of a position, :math:`M = \sum z z^\top` gives the correlations within
    and between the two layers, CKA in its biased and unbiased forms, and the lasso from one layer to the other.
    Positions are taken around the mean of the first ones, so that digits survive an offset; moving the origin is a
    linear map of z, and so are :meth:`merged` moments exact.

    Products of fp32 activations are summed in fp32 over 8,192 positions and in float64 beyond; those of float64
    activations in float64.

    Example:
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> moments = UnitMoments()
        >>> moments.add(x[:50], x[:50, [2, 0]])
        >>> moments.add(x[50:], x[50:, [2, 0]])
        >>> moments.correlation().argmax(0), moments.count
        (tensor([2, 0]), 100)
    """

    def __init__(self):
        self.count = 0

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in positions x (n, C) and y (n, D), floating, row i of both the same position; n = 0 is fine.

        Raises:
            ValueError: Other numbers of rows or of units than before, NaN or infinity.
            TypeError: Not floating.
        """
        for values, name in ((x, 'x'), (y, 'y')):
            if not isinstance(values, Tensor) or not values.is_floating_point():
                raise TypeError(f'{name} must be a floating tensor, got {getattr(values, "dtype", type(values))}')
        if x.dim() != 2 or y.dim() != 2 or len(x) != len(y):
            raise ValueError(f'x and y must be (n, C) and (n, D), got {tuple(x.shape)} and {tuple(y.shape)}')
        if self.count and (x.shape[1], y.shape[1]) != self.widths:
            raise ValueError(f'x and y must have {self.widths} units as before, got {x.shape[1]} and {y.shape[1]}')
        if not len(x):
            return
        dtype = working_dtype(x.dtype, y.dtype)
        x, y = x.detach().to(dtype), y.detach().to(x.device, dtype)
        if not all(bool(torch.isfinite(v.sum())) or bool(torch.isfinite(v).all()) for v in (x, y)):
            raise ValueError('units must be finite, got NaN or infinity')
        if not self.count:
            self._start(x, y)
        with exact_products(x):
            for rows in zip(x.split(_BLOCK), y.split(_BLOCK), strict=True):
                self._add(*rows)
        self.count += len(x)

    def merged(self, other: 'UnitMoments') -> 'UnitMoments':
        """Return the moments of the positions of both."""
        if not other.count or not self.count:
            return self if self.count else other
        if other.widths != self.widths:
            raise ValueError(f'moments must be of {self.widths} units, got {other.widths}')
        both = UnitMoments()
        both.origins, both.scales, both.count = self.origins, self.scales, self.count + other.count
        shifts = [(a - b) / s for a, b, s in zip(self.origins, other.origins, other.scales, strict=True)]
        moved = _moved(other.sums, shifts)
        factors = [(b / a) for a, b in zip(self.scales, other.scales, strict=True)]
        scale = torch.cat([
            moved.new_full((self.widths[0],), factors[0]), moved.new_full((self.widths[1],), factors[1]),
            moved.new_tensor([factors[0] ** 2, factors[1] ** 2, 1.0]),
        ])  # fmt: skip
        both.sums = self.sums + moved * scale * scale.unsqueeze(1)
        return both

    def over_ranks(self) -> 'UnitMoments':
        """Return the moments of the positions of all ranks; every rank must call it."""
        if world_size() == 1:
            return self
        found = [None] * world_size()
        dist.all_gather_object(found, vars(self))
        result = UnitMoments()
        for state in found:
            part = UnitMoments()
            vars(part).update(state)
            result = result.merged(part)
        return result

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers of units C, D."""
        return tuple(len(each) for each in self.origins)

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the means (C,), (D,) of all units, in float64."""
        shifts = self._shifts()
        return tuple(o + d * s for o, d, s in zip(self.origins, shifts, self.scales, strict=True))

    def deviations(self) -> tuple[Tensor, Tensor]:
        """Return the standard deviations (C,), (D,), 0 for dead units."""
        variance, width = self._variances(), self.widths[0]
        return variance[:width].sqrt() * self.scales[0], variance[width:].sqrt() * self.scales[1]

    def live(self) -> tuple[Tensor, Tensor]:
        """Return which units change at all: (C,), (D,) bool."""
        alive = self._variances() > 0
        return alive[: self.widths[0]], alive[self.widths[0] :]

    def correlation(self) -> Tensor:
        """Return (C, D) float64, that of dead units 0: what ``functional.unit_correlation`` gives for all positions."""
        return self.correlations()[: self.widths[0], self.widths[0] :]

    def correlations(self) -> Tensor:
        """Return (C + D, C + D): correlations of the units of both layers, within and between them."""
        number = sum(self.widths)
        variance = self._variances()
        inverse = torch.where(variance > 0, variance.clamp(min=1e-300).rsqrt(), 0.0)
        covariance = self._central()[:number, :number] / self.count
        return (covariance * inverse * inverse.unsqueeze(1)).clamp(-1, 1)

    def cka(self, biased: bool = False) -> float:
        """Return linear CKA over all positions, unbiased by default: that of ``functional.linear_cka``.

        NaN where a layer does not vary. The unbiased form needs 4 positions.
        """
        if self.count < (2 if biased else 4):
            raise ValueError(f'CKA needs at least {2 if biased else 4} positions, got {self.count}')
        moved, (c, d) = self._central(), self.widths
        sides = slice(0, c), slice(c, c + d)

        def hsic(one: int, other: int) -> float:
            cross = moved[sides[one], sides[other]].square().sum()
            if biased:
                return float(cross)
            n, p, q, last = self.count, c + d + one, c + d + other, c + d + 2
            dot, total = moved[p, q], moved[p, last] * moved[q, last]
            return float(cross - dot + total / ((n - 1) * (n - 2)) - 2 / (n - 2) * dot) / (n * (n - 3))

        own, others = hsic(0, 0), hsic(1, 1)
        return hsic(0, 1) / (own * others) ** 0.5 if own > 0 and others > 0 else float('nan')

    def sparse_mapping(self, penalty: float, **options) -> Tensor:
        """Return the lasso weights (C, D) of standardized units: what ``functional.sparse_mapping`` gives for all."""
        check_number(penalty, 'penalty', 0)
        found, width = self.correlations(), self.widths[0]
        return lasso_from_gram(found[:width, :width], found[:width, width:], penalty=penalty, **options)

    def _start(self, x: Tensor, y: Tensor) -> None:
        # origins that fp32 holds exactly, so that constant units give exactly 0
        self.origins = tuple(v.double().mean(0).to(v.dtype).double() for v in (x, y))
        self.scales = tuple(_scale(v, o) for v, o in zip((x, y), self.origins, strict=True))
        width = sum(self.widths) + 3
        self.sums = x.new_zeros(width, width, dtype=torch.float64)

    def _add(self, x: Tensor, y: Tensor) -> None:
        c, number = self.widths[0], sum(self.widths)
        x, y = ((v - o.to(v.dtype)).mul_(1 / s) for v, o, s in zip((x, y), self.origins, self.scales, strict=True))
        edge = torch.stack([x.square().sum(1), y.square().sum(1), x.new_ones(len(x))], 1)
        sums = self.sums
        sums[:c, c:number] += x.mT @ y
        for values, first in ((x, 0), (y, c)):
            for left in range(0, values.shape[1], _PANEL):
                panel = values[:, left : left + _PANEL]
                sums[first + left : first + left + panel.shape[1], first + left : first + values.shape[1]] += (
                    panel.mT @ values[:, left:]
                )
        sums[:c, number:] += x.mT @ edge
        sums[c:number, number:] += y.mT @ edge
        sums[number:, number:] += edge.double().mT @ edge.double()

    def _whole(self) -> Tensor:
        """The sums with the lower triangle of blocks filled in."""
        return torch.triu(self.sums) + torch.triu(self.sums, 1).mT

    def _shifts(self) -> tuple[Tensor, Tensor]:
        c, number = self.widths[0], sum(self.widths)
        shift = self.sums[:number, -1] / self.count
        return shift[:c], shift[c:]

    def _central(self) -> Tensor:
        """The sums around the means."""
        return _moved(self._whole(), self._shifts())

    def _variances(self) -> Tensor:
        """(C + D,) in the units of the sums; 0 where nothing but rounding is left."""
        if not self.count:
            raise ValueError('there are no positions yet: pass batches first')
        number = sum(self.widths)
        far = torch.cat([o / s for o, s in zip(self.origins, self.scales, strict=True)])
        raw = self.sums.diagonal()[:number] / self.count
        variance = raw - torch.cat(self._shifts()).square()
        least = _ROUNDING * (raw + 0.1 * far.square())
        return torch.where(variance > least, variance, 0.0)


def _moved(sums: Tensor, shifts) -> Tensor:
    """Sums of z z^T (upper triangle) with x and y taken around an origin that lies ``shifts`` further: T M T^T.

    T changes a row by multiples of the last three rows and of one combination of the others: two thin products.
    """
    sums = torch.triu(sums) + torch.triu(sums, 1).mT
    c, number = len(shifts[0]), sum(len(each) for each in shifts)
    shift = torch.cat(tuple(shifts))
    thin = sums.new_zeros(3, number + 3)  # T = I + the rows of p and q, + a column for x and y
    for side, part in enumerate((slice(0, c), slice(c, number))):
        thin[side, part] = -2 * shift[part]
        thin[side, -1] = shift[part].square().sum()

    def turn(matrix: Tensor) -> Tensor:
        found = matrix.clone()
        found[number:] += thin @ matrix
        found[:number] -= shift.unsqueeze(1) * matrix[-1:]
        return found

    return turn(turn(sums).mT).mT


def _scale(values: Tensor, origin: Tensor) -> float:
    """A power of two near the largest deviation: products neither over- nor underflow, and no digit is lost."""
    largest = (values - origin.to(values.dtype)).abs().amax()
    return float(torch.exp2(torch.where(largest > 0, largest, 1.0).double().log2().round()))
