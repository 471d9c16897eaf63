# SPDX-License-Identifier: Apache-2.0
"""Fewer vectors for a sequence: k-means inside each sequence of a batch, with the gradient of the means."""

import math

import torch
from torch import Tensor

from clusterplug.core.checks import (
    check_choice,
    check_count,
    check_device,
    check_finite,
    check_mask,
    check_num_clusters,
    check_number,
    check_points,
)
from clusterplug.core.numerics import exact_products, host_checks_allowed, working_dtype
from clusterplug.functional.tokens._vector_kmeans import assign

__all__ = ['cluster_vectors']

_STARTS = ('farthest', 'k-means++')


def cluster_vectors(
    x: Tensor,
    mask: Tensor | None = None,
    num_clusters: int | None = None,
    ratio: float | None = None,
    *,
    num_iters: int = 20,
    init: str | Tensor = 'farthest',
    generator: torch.Generator | None = None,
    return_labels: bool = False,
) -> tuple[Tensor, ...]:
    r"""Replace the vectors of each sequence by the means of their k-means clusters (CRISP).

    Labels come from Lloyd's iteration on the valid vectors of the sequence, without gradient; the means are then taken
    with gradient, so that for the labels a(i) as they are

    .. math:: c_j = \frac{1}{n_j} \sum_{a(i) = j} t_i, \qquad
              \frac{\partial L}{\partial t_i} = \frac{1}{n_{a(i)}} \frac{\partial L}{\partial c_{a(i)}} .

    A sequence with no more valid vectors than clusters passes through: its valid vectors come first, in their order,
    bit for bit. No random numbers with ``init='farthest'``; then neither other sequences of the batch nor padding
    change a sequence's labels (up to rounding where two centers are equally near).

    Args:
        x: (..., L, D) vectors, floating, any strides. Nothing is normalized: pass unit vectors for cosines.
        mask: (..., L) bool, True = valid; None = all. Masked vectors may hold anything, NaN too.
        num_clusters: K clusters a sequence. Exactly one of ``num_clusters`` and ``ratio``.
        ratio: Clusters of a sequence as a share in (0, 1] of its valid vectors: max(1, floor(ratio * L_i)).
        num_iters: Lloyd steps at most, >= 1. On the CPU they end where no vector changes its cluster.
        init: 'farthest' (the first valid vector, then always the one farthest from all chosen), 'k-means++' (drawn in
            proportion to the squared distance), or centers (K, D) or (..., K, D).
        generator: Random numbers of 'k-means++'; None = torch's default generator.
        return_labels: Also return (..., L) int64 labels, -1 where masked.

    Returns:
        ``(centers, mask)``: centers (..., K, D) in the type of ``x``, K = ``num_clusters`` whatever L is, or
        max(1, floor(ratio * L)); mask (..., K) bool, True = a cluster with vectors. Others (fewer different vectors
        than clusters, short or fully masked sequences, a smaller share) are zero rows with mask False.

    Raises:
        TypeError: ``x`` is not floating, ``mask`` not bool, a number of the wrong kind.
        ValueError: ``num_clusters`` below 1, ``ratio`` outside (0, 1], both or none of them; a shape or device that
            does not fit; NaN or infinity in a valid vector (on the CPU; elsewhere it stays in its sequence).

    Source: Veneroso et al., "CRISP: Clustering Multi-Vector Representations for Denoising and Pruning", arXiv
    2505.11471, section 3 (no official code; the paper leaves start and iterations open). **Differs from
    sigridjineth/crisp-py (MIT)**: gradients through the last means only, where theirs is cut off (faiss) or runs
    through all iterations; masks; an empty cluster keeps its center and is masked, where theirs jumps to a random
    vector; fp32 distances; one product for all sequences instead of a loop.

    Example:
        >>> x = torch.tensor([[[0.0], [0.2], [5.0], [9.0]]])
        >>> centers, mask = cluster_vectors(x, torch.tensor([[True, True, True, False]]), 2)
        >>> centers.flatten().tolist(), mask.tolist()
        ([0.10000000149011612, 5.0], [[True, True]])
    """
    size = _check(x, mask, num_clusters, ratio, init)
    num_iters = check_count(num_iters, 'num_iters', 1)
    lead, (length, dim) = x.shape[:-2], x.shape[-2:]
    batch = math.prod(lead)
    valid = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if mask is None else mask
    valid = valid.reshape(batch, length)
    start = draws = None
    if isinstance(init, Tensor):
        start = init.detach().expand(*lead, size, dim).reshape(batch, size, dim).to(working_dtype(x.dtype))
    elif init == 'k-means++':
        device = x.device if generator is None else generator.device
        draws = torch.rand(batch, size, generator=generator, device=device, dtype=torch.float32).to(x.device)
    with exact_products(x):
        values = x.reshape(batch, length, dim).to(working_dtype(x.dtype))
        if mask is not None:
            values = torch.where(valid.unsqueeze(-1), values, 0.0)
        with torch.no_grad():
            labels = _labels(values.detach(), valid, size, ratio, start, draws, num_iters)
            member = (labels.unsqueeze(-1) == torch.arange(size, device=x.device)).to(values.dtype)
            counts = member.sum(1)
        centers = torch.bmm(member.mT, values) / counts.clamp(min=1.0).unsqueeze(-1)
    result = centers.to(x.dtype).view(*lead, size, dim), (counts > 0).view(*lead, size)
    return (*result, labels.view(*lead, length)) if return_labels else result


