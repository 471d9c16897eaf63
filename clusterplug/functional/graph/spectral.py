# SPDX-License-Identifier: Apache-2.0
"""Batched spectral clustering with medoids: graph, leading eigenvectors, k-medoids on their rows."""

import math
import warnings

import torch
from torch import Tensor

from clusterplug.core.checks import check_finite, check_mask, check_num_clusters, check_points
from clusterplug.core.numerics import exact_products, working_dtype
from clusterplug.core.origin import power_of_two
from clusterplug.functional.distance import self_distances
from clusterplug.functional.graph._affinity import affinity_matrix, normalized_adjacency
from clusterplug.functional.graph._leading_eigenvectors import leading_eigenvectors
from clusterplug.functional.kmedoids import KMedoidsResult, alternate, farthest_first, problems_at_once

AFFINITIES = ('knn', 'heat', 'precomputed')
SOLVERS = ('auto', 'eigh', 'subspace')

# Rows of unit length closer than this are the same row: eigenvectors in fp32 carry errors up to here.
_SAME_ROW = 1e-3


@torch.no_grad()
def spectral_clustering(
    x: Tensor,
    num_clusters: int,
    *,
    affinity: str = 'knn',
    sigma: float | str = 'local',
    num_neighbors: int | None = None,
    solver: str = 'auto',
    sort: bool = True,
    mask: Tensor | None = None,
) -> KMedoidsResult:
    r"""Cut the similarity graph of each set of points into K parts and name one point of each part.

    .. math:: A = D^{-1/2} W D^{-1/2}, \quad A U = U \Lambda, \quad r_n = U_n / (\|U_n\| + 10^{-6})

    with W the weights, D their row sums and U the eigenvectors of the K largest eigenvalues of
    A, which are those of the K smallest of the Laplacian :math:`I - A`. :func:`kmedoids` on the rows r, started at
    the point of largest degree, gives labels and medoids. Flipping or rotating U changes no distance between rows,
    so the result does not depend on the signs that a solver happens to return.

    Defined edges as in :func:`kmedoids`. A point without neighbors is a part of its own. The eigenvectors are tested
    against the gap that follows the K-th eigenvalue, and computed in float64 where fp32 does not resolve it. If the
    graph has more than K connected parts, the K largest eigenvalues are not unique and neither is the cut: a warning
    says so.

    Args:
        x: (..., N, D) points of any floating type, computed in fp32 at least; or (..., N, N) non-negative weights
            with ``affinity='precomputed'``, of which the two triangles are averaged and the diagonal set to the
            largest weight of its row; their unit does not matter.
        num_clusters: K, 1 <= K <= N.
        affinity: ``'knn'``: weights between nearest neighbors only; ``'heat'``: between all; ``'precomputed'``.
        sigma: Width of the weights ``exp(-d^2 / (2 sigma^2))``, in the unit of ``x``; ``inf`` gives weights 0 and 1.
            ``'local'`` (the default): ``exp(-d^2 / (s_i s_j))`` with s the distance of a point to its seventh
            neighbor, which suits any unit and density. In many dimensions a fixed width soon underflows: a warning
            says so.
        num_neighbors: For ``'knn'``, the point itself counted; default 10, or N if that is smaller.
        solver: ``'eigh'``, ``'subspace'`` (iteration with almost only products; it warns where it does not converge)
            or ``'auto'``: ``'eigh'`` for N < 1,000 on a CPU or K above about N / 6, else ``'subspace'``, and
            ``'eigh'`` again for the problems where that does not converge.
        sort: Number the clusters in the order of their medoids.
        mask: (..., N) bool, True = valid.

    Returns:
        KMedoidsResult(labels, medoids, cost, num_iters): medoids index the points of ``x``; cost and num_iters are
        those of k-medoids on the rows.

    Raises:
        TypeError: If ``x`` is not floating or ``mask`` not bool.
        ValueError: If K, ``num_neighbors``, ``sigma`` or an option is out of range, or a valid point is not finite.

    Source:
        Ng, Jordan and Weiss, "On spectral clustering", 2001; Zelnik-Manor and Perona, "Self-tuning spectral
        clustering", 2004 (local width); as used by Zhao et al., "CenterCLIP", SIGIR 2022, official code
        mzhaoshuai/CenterCLIP (CC-BY-NC 4.0).

        **Differs from the authors' code**: ``eigh`` or subspace iteration instead of an SVD; no sign correction,
        since it cannot change the result; the start is the largest degree, since all rows have the same norm and
        theirs is decided by rounding; neighbors at equal distance are kept together; local widths exist.

    Example:
        >>> import torch
        >>> angle = torch.arange(24) * (2 * torch.pi / 24)
        >>> ring = torch.stack([angle.cos(), angle.sin()], -1)
        >>> x = torch.cat([ring, 5 * ring])
        >>> labels = spectral_clustering(x, 2, sigma='local', num_neighbors=3).labels
        >>> labels.tolist() == [0] * 24 + [1] * 24
        True
    """
    check_points(x)
    _check_options(x, affinity, sigma, num_neighbors, solver)
    check_mask(mask, x.shape[:-1], x.device)
    check_num_clusters(num_clusters, x.shape[-2])
    check_finite(x, mask=mask)
    batch_shape, num_points = x.shape[:-2], x.shape[-2]
    points = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
    masks = None if mask is None else mask.reshape(len(points), num_points)
    step = problems_at_once(len(points), num_points, x.device)
    parts = []
    with exact_products(x):
        for first in range(0, max(1, len(points)), step):  # an empty batch, too, is one part
            part_mask = None if masks is None else masks[first : first + step]
            weights = _weights(points[first : first + step], affinity, sigma, num_neighbors, part_mask)
            parts.append(_cut(weights, num_clusters, solver, sort, part_mask))
    joined = [torch.cat(values) for values in zip(*parts)]
    return KMedoidsResult(*(value.reshape((*batch_shape, *value.shape[1:])) for value in joined))


