# SPDX-License-Identifier: Apache-2.0
"""Fewer vectors for a document after training: means of the parts of a Ward tree."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_choice, check_count, check_finite, check_mask, check_points
from clusterplug.core.numerics import exact_products, host_checks_allowed, working_dtype
from clusterplug.functional.graph.linkage import label_parts, linkage

__all__ = ['pool_vectors']


def pool_vectors(
    x: Tensor, mask: Tensor | None, pool_factor: int, *, num_protected: int = 1, metric: str = 'euclidean'
) -> tuple[Tensor, Tensor]:
    """Replace the vectors of each sequence by about 1 / ``pool_factor`` as many means of similar ones.

    The first ``num_protected`` valid vectors stay. The n others are merged by Ward's criterion into
    max(n // pool_factor, 1) parts, and each part becomes its mean, which is not normalized. Nothing is learned: it is
    the comparison for :func:`~clusterplug.functional.cluster_vectors`, and made for documents at index time.

    Args:
        x: (..., L, D) vectors, floating, usually of length one.
        mask: (..., L) bool, True = valid; None = all.
        pool_factor: 1 keeps all, 2 halves.
        num_protected: First vectors (class token) that stay as they are.
        metric: 'euclidean', the distances that Ward's criterion is made for; 'cosine' hands it 1 - cosine as if those
            were Euclidean distances, as PyLate does.

    Returns:
        ``(vectors, mask)``: (..., L, D) with the protected vectors first and the means behind them, zero where mask
        (..., L) is False.

    Raises:
        TypeError, ValueError: A shape, kind or option that does not fit; NaN or infinity in a valid vector.

    Source: Clavie, Chaffin, Adams, "Reducing the Footprint of Multi-Vector Retrieval with Minimal Performance Impact
    via Token Pooling", arXiv 2409.14683; lightonai/pylate (MIT), ``pool_embeddings_hierarchical``. **Differs from
    PyLate**: Euclidean distances by default, batches, masks, gradients through the means.

    Example:
        >>> x = torch.tensor([[9.0], [0.0], [0.2], [5.0], [5.2]])
        >>> vectors, mask = pool_vectors(x, None, 2)
        >>> [round(each, 1) for each in vectors[mask].flatten().tolist()]
        [9.0, 0.1, 5.1]
    """
    check_points(x)
    check_mask(mask, x.shape[:-1], x.device)
    pool_factor = check_count(pool_factor, 'pool_factor', 1)
    num_protected = check_count(num_protected, 'num_protected')
    check_choice(metric, 'metric', ('euclidean', 'cosine'))
    if host_checks_allowed(x):
        check_finite(x.detach(), 'x', mask)
    length, dtype = x.shape[-2], working_dtype(x.dtype)
    valid = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if mask is None else mask
    position = valid.cumsum(-1) - 1
    pooled = valid & (position >= num_protected)
    with exact_products(x):
        values = torch.where(valid.unsqueeze(-1), x.to(dtype), 0.0)
        labels = torch.where(pooled, _parts(values.detach(), pooled, pool_factor, metric) + num_protected, position)
        labels = labels.masked_fill(~valid, -1)
        member = (labels.unsqueeze(-1) == torch.arange(length, device=x.device)).to(dtype)
        counts = member.sum(-2)
        vectors = member.mT @ values / counts.clamp(min=1.0).unsqueeze(-1)
    return vectors.to(x.dtype), counts > 0


def _parts(values: Tensor, pooled: Tensor, pool_factor: int, metric: str) -> Tensor:
    """Return the part (..., L) of each vector that is pooled; anything for the others."""
    total = pooled.sum(-1, keepdim=True)
    number = torch.where(total > 0, (total // pool_factor).clamp(min=1), 0)
    if metric == 'cosine':
        apart = 1 - values @ values.mT
        apart = (0.5 * (apart + apart.mT)).clamp(min=0.0)
        apart.diagonal(dim1=-2, dim2=-1).zero_()
        tree = linkage(apart, method='ward', metric='precomputed', mask=pooled)
    else:
        tree = linkage(values, method='ward', mask=pooled)
    return label_parts(tree, torch.arange(tree.heights.shape[-1], device=values.device) < total - number)