def _labels(values, valid, size: int, ratio, start, draws, num_iters: int) -> Tensor:
    """Return labels (B, L), -1 where not valid: the rank of a vector in short sequences, else its cluster."""
    position = valid.cumsum(-1)
    total = position[:, -1]
    if size >= values.shape[1] and ratio in (None, 1):  # all pass through
        return (position - 1).masked_fill(~valid, -1)
    limits = torch.full_like(total, size) if ratio is None else _shares(total, ratio)
    labels = assign(values, valid, limits, start, draws, size, num_iters)
    labels = torch.where((total <= limits).unsqueeze(-1), position - 1, labels)
    return labels.masked_fill(~valid, -1)


def _shares(total: Tensor, ratio: float) -> Tensor:
    """Return max(1, floor(ratio * total)); 0.29 * 100 counts as 29, whatever its rounding."""
    return (total.double() * ratio + 1e-9).floor().long().clamp(min=1)


def _check(x, mask, num_clusters, ratio, init) -> int:
    """Check the arguments, and return K."""
    check_points(x)
    check_mask(mask, x.shape[:-1], x.device)
    if (num_clusters is None) == (ratio is None):
        raise ValueError(
            f'pass exactly one of num_clusters and ratio, got num_clusters={num_clusters!r} and ratio={ratio!r}'
        )
    if num_clusters is not None:
        size = check_num_clusters(num_clusters)
    else:
        ratio = check_number(ratio, 'ratio', most=1, above=0, hint='0.25 keeps a quarter of the vectors')
        size = max(1, math.floor(x.shape[-2] * ratio + 1e-9))
    if host_checks_allowed(x):
        check_finite(x.detach(), 'x', mask)
    if not isinstance(init, Tensor):
        check_choice(init, 'init', _STARTS, ' or a tensor of centers')
        return size
    check_points(init, 'init')
    check_device(init, x.device, 'init')
    shape = (size, x.shape[-1])
    if tuple(init.shape[-2:]) != shape or init.shape[:-2] not in (x.shape[:-2], torch.Size()):
        raise ValueError(f'init must have shape {shape} or {(*x.shape[:-2], *shape)}, got {tuple(init.shape)}')
    if host_checks_allowed(x):
        check_finite(init, 'init')
    return size
