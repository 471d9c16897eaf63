# SPDX-License-Identifier: Apache-2.0
"""Gaussians of clusters: covariances that cannot degenerate, and densities."""

import torch
from torch import Tensor


def fit_gaussians(
    x: Tensor, parts: Tensor, num_clusters: int, kind: str, ridge: float, max_ratio: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Means (K, D), regularized covariances (K, D, D) and shares (K,) of the clusters of points (n, D).

    Args:
        x: (n, D).
        parts: Labels (n,), or memberships (K, n, n) or factors of them (K, n, r) that are not rounded.
        num_clusters: K.
        kind: ``'full'``, ``'diag'``, ``'spherical'`` or ``'tied'``.
        ridge: Share of the mean variance.
        max_ratio: Of the eigenvalues of all covariances.
    """
    d = x.shape[1]
    means, scatter, sizes = (_of_labels if parts.dim() == 1 else _of_memberships)(x, parts, num_clusters)
    n = sizes.sum()
    pooled = scatter.sum(0) / n
    # a cluster of few points has a flat covariance: the missing ones are taken from all
    missing = (d + 1 - sizes).clamp_min(0)[:, None, None]
    covariances = (scatter + missing * pooled) / (sizes[:, None, None] + missing)
    eye = torch.eye(d, dtype=x.dtype, device=x.device)
    if kind == 'tied':
        covariances = pooled.expand_as(covariances)
    elif kind == 'diag':
        covariances = covariances * eye
    elif kind == 'spherical':
        covariances = covariances.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * eye
    spread = covariances.diagonal(dim1=1, dim2=2).mean(1)
    overall = (x - x.mean(0)).square().mean()
    floor = torch.where(overall > 0, overall * 1e-14, 1.0)  # equal points: any shape will do
    covariances = covariances + (ridge * spread + floor)[:, None, None] * eye
    values, vectors = torch.linalg.eigh(covariances)
    values = values.clamp_min(float(values.max()) / max_ratio)
    return means, (vectors * values.unsqueeze(-2)) @ vectors.mT, sizes / n


def _of_labels(x: Tensor, labels: Tensor, num_clusters: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means, scatters (sums of squares about them) and sizes."""
    member = torch.nn.functional.one_hot(labels, num_clusters).to(x.dtype)
    sizes = member.sum(0)
    means = member.mT @ x / sizes.clamp_min(1)[:, None]
    moved = (x - means[labels]) * member.T.unsqueeze(-1)  # (K, n, D)
    return means, moved.mT @ moved, sizes


def _of_memberships(x: Tensor, memberships: Tensor, num_clusters: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""The same without labels: :math:`\frac12 \sum_{ij} Z_{ij} (x_i - x_j) (x_i - x_j)^\top` is the scatter."""
    z = memberships.to(x.dtype)
    shift = x.mean(0)
    centered = x - shift
    if z.shape[-1] == z.shape[-2]:
        z = ((z + z.mT) / 2).clamp_min(0)  # so that the scatter cannot be indefinite
        rows, products = z.sum(-1), centered.mT @ z @ centered
    else:
        rows, products = (z * z.sum(1, keepdim=True)).sum(-1), (z.mT @ centered).mT @ (z.mT @ centered)
    sizes = rows.sum(-1)
    scatter = centered.mT @ (rows.unsqueeze(-1) * centered) - products
    means = rows @ centered / sizes.clamp_min(1e-12)[:, None] + shift
    return means, (scatter + scatter.mT) / 2, sizes


def log_densities(x: Tensor, means: Tensor, covariances: Tensor, weights: Tensor) -> Tensor:
    """(n, K) log of weight times density, plus D / 2 log 2 pi; -inf for clusters of weight 0."""
    factors = torch.linalg.cholesky(covariances)
    moved = (x[None] - means[:, None]).mT  # (K, D, n)
    white = torch.linalg.solve_triangular(factors, moved, upper=False)
    log_det = 2 * factors.diagonal(dim1=1, dim2=2).log().sum(1)
    return (-(white.square().sum(1) + log_det[:, None]) / 2 + weights.log()[:, None]).mT
