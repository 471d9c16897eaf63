# SPDX-License-Identifier: Apache-2.0
"""Running second moments of two sets of columns, and what a linear probe makes of them."""

import torch
from torch import Tensor


class Moments:
    """Sums of z, y, z z^T, z y^T and y y^T in float64, around the mean of the first rows (digits survive an offset)."""

    def __init__(self):
        self.count = 0

    def add(self, z: Tensor, y: Tensor) -> None:
        """Take in rows z (n, D) and y (n, p)."""
        if not len(z):
            return
        z, y = z.double(), y.double()
        if not self.count:
            self.z_origin, self.y_origin = z.mean(0), y.mean(0)
            width = len(self.z_origin) + len(self.y_origin)
            self.sums, self.products = z.new_zeros(width), z.new_zeros(width, width)
        rows = torch.cat([z - self.z_origin, y - self.y_origin], 1)
        self.count += len(rows)
        self.sums += rows.sum(0)
        self.products.addmm_(rows.T, rows)

    def around(self, origin: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean (D + p,) and the mean product of deviations from ``origin`` (default: from the mean)."""
        shift = self.sums / self.count
        first = torch.cat([self.z_origin, self.y_origin])
        covariance = self.products / self.count - torch.outer(shift, shift)
        mean = first + shift
        if origin is not None:
            away = mean - origin
            covariance = covariance + torch.outer(away, away)
        return mean, (covariance + covariance.T) / 2

    def merged(self, other: 'Moments') -> 'Moments':
        """Return the moments of the rows of both."""
        if not other.count or not self.count:
            return self if self.count else other
        both = Moments()
        both.z_origin, both.y_origin, both.count = self.z_origin, self.y_origin, self.count + other.count
        mean, products = other.around(torch.cat([self.z_origin, self.y_origin]))
        both.sums = self.sums + other.count * (mean - torch.cat([self.z_origin, self.y_origin]))
        both.products = self.products + other.count * products
        return both


def probe_r2(train: Moments, test: Moments, projection: Tensor, ridge: float = 1e-3) -> float:
    """Return the held-out R^2 of a ridge probe of y on z @ ``projection``, fitted on one part and read on the other.

    R^2 = 1 - (squared error) / (squared deviation from the test mean), summed over the columns of y: what of the
    positions a linear map still tells. It is below 0 where the probe does worse than a constant.
    """
    dim = len(projection)
    mean, covariance = train.around()
    features = projection.T @ covariance[:dim, :dim] @ projection
    scale = features.diagonal().mean().clamp(min=torch.finfo(features.dtype).tiny)
    penalty = ridge * scale * torch.eye(dim, dtype=features.dtype, device=features.device)
    weights = torch.linalg.solve(features + penalty, projection.T @ covariance[:dim, dim:])
    _, seen = test.around(mean)
    reader = torch.cat([-projection @ weights, torch.eye(seen.shape[0] - dim, dtype=seen.dtype, device=seen.device)])
    error = (reader * (seen @ reader)).sum()
    return float(1 - error / test.around()[1][dim:, dim:].trace())