def _weights(
    points: Tensor, affinity: str, sigma: float | str, num_neighbors: int | None, mask: Tensor | None
) -> Tensor:
    if affinity != 'precomputed':
        return affinity_matrix(self_distances(points, 'euclidean', mask), affinity, sigma, num_neighbors, mask)
    weights = self_distances(points, 'precomputed', mask)
    if bool((weights < 0).any()):
        raise ValueError("x must hold non-negative weights for affinity='precomputed', got negative ones")
    # a cut does not depend on the unit of the weights, so nothing here may: not the loops, nor sums near overflow
    largest = weights.amax((-2, -1), keepdim=True)
    weights = weights.div_(power_of_two(torch.where(largest > 0, largest, 1.0)))
    loops = weights.amax(-1)
    loops = torch.where(loops > 0, loops, 1.0)
    weights.diagonal(dim1=-2, dim2=-1).copy_(loops if mask is None else loops * mask)
    return weights


def _cut(weights: Tensor, num_clusters: int, solver: str, sort: bool, mask: Tensor | None) -> tuple[Tensor, ...]:
    vectors, degree = _embedding(weights, num_clusters, solver, mask)
    rows = vectors / (vectors.norm(dim=-1, keepdim=True) + 1e-6)
    distances = self_distances(rows.to(working_dtype(rows.dtype)), 'euclidean', mask)
    distances.masked_fill_(distances < _SAME_ROW, 0)
    medoids = farthest_first(distances, degree, num_clusters, mask)
    return alternate(distances, medoids, 100, 1e-6, sort, mask)


def _embedding(weights: Tensor, num_clusters: int, solver: str, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the leading eigenvectors (B, N, K) and the degrees (B, N)."""
    adjacency, degree = normalized_adjacency(weights, mask)
    vectors, good = leading_eigenvectors(adjacency, num_clusters, solver)
    missed = (~good).nonzero().flatten()
    if len(missed) and weights.dtype == torch.float32:
        # a gap that drowns in the rounding of fp32: the degrees, too, have to be taken in float64
        adjacency, _ = normalized_adjacency(weights[missed].double(), None if mask is None else mask[missed])
        precise, good[missed] = leading_eigenvectors(adjacency, num_clusters, solver)
        vectors[missed] = precise.to(vectors.dtype)
    if mask is not None:  # with fewer valid points than clusters there is nothing to separate
        good = good | (mask.sum(-1) <= num_clusters)
    if not bool(good.all()):
        warnings.warn(
            f'the cut is not unique, or was not found, in {int((~good).sum())} of {len(good)} problems: the '
            f'eigenvalues {num_clusters} and {num_clusters + 1} of the graph agree to rounding (more than '
            f"{num_clusters} connected parts?), or solver='subspace' did not converge; ask for another number of "
            f"clusters, more neighbors, or solver='eigh'",
            stacklevel=4,
        )
    return vectors, degree


def _check_options(x: Tensor, affinity: str, sigma: float | str, num_neighbors: int | None, solver: str) -> None:
    if affinity not in AFFINITIES:
        raise ValueError(f'affinity must be one of {", ".join(AFFINITIES)}, got {affinity!r}')
    if solver not in SOLVERS:
        raise ValueError(f'solver must be one of {", ".join(SOLVERS)}, got {solver!r}')
    if affinity == 'precomputed' and x.shape[-1] != x.shape[-2]:
        raise ValueError(
            f"x must be square (..., N, N) for affinity='precomputed', got {tuple(x.shape)}; pass the weights between "
            f"the points, or the points with affinity='knn'"
        )
    if isinstance(sigma, str):
        if sigma != 'local':
            raise ValueError(f"sigma must be a positive number or 'local', got {sigma!r}")
    elif not sigma > 0:
        raise ValueError(f"sigma must be a positive number or 'local', got {sigma}")
    if num_neighbors is not None and not 1 <= num_neighbors <= x.shape[-2]:
        raise ValueError(
            f'num_neighbors must lie between 1 and the number of points, {x.shape[-2]}, got {num_neighbors}'
        )
