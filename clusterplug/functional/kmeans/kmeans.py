# SPDX-License-Identifier: Apache-2.0
"""Lloyd's k-means: batched, masked, weighted, exact far from the origin, without an (N, K) matrix in memory."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import (
    check_count,
    check_device,
    check_finite,
    check_mask,
    check_num_clusters,
    check_number,
    check_points,
)
from clusterplug.core.numerics import exact_products, host_checks_allowed, working_dtype
from clusterplug.functional.kmeans._assign import nearest, problem_groups, squared_distances_to
from clusterplug.functional.kmeans._cpu import lloyd_cpu
from clusterplug.functional.kmeans._device import lloyd_device
from clusterplug.functional.kmeans._points import centered, from_centered, to_centered
from clusterplug.functional.kmeans.kmeans_init import flat_weights, kkz_indices, plus_plus_indices, random_draws

__all__ = ['KMeansResult', 'kmeans', 'nearest_center']


class KMeansResult(NamedTuple):
    """What ``kmeans`` returns."""

    labels: Tensor  # (..., N) int64, -1 where masked
    centers: Tensor  # (..., K, D) in the type of x
    inertia: Tensor  # (...,) sum of weight x squared distance, fp32 or float64
    num_iters: Tensor  # (...,) int64, iterations used


def kmeans(
    x: Tensor,
    num_clusters: int,
    *,
    init: str | Tensor = 'k-means++',
    num_iters: int = 100,
    tol: float | None = 1e-4,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    fixed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> KMeansResult:
    r"""Cluster each problem of a batch by Lloyd's iteration.

    .. math:: \min_{c, l} \sum_n w_n \, \| x_n - c_{l_n} \|^2, \qquad
              l_n = \arg\min_k \left( \|c_k\|^2 - 2 x_n \cdot c_k \right), \quad
              c_k = \frac{\sum_{l_n = k} w_n x_n}{\sum_{l_n = k} w_n} .

    The mean of the valid points is subtracted first, so an offset far larger than the spread costs no digits; fp16
    and bf16 points are assigned and summed in fp32. A point at equal distance goes to the lowest index. A cluster
    that loses all its points takes the farthest point of all (``_kmeans_update.relocate``), and with fewer different
    points than clusters repeats the center of the heaviest cluster. Everything is deterministic for a given
    ``generator`` state; no gradient passes through.

    Args:
        x: (..., N, D), floating; any strides.
        num_clusters: K, 1 <= K <= N.
        init: 'k-means++' (greedy, random), 'kkz' (farthest points, deterministic), or centers (K, D) or (..., K, D).
        num_iters: Most iterations, >= 1.
        tol: A problem stops when its centers move less, in squared distance summed over the clusters, than ``tol``
            x the mean variance of its coordinates, or when no label changes. 0 or None = fixed-iteration form: all
            ``num_iters`` iterations count as used, nothing is read on the host, so that on CUDA the call can be
            captured in a graph, and anywhere be compiled with ``fullgraph=True``. It relocates empty clusters in its
            first and then every eighth iteration; in between they keep their centers.
        mask: (..., N) bool, True = valid. Masked points may hold anything, NaN too.
        weights: (..., N) non-negative; None = 1. A point of weight 0 gets a label but moves nothing.
        fixed: (F, D) or (..., F, D) centers of groups that are known already, as in the discovery of novel classes: the
            starts of 'k-means++' and 'kkz' keep away from them as from each other. They do not move, take no points
            and are not returned.
        generator: Random numbers of 'k-means++'; None = torch's default generator of the device.

    Returns:
        ``KMeansResult(labels, centers, inertia, num_iters)``: labels (..., N) int64, the nearest of the returned
        centers, -1 where masked; centers (..., K, D) in the type of ``x``; inertia (...,) in fp32 (float64 for
        float64); num_iters (...,) int64. A problem without a valid point has labels -1, centers 0, inertia 0. With
        fewer valid points than K some centers repeat.

    Raises:
        TypeError: ``x`` not floating, ``mask`` not bool, ``num_clusters`` not an int.
        ValueError: Wrong shape or device, K outside 1 ... N, an unknown ``init``, negative ``tol``; negative weights
            and NaN or inf in valid points, with batch entries and counts (on the CPU always; elsewhere only with
            ``tol`` > 0, where the host reads a flag in each iteration anyway).

    Source: Lloyd 1982; stop and relocation rules as in scikit-learn's ``KMeans``, whose labels, centers, inertia and
    iterations it reproduces from given centers. **Differs from it**: batched, masked, on any device; the order among
    several relocated clusters is fixed.

    Example:
        >>> x = torch.tensor([[0.0], [0.2], [5.0], [5.2], [9.0]])
        >>> result = kmeans(x, 2, init=torch.tensor([[0.0], [9.0]]))
        >>> result.labels
        tensor([0, 0, 1, 1, 1])
        >>> result.centers
        tensor([[0.1000],
                [6.4000]])
    """
    all_iters = tol is None or tol == 0
    _check(x, num_clusters, init, num_iters, tol, mask)
    _check_fixed(x, init, fixed)
    lead, (num_points, dim) = x.shape[:-2], x.shape[-2:]
    flat, batch = x.detach().reshape(math.prod(lead), num_points, dim), math.prod(lead)
    weight = flat_weights(x, mask, weights)
    valid = None if mask is None else mask.reshape(batch, num_points)
    if not all_iters and x.device.type != 'cpu' and not torch.compiler.is_compiling():
        check_finite(x, 'x', mask)
    draws = start = None
    if isinstance(init, Tensor):
        start = init.detach().expand(*lead, num_clusters, dim).reshape(batch, num_clusters, dim)
    elif init == 'k-means++':
        draws = random_draws(batch, num_clusters, x, generator)
    known = None if fixed is None else fixed.detach().expand(*lead, *fixed.shape[-2:]).reshape(batch, -1, dim)
    if batch == 0:
        shapes, wide = ((*lead, num_points), (*lead, num_clusters, dim)), working_dtype(x.dtype)
        labels, used = x.new_empty(shapes[0], dtype=torch.int64), x.new_empty(lead, dtype=torch.int64)
        return KMeansResult(labels, x.new_empty(shapes[1]), x.new_empty(lead, dtype=wide), used)
    groups = problem_groups(flat, num_clusters) if host_checks_allowed(x) else [slice(0, batch)]
    options = (num_clusters, init, num_iters, float(tol or 0.0))
    with torch.no_grad(), exact_products(x):
        parts = []
        for group in groups:
            given = [None if each is None else each[group] for each in (flat, valid, weight, draws, start, known)]
            parts.append(_solve(given, options))
    labels, centers, inertia, used = parts[0] if len(parts) == 1 else (torch.cat(part) for part in zip(*parts))
    return KMeansResult(
        labels.view(*lead, num_points),
        centers.to(x.dtype).view(*lead, num_clusters, dim),
        inertia.view(lead),
        used.view(lead),
    )


def nearest_center(x: Tensor, centers: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the nearest center of every point and the squared distance to it, without an (N, K) matrix.

    Args:
        x: (..., N, D), floating.
        centers: (K, D) or (..., K, D).
        mask: (..., N) bool, True = valid.

    Returns:
        labels (..., N) int64, the lowest index at equal distance, -1 where masked; squared distances (..., N) in fp32
        (float64 for float64), exact 0 on a center, 0 where masked.

    Raises:
        TypeError: ``x`` or ``centers`` not floating, ``mask`` not bool.
        ValueError: Wrong shape or device.

    Source: the assignment step of Lloyd 1982.

    Example:
        >>> nearest_center(torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [5.0], [3.0]]))
        (tensor([0, 1]), tensor([1., 1.]))
    """
    check_points(x)
    check_mask(mask, x.shape[:-1], x.device)
    check_points(centers, 'centers')
    check_device(centers, x.device, 'centers')
    lead, (num_points, dim) = x.shape[:-2], x.shape[-2:]
    try:
        centers = centers.detach().expand(*lead, *centers.shape[-2:])
        fits = centers.shape[-1] == dim
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f'centers must have shape (K, {dim}) or {(*lead, "K", dim)}; check the last dimension')
    flat = x.detach().reshape(-1, num_points, dim)
    valid = None if mask is None else mask.reshape(-1, num_points)
    with torch.no_grad(), exact_products(x):
        table = centers.reshape(-1, *centers.shape[-2:])
        frame = centered(flat, valid, table)
        table = to_centered(table, frame)
        labels = nearest(frame.points, table)
        distances = squared_distances_to(frame.points, table, labels) / frame.scale.square().squeeze(-1)
        distances = distances.to(working_dtype(x.dtype))
    if valid is not None:
        labels, distances = labels.masked_fill(~valid, -1), distances.masked_fill(~valid, 0.0)
    return labels.view(*lead, num_points), distances.view(*lead, num_points)


