# SPDX-License-Identifier: Apache-2.0
"""Fewer vectors for a sequence without clustering: its last ones, or every n-th."""

import math

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_mask, check_num_clusters, check_points

__all__ = ['spaced_vectors', 'tail_vectors']


def tail_vectors(x: Tensor, mask: Tensor | None, num_vectors: int) -> tuple[Tensor, Tensor]:
    """Keep the last valid vectors of each sequence, in their order; all where there are no more.

    Args:
        x: (..., L, D) vectors, floating.
        mask: (..., L) bool, True = valid; None = all.
        num_vectors: K, >= 1.

    Returns:
        ``(vectors, mask)``: (..., K, D), and (..., K) bool; what is not there is zero with mask False.

    Raises:
        TypeError, ValueError: As :func:`~clusterplug.functional.cluster_vectors`; NaN and infinity pass.

    Source: the baseline "tail pruning" of Veneroso et al., arXiv 2505.11471, section 4.

    Example:
        >>> tail_vectors(torch.arange(4.0).view(4, 1), torch.tensor([True, True, True, False]), 2)[0].flatten().tolist()
        [1.0, 2.0]
    """
    valid = _check(x, mask)
    num_vectors = check_num_clusters(num_vectors)
    position = valid.cumsum(-1)
    first = (position[..., -1:] - num_vectors).clamp(min=0)
    return _compact(x, valid & (position > first), num_vectors)


def spaced_vectors(x: Tensor, mask: Tensor | None, spacing: int) -> tuple[Tensor, Tensor]:
    """Keep every ``spacing``-th valid vector of each sequence, from the first one on.

    Args:
        x: (..., L, D) vectors, floating.
        mask: (..., L) bool, True = valid; None = all.
        spacing: 1 keeps all, 2 every second.

    Returns:
        ``(vectors, mask)``: (..., ceil(L / spacing), D), and (..., ceil(L / spacing)) bool.

    Raises:
        TypeError, ValueError: As :func:`~clusterplug.functional.cluster_vectors`; NaN and infinity pass.

    Source: the baselines "K2", "K4" of Veneroso et al., arXiv 2505.11471, section 4.

    Example:
        >>> spaced_vectors(torch.arange(5.0).view(5, 1), None, 2)[0].flatten().tolist()
        [0.0, 2.0, 4.0]
    """
    valid = _check(x, mask)
    spacing = check_count(spacing, 'spacing', 1)
    kept = valid & ((valid.cumsum(-1) - 1) % spacing == 0)
    return _compact(x, kept, math.ceil(x.shape[-2] / spacing))


def _check(x: Tensor, mask: Tensor | None) -> Tensor:
    check_points(x)
    check_mask(mask, x.shape[:-1], x.device)
    return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if mask is None else mask


def _compact(x: Tensor, kept: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the kept vectors in front (..., size, D), zero where there are none, and which there are."""
    rank = torch.arange(1, size + 1, device=x.device).expand(*x.shape[:-2], size).contiguous()
    position = kept.cumsum(-1)
    index = torch.searchsorted(position, rank).clamp(max=x.shape[-2] - 1)
    there = rank <= position[..., -1:]
    vectors = x.gather(-2, index.unsqueeze(-1).expand(*index.shape, x.shape[-1]))
    return torch.where(there.unsqueeze(-1), vectors, 0.0), there
