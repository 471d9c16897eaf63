# SPDX-License-Identifier: Apache-2.0
"""Clustering as a semidefinite program: k-means, and the likelihood of Gaussians of different shapes."""

from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_num_clusters
from clusterplug.core.numerics import exact_products
from clusterplug.functional.kmeans import _sdp_admm, _sdp_factorized
from clusterplug.functional.kmeans._sdp_checks import (
    check_covariances,
    check_memory,
    check_problem,
    warn_unless_converged,
)
from clusterplug.functional.kmeans.membership import (
    means_energy,
    membership_labels,
    partition_blocks,
    partition_value,
    round_to_labels,
)

__all__ = ['SDPResult', 'kmeans_sdp', 'likelihood_sdp']

# Up to here a membership is also returned as (K, n, n) by the factorized solver; beyond, as its factors.
_LARGEST_MEMBERSHIP = 1 << 28


class SDPResult(NamedTuple):
    """A relaxed membership and how far it can be from the best partition."""

    memberships: Tensor  # (n, n), (K, n, n), or factors (n, r), (K, n, r)
    objective: Tensor  # value of the relaxed membership
    gap: Tensor  # upper bound on the value of every partition, less the value of the rounded one


@torch.no_grad()
def kmeans_sdp(
    x: Tensor,
    num_clusters: int,
    *,
    solver: str = 'admm',
    tol: float = 1e-6,
    num_iters: int = 2000,
    generator: torch.Generator | None = None,
) -> SDPResult:
    r"""Relax k-means to a semidefinite program, which has no local optima.

    .. math:: \max_Z \langle X X^\top, Z \rangle \quad \text{s.t. } Z \succeq 0,\ Z \ge 0,\ Z 1 = 1,\
              \operatorname{tr} Z = K

    A partition has :math:`Z_{ij} = 1 / n_k` for points of one cluster; its k-means cost is
    :math:`\|X\|^2 - \langle X X^\top, Z \rangle`. Where the relaxation returns a partition, that is the best one, and
    ``gap`` says so.

    Args:
        x: (n, D) floating. Computed in float64.
        num_clusters: K < n.
        solver: ``'admm'``: one eigendecomposition of n x n an iteration, up to about 1,000 points, with a certificate.
            ``'factorized'``: Z = U U' with U >= 0 of 2 K columns; O(n K (D + K)) an iteration, tens of thousands of
            points, a local solution without a certificate.
        tol: Relative accuracy of the constraints; 1e-4 is enough for labels.
        num_iters: Maximum number of iterations; a warning where it ends before ``tol`` (at 100 tol and above).
        generator: Start of ``'factorized'`` and of the k-means that rounds.

    Returns:
        SDPResult; memberships (n, n), those of the rounded partition where that is as good to ``tol``; for
        ``'factorized'`` with more than 16,384 points the factor (n, 2 K);
        :func:`membership_labels` makes labels. ``gap`` >= 0 is a proof for ``'admm'`` (a dual bound that holds at any
        accuracy, less the value of the rounded partition): 0 to rounding certifies that the partition is a global
        optimum of k-means. For ``'factorized'`` it is the relaxed less the rounded value. All in the type of ``x``.

    Raises:
        TypeError: If ``x`` is not a floating tensor.
        ValueError: If K >= n, ``x`` is not (n, D) or not finite, an option is out of range, or the dense solver would
            need more than 8 GB, with the number of bytes.

    Source: Peng and Wei, "Approximating k-means-type clustering via semidefinite programming", 2007; factorized as
    Zhuang, Chen, Yang and Zhang, "Statistically optimal k-means clustering via nonnegative low-rank semidefinite
    programming", ICLR 2024, code Yubo02/Statistically-Optimal-K-means-Clustering-via-Nonnegative-Low-rank-Semidefinite-
    Programming (no license). **Differs from the authors' code**: ADMM instead of SDPNAL+; step and penalty from the
    spectral norm instead of 1e-6 and 10, so the result does not depend on the unit; accelerated.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> z, objective, gap = kmeans_sdp(x, 2)
        >>> bool(gap < 1e-3), z.round(decimals=2)[0].abs()
        (True, tensor([0.5000, 0.5000, 0.0000, 0.0000]))
    """
    values = check_problem(x, solver, tol, num_iters)
    num_clusters = check_num_clusters(num_clusters, len(x) - 1)
    with exact_products(x):
        shift = values.mean(0)
        centered = values - shift
        offset = len(x) * shift.square().sum()  # the value moves by this, whatever the partition

        def value(labels: Tensor) -> Tensor:
            return means_energy(centered, labels, num_clusters)

        if solver == 'admm':
            check_memory(len(x), 1)
            solution = _sdp_admm.solve((centered @ centered.mT)[None], float(num_clusters), tol, num_iters)
            warn_unless_converged(solution.residual, tol, num_iters)
            membership = solution.blocks[0]
            objective, bound = (centered * (membership @ centered)).sum(), solution.bound
        else:
            start = torch.rand(1, len(x), 2 * num_clusters, dtype=torch.float64, generator=generator,
                               device=x.device if generator is None else generator.device).to(x.device)  # fmt: skip
            found = _sdp_factorized.solve(
                lambda u: centered @ (centered.mT @ u), start, float(num_clusters), max(tol, 1e-5), num_iters
            )
            warn_unless_converged(found.infeasible, max(tol, 1e-5), num_iters)
            factor = found.factors[0]
            objective = bound = (centered.mT @ factor).square().sum()
            membership = factor if len(x) ** 2 > _LARGEST_MEMBERSHIP else factor @ factor.mT
        labels = membership_labels(membership, num_clusters, generator=generator)
        rounded = value(labels)
        if solver == 'admm' and rounded >= objective - max(tol, 1e-6) * objective.abs():
            member = torch.nn.functional.one_hot(labels, num_clusters).double()
            membership, objective = (member / member.sum(0).clamp_min(1)) @ member.mT, rounded
        gap = (bound - rounded).clamp_min(0)
        return SDPResult(membership.to(x.dtype), (objective + offset).to(x.dtype), gap.to(x.dtype))