def _solve(given: list, options: tuple) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return labels, centers, inertia and iterations of the problems x (B, N, D), all in one group."""
    x, valid, weights, draws, start, known = given
    num_clusters, init, num_iters, tol = options
    frame = centered(x, valid)
    points = frame.points
    weights = None if weights is None else weights.to(points.dtype)
    if start is not None:
        centers = to_centered(start, frame)
    else:
        known = None if known is None else to_centered(known, frame)
        if init == 'kkz':
            index = kkz_indices(points, frame.offset * frame.scale, weights, num_clusters, known)
        else:
            index = plus_plus_indices(points, weights, draws, known)
        centers = points.gather(1, index.unsqueeze(-1).expand(-1, -1, points.shape[-1]))
    tolerance = tol * frame.variance if tol > 0 else None
    lloyd = lloyd_cpu if frame.extended is None else lloyd_device

    def as_returned(values: Tensor) -> Tensor:
        if frame.is_plain and x.dtype == points.dtype:
            return values
        return to_centered(from_centered(values, frame).to(x.dtype), frame)

    table = points if frame.extended is None else frame.extended
    labels, centers, used = lloyd(table, weights, centers, num_iters, tolerance, as_returned)
    distances = squared_distances_to(points, centers, labels)
    if not frame.is_plain:
        distances = distances / frame.scale.square().squeeze(-1)
    inertia = (distances if weights is None else distances * weights).sum(-1, dtype=torch.float64)
    if valid is not None:
        labels = labels.masked_fill(~valid, -1)
    if tol == 0:
        used = torch.full_like(used, num_iters)
    return labels, from_centered(centers, frame).to(x.dtype), inertia.to(working_dtype(x.dtype)), used


def _check(x, num_clusters, init, num_iters, tol, mask) -> None:
    check_points(x)
    check_num_clusters(num_clusters, x.shape[-2])
    check_mask(mask, x.shape[:-1], x.device)
    check_count(num_iters, 'num_iters', 1)
    if tol is not None:
        check_number(tol, 'tol', 0, hint='0 runs all iterations')
    if not isinstance(init, Tensor):
        if init not in ('k-means++', 'kkz'):
            raise ValueError(f"init must be 'k-means++', 'kkz' or a tensor of centers, got {init!r}")
        return
    shape = (num_clusters, x.shape[-1])
    if init.dim() < 2 or tuple(init.shape[-2:]) != shape or init.shape[:-2] not in (x.shape[:-2], torch.Size()):
        raise ValueError(f'init must have shape {shape} or {(*x.shape[:-2], *shape)}, got {tuple(init.shape)}')
    if not init.is_floating_point():
        raise TypeError(f'init must have a floating dtype, got {init.dtype}; convert it with init.float()')
    check_device(init, x.device, 'init')
    if host_checks_allowed(x):
        check_finite(init, 'init')


def _check_fixed(x: Tensor, init: str | Tensor, fixed: Tensor | None) -> None:
    if fixed is None:
        return
    if isinstance(init, Tensor):
        raise ValueError("fixed must be None where init holds centers: it only guides 'k-means++' and 'kkz'")
    check_points(fixed, 'fixed')
    check_device(fixed, x.device, 'fixed')
    if fixed.shape[-1] != x.shape[-1] or fixed.shape[:-2] not in (torch.Size(), x.shape[:-2]):
        wanted = f'(F, {x.shape[-1]}) or {(*x.shape[:-2], "F", x.shape[-1])}'
        raise ValueError(f'fixed must have shape {wanted}, got {tuple(fixed.shape)}')
    if host_checks_allowed(x):
        check_finite(fixed, 'fixed')
