# SPDX-License-Identifier: Apache-2.0
"""Contrast along time: neighbors in a sequence against all its other steps; and the linear map from step to step."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clusterplug.core.checks import check_count, check_finite, check_number, check_points
from clusterplug.core.numerics import host_checks_allowed, no_autocast, working_dtype

__all__ = ['linear_dynamics', 'temporal_contrast']


def temporal_contrast(z: Tensor, *, num_neighbors: int, temperature: float) -> Tensor:
    r"""Return the InfoNCE loss of sequences whose positives are the steps close in time.

    .. math:: L = -\mathrm{mean}_t \log \frac{\sum_{0 < |s - t| \le k} e^{\cos(z_t, z_s) / \tau}}
              {\sum_{s \ne t} e^{\cos(z_t, z_s) / \tau}}, \qquad k \le t < T - k

    One product and two log-sum-exps with band masks. Anchors are the steps with all of their neighbors.

    Args:
        z: (..., T, D) sequences, T > 2 k. Rows of zeros have cosine 0 with all.
        num_neighbors: k, on each side.
        temperature: tau.

    Returns:
        0-dim mean over anchors and sequences in the type of ``z``, computed in fp32 at least;
        log((T - 1) / (2 k)) for sequences that do not change.

    Raises:
        TypeError: ``z`` is not floating, ``num_neighbors`` no int.
        ValueError: T <= 2 k, a temperature that is not positive; on the CPU also NaN or inf.

    Source: Cheng et al., "Information Shapes Koopman Representation", ICLR 2026 (arXiv 2510.13025); official code
    Wenxuan52/InformationKoopman (no license). **Differs from the authors' code**: T <= 2 k raises, where theirs returns
    0; no loop over anchors.

    Example:
        >>> temporal_contrast(torch.ones(2, 16, 4), num_neighbors=3, temperature=0.1)
        tensor(0.9163)
    """
    check_points(z, 'z')
    neighbors = check_count(num_neighbors, 'num_neighbors', 1)
    temperature = check_number(temperature, 'temperature', above=0)
    steps = z.shape[-2]
    if steps <= 2 * neighbors:
        raise ValueError(
            f'z must have more than 2 * num_neighbors steps, got {steps} for num_neighbors {neighbors}; use longer '
            f'windows or fewer neighbors'
        )
    if host_checks_allowed(z):
        check_finite(z, 'z')
    with no_autocast(z):
        rows = z.to(working_dtype(z.dtype))
        largest = rows.detach().abs().amax(-1, keepdim=True)
        rows = F.normalize(rows / torch.where(largest > 0, largest, 1.0), dim=-1)
        time = torch.arange(steps, device=z.device)
        anchors = slice(neighbors, steps - neighbors)
        apart = (time[anchors, None] - time).abs()
        scores = rows[..., anchors, :] @ rows.mT / temperature
        never = torch.finfo(scores.dtype).min
        total = scores.masked_fill(apart == 0, never).logsumexp(-1)
        close = scores.masked_fill((apart == 0) | (apart > neighbors), never).logsumexp(-1)
        return ((total - close).mean() if total.numel() else total.sum()).to(z.dtype)


def linear_dynamics(z: Tensor, z_next: Tensor, *, ridge: float = 0.0) -> Tensor:
    r"""Return the matrix K of the linear map from each step to the next, by ridge regression.

    .. math:: K = (Z^\top Z + \rho I)^{-1} Z^\top Z_+ = Z^\top (Z Z^\top + \rho I)^{-1} Z_+, \qquad z_+ \approx z K

    By the smaller of both systems, (D x D) or (T x T). Differentiable.

    Args:
        z: (..., T, D) states.
        z_next: (..., T, D) their successors.
        ridge: rho >= 0; 0 needs at least as many steps as dimensions that vary (else the pseudo-inverse is taken).

    Returns:
        (..., D, D) in the type of ``z``, computed in float64.

    Raises:
        TypeError: No floating tensors.
        ValueError: Shapes that do not fit, a negative ridge; on the CPU also NaN or inf.

    Source: as :func:`temporal_contrast`.

    Example:
        >>> turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> linear_dynamics(z, z @ turn)
        tensor([[ 0.,  1.],
                [-1.,  0.]])
    """
    check_points(z, 'z')
    check_points(z_next, 'z_next')
    ridge = check_number(ridge, 'ridge', 0)
    if z.shape != z_next.shape:
        raise ValueError(f'z_next must have the shape of z, {tuple(z.shape)}, got {tuple(z_next.shape)}')
    if host_checks_allowed(z):
        check_finite(z, 'z')
        check_finite(z_next, 'z_next')
    with no_autocast(z):
        one, other = z.double(), z_next.double()
        if ridge == 0:
            return (torch.linalg.pinv(one) @ other).to(z.dtype)
        tall = one.shape[-2] >= one.shape[-1]
        gram = one.mT @ one if tall else one @ one.mT
        gram = gram + ridge * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        found = torch.linalg.solve(gram, one.mT @ other) if tall else one.mT @ torch.linalg.solve(gram, other)
        return found.to(z.dtype)
