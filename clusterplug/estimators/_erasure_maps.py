# SPDX-License-Identifier: Apache-2.0
"""The maps that remove positions from features: LEACE, and orthogonal directions one step after the other."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.numerics import recordable, recording
from clusterplug.estimators._moments import Moments

_RANK = 1e-12  # eigenvalues below this fraction of the largest count as 0 (LayerNorm leaves one direction empty)


def stepwise(moments: Moments, dim: int, n_iter: int, data: tuple[Tensor, Tensor] | None) -> Iterator[tuple]:
    """Yield the symmetric projector and the rows it removes after each step, up to ``n_iter``.

    Steps are least squares, or with ``data`` (features, positions) the fit of a sigmoid head. Ends early where no
    linear trace of the positions is left.
    """
    mean, covariance = moments.around()
    features, cross = covariance[:dim, :dim], covariance[:dim, dim:]
    moment = features + torch.outer(mean[:dim], mean[:dim])
    frame = features.new_zeros(dim, 0)
    identity = torch.eye(dim, dtype=features.dtype, device=features.device)
    projection, start = identity, None
    for _ in range(n_iter):
        if data is None:
            weights = inverse_power(projection @ features @ projection, -1.0) @ (projection @ cross)
            strength = (weights * (projection @ cross)).sum()
        else:
            whitening = inverse_power(projection @ moment @ projection, -0.5)
            weights = whitening @ _fit_sigmoid(*data, whitening)
            strength = (weights * (moment @ weights)).sum()
        start = strength if start is None else start
        if not bool(strength > 1e-12 * start):
            return
        weights = weights - frame @ (frame.T @ weights)
        # all columns at once: they stay orthonormal to rounding, also where a new one holds next to nothing
        frame = torch.linalg.qr(torch.cat([frame, F.normalize(weights, dim=0)], 1))[0]
        projection = identity - frame @ frame.T
        yield projection, frame.T


def read_tokens(features: Any, positions: Any) -> tuple[Tensor, Tensor, bool]:
    """Return features (M, L, D) and positions (M, L, p) as floating tensors, and whether features were a tensor."""
    is_torch = isinstance(features, Tensor)
    z, y = as_tensor(features), as_tensor(positions)
    for name, values in (('features', z), ('positions', y)):
        if values.is_complex() or values.dtype == torch.bool:
            raise ValueError(f'{name} must hold real numbers, got {values.dtype}')
    if z.dim() < 2 or 0 in z.shape:
        raise ValueError(f'features must have shape (N, D) or (..., L, D) without empty sides, got {tuple(z.shape)}')
    z = z if z.is_floating_point() else z.double()
    y = y.to(z.device, torch.float64)
    lead = z.shape[:-1]
    if y.shape in (lead, lead[-1:]):
        y = y[..., None]
    if y.dim() < 2 or y.shape[:-1] not in (lead, lead[-1:]) or not y.shape[-1]:
        raise ValueError(
            f'positions must have shape {(*lead, "p")}, or {(lead[-1], "p")} for all images, got {tuple(y.shape)}; '
            f'give the coordinates of every token'
        )
    y = y.expand(*lead, y.shape[-1])
    if len(lead) == 1:
        return z[:, None], y[:, None], is_torch
    return z.reshape(-1, *z.shape[-2:]), y.reshape(-1, *y.shape[-2:]), is_torch


def as_tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    array = np.asarray(values)
    return torch.as_tensor(array.copy() if any(stride < 0 for stride in array.strides) else array)


def inverse_power(symmetric: Tensor, power: float) -> Tensor:
    """Return the power of a positive semi-definite matrix on its range, 0 elsewhere."""
    values, vectors = torch.linalg.eigh(symmetric)
    used = values > _RANK * values[-1].clamp(min=0)
    scaled = torch.where(used, torch.where(used, values, 1.0) ** power, 0.0)
    return (vectors * scaled) @ vectors.T


def leace(features: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """Return the LEACE map, for row vectors, and the rows that span what it reads."""
    whitening, coloring = inverse_power(features, -0.5), inverse_power(features, 0.5)
    left, strength, _ = torch.linalg.svd(whitening @ cross, full_matrices=False)
    left = left * (strength > 1e-10 * strength[0])
    reader = whitening @ left
    projection = -reader @ (coloring @ left).T
    projection.diagonal().add_(1.0)
    return projection, reader.T


@recording()
def _fit_sigmoid(z: Tensor, y: Tensor, whitening: Tensor) -> Tensor:
    """Return weights (D, p), in whitened channels, that minimize the squared error of sigmoid(z W) against 0 .. 1."""
    z, y, whitening = recordable(z), recordable(y), recordable(whitening)
    rows = z.to(torch.float32) @ whitening.to(torch.float32)
    low, high = y.amin(0), y.amax(0)
    target = ((y - low) / (high - low)).to(rows.dtype)
    weights = rows.new_zeros(rows.shape[1], y.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, history_size=20, line_search_fn='strong_wolfe')

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.mse_loss((rows @ weights).sigmoid(), target)
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach().double()