@torch.no_grad()
def likelihood_sdp(
    x: Tensor,
    covariances: Tensor,
    *,
    solver: str = 'admm',
    tol: float = 1e-6,
    num_iters: int = 2000,
    init: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> SDPResult:
    r"""Relax the clustering of Gaussians of known shapes (LA-SDP): one membership for each cluster, no means.

    .. math:: \max \sum_k \langle A_k, Z_k \rangle \quad \text{s.t. } Z_k \succeq 0,\ Z_k \ge 0,\
              \operatorname{tr} Z_k = 1,\ \Bigl(\sum_k Z_k\Bigr) 1 = 1, \qquad
              (A_k)_{ij} = -\tfrac12 \| x_i - x_j \|^2_{\Sigma_k^{-1}} - \log\det \Sigma_k

    For a partition the value is twice its log-likelihood, with the means of the clusters, plus :math:`n D \log 2 \pi`.

    Args:
        x: (n, D) floating. Computed in float64.
        covariances: (K, D, D) symmetric positive definite, of K < n clusters.
        solver: See :func:`kmeans_sdp`; ``'factorized'`` uses two columns a cluster.
        tol: See :func:`kmeans_sdp`.
        num_iters: See :func:`kmeans_sdp`.
        init: (n,) int64 labels to start at, or for ``'admm'`` memberships (K, n, n) of a program before this one;
            decides how fast ``'admm'`` ends, and with ``'factorized'`` where.
        generator: Starts of ``'factorized'`` without ``init``.

    Returns:
        SDPResult; memberships (K, n, n), those of the rounded partition where that is as good to ``tol``; for
        ``'factorized'`` with more than 16,384 / sqrt(K) points the factors
        (K, n, 2). Labels are ``memberships.sum(-1).argmax(0)``, or :func:`membership_labels`.

    Raises:
        TypeError: If an argument is not a floating tensor.
        ValueError: If shapes do not fit, K >= n, a covariance is not positive definite, ``x`` is not finite, or the
            dense solver would need more than 8 GB.

    Source: Zhuang, Chen and Yang, "Likelihood adjusted semidefinite programs for clustering heterogeneous data", ICML
    2023, arXiv 2209.15097; no official code. **Differs**: reconstructed from the likelihood; traces are fixed one by
    one, so exactly K clusters remain; ADMM with a dual bound instead of SDPNAL+.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> result = likelihood_sdp(x, torch.ones(2, 1, 1))
        >>> result.memberships.sum(-1).argmax(0).bincount()
        tensor([2, 2])
    """
    values = check_problem(x, solver, tol, num_iters)
    factors, log_dets = check_covariances(covariances, x)
    num_clusters, n = len(covariances), len(x)
    with exact_products(x):
        centered = values - values.mean(0)
        white = torch.linalg.solve_triangular(factors, centered.mT, upper=False).mT  # (K, n, D)
        lengths = white.square().sum(-1)

        def value(labels: Tensor) -> Tensor:
            return partition_value(white, log_dets, labels)

        if solver == 'admm':
            check_memory(n, num_clusters)
        start = None if init is None else _start_blocks(init, n, num_clusters, solver)
        if solver == 'admm':
            affinity = white @ white.mT - (lengths[:, :, None] + lengths[:, None]) / 2 - log_dets[:, None, None]
            solution = _sdp_admm.solve(affinity, 1.0, tol, num_iters, start)
            warn_unless_converged(solution.residual, tol, num_iters)
            memberships, bound = solution.blocks, solution.bound
            objective = (affinity * memberships).sum()
            near = 10 * max(tol, 1e-6) * (num_clusters * n) ** 0.5
        else:
            found = _factorized_likelihood(white, lengths, log_dets, max(tol, 1e-5), num_iters, init, generator)
            warn_unless_converged(found.infeasible, max(tol, 1e-5), num_iters)
            memberships, near = found.factors, None
            objective = bound = (memberships * _times(white, lengths, log_dets)(memberships)).sum()
            if num_clusters * n**2 <= _LARGEST_MEMBERSHIP:
                memberships = memberships @ memberships.mT
        labels = round_to_labels(memberships, white, log_dets, generator)
        rounded = value(labels)
        if near is not None:
            partition = partition_blocks(labels, num_clusters)
            # as likely to tol nats a coordinate, or no further than the solver is accurate
            if rounded >= objective - max(tol, 1e-6) * values.numel() or (memberships - partition).norm() <= near:
                memberships, objective = partition, rounded
        gap = (bound - rounded).clamp_min(0)
        return SDPResult(memberships.to(x.dtype), objective.to(x.dtype), gap.to(x.dtype))


@torch.no_grad()
def _times(white: Tensor, lengths: Tensor, log_dets: Tensor):
    """U -> A_k U_k without A: the affinities have rank D + 2."""

    def times(u: Tensor) -> Tensor:
        sums = u.sum(1, keepdim=True)
        weighted = torch.einsum('kn,knr->kr', lengths, u)[:, None]
        result = white @ (white.mT @ u)
        return result - (lengths[:, :, None] * sums + weighted) / 2 - log_dets[:, None, None] * sums

    return times


def _factorized_likelihood(white, lengths, log_dets, tol, num_iters, init, generator):
    num_clusters, n = lengths.shape
    plain = _times(white, lengths, log_dets)
    # the same (c 1' + 1 c') / 2 less in every block changes the value by a constant and the norm a lot
    common = (-lengths - log_dets[:, None]).mean(0)

    def times(u: Tensor) -> Tensor:
        sums = u.sum(1, keepdim=True)
        return plain(u) - (common[None, :, None] * sums + (common[None, :, None] * u).sum(1, keepdim=True)) / 2

    device = white.device if generator is None else generator.device
    best, best_value = None, None
    for _ in range(1 if init is not None else 4):
        start = torch.rand(num_clusters, n, 2, dtype=torch.float64, generator=generator, device=device)
        start = start.to(white.device)
        if init is not None:
            member = torch.nn.functional.one_hot(init, num_clusters).double().mT.unsqueeze(-1)
            start = member + 0.05 * start
        found = _sdp_factorized.solve(times, start, 1.0, tol, num_iters)
        worth = partition_value(white, log_dets, membership_labels(found.factors, num_clusters))
        if best_value is None or worth > best_value:
            best, best_value = found, worth
    return best


def _start_blocks(init: Tensor, n: int, num_clusters: int, solver: str) -> Tensor | None:
    """Memberships (K, n, n) to start at; None for the factorized solver, which starts at the labels."""
    if solver == 'admm' and init.dim() == 3:
        if init.shape != (num_clusters, n, n) or not bool(init.isfinite().all()):
            raise ValueError(f'init must be finite ({num_clusters}, {n}, {n}) memberships, got {tuple(init.shape)}')
        return init.double()
    if init.shape != (n,) or init.is_floating_point() or bool(((init < 0) | (init >= num_clusters)).any()):
        raise ValueError(f'init must be (n,) = ({n},) labels in 0 .. {num_clusters - 1}, got {tuple(init.shape)}')
    return partition_blocks(init, num_clusters) if solver == 'admm' else None
