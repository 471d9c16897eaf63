# SPDX-License-Identifier: Apache-2.0
"""One vector for a set of vectors, whose inner products approximate Chamfer similarity (MUVERA)."""

import math

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_finite, check_mask, check_points
from clusterplug.core.numerics import exact_products, host_checks_allowed, working_dtype

__all__ = ['fixed_dimensional_encoding']

# More buckets than this are a slip: 2^16 of them, each a vector, in every repetition.
_MOST_BITS = 16


def fixed_dimensional_encoding(
    x: Tensor,
    mask: Tensor | None = None,
    *,
    num_repetitions: int,
    num_bits: int,
    is_query: bool,
    fill_empty: bool = False,
    projection_dim: int | None = None,
    seed: int = 0,
) -> Tensor:
    r"""Encode each set of vectors by one vector, so that nearest-neighbor libraries can look for candidates.

    In each of r repetitions the signs of b random projections put a vector into one of 2^b buckets. A query's bucket
    is the sum of its vectors, a document's their mean; the buckets of all repetitions behind each other are the
    encoding, and

    .. math:: \langle E(Q), E(D) \rangle \approx r \sum_{u \in Q} \max_{v \in D} \langle u, v \rangle .

    It is exact for documents of one vector with ``fill_empty``. Both sides must use the same options and seed.

    Args:
        x: (..., L, D) vectors, floating.
        mask: (..., L) bool, True = valid; None = all. Masked vectors may hold anything, NaN too.
        num_repetitions: r, >= 1.
        num_bits: b from 0 to 16; 0 = one bucket.
        is_query: Sums (True) or means (False).
        fill_empty: Put into an empty document bucket the vector whose signs differ least from the bucket's (the first
            of equal ones). Not for queries: sums over empty buckets must stay 0.
        projection_dim: Channels d' of each bucket after a random +-1 projection scaled by 1 / sqrt(d'), which keeps
            inner products on average; None keeps all D.
        seed: Of the random projections; they are drawn on the CPU and are the same on every device.

    Returns:
        (..., r * 2^b * d') in fp32, or float64 for float64: sums of fp16 vectors leave the range of fp16. Zeros for a
        set without a valid vector. Buckets lie in the order of their Gray code. Gradients pass to ``x``; the buckets
        are constants.

    Raises:
        TypeError: ``x`` is not floating, ``mask`` not bool.
        ValueError: An option out of range, ``fill_empty`` for a query, NaN or infinity in a valid vector (CPU).

    Source: Dhulipala et al., "MUVERA: Multi-Vector Retrieval via Fixed Dimensional Encodings", NeurIPS 2024, arXiv
    2405.19504, section 2; google/graph-mining (Apache-2.0), read for behavior. **Differs from the authors' code**: the
    +-1 projection is the dense one of the paper, theirs is a count sketch; no final sketch; any device.

    Example:
        >>> q, d = torch.randn(3, 8, 4), torch.randn(5, 1, 4)
        >>> options = dict(num_repetitions=2, num_bits=3)
        >>> left = fixed_dimensional_encoding(q, is_query=True, **options)
        >>> right = fixed_dimensional_encoding(d, is_query=False, fill_empty=True, **options)
        >>> torch.allclose(left @ right.mT, 2 * torch.einsum('qld,nd->qn', q, d[:, 0]), atol=1e-4)
        True
    """
    check_points(x)
    check_mask(mask, x.shape[:-1], x.device)
    repetitions = check_count(num_repetitions, 'num_repetitions', 1)
    bits = check_count(num_bits, 'num_bits', 0, _MOST_BITS)
    width = None if projection_dim is None else check_count(projection_dim, 'projection_dim', 1)
    seed = check_count(seed, 'seed')
    for value, name in ((is_query, 'is_query'), (fill_empty, 'fill_empty')):
        if not isinstance(value, bool):
            raise TypeError(f'{name} must be True or False, got {value!r}')
    if is_query and fill_empty:
        raise ValueError('fill_empty must be False for queries (is_query=True): the empty buckets of a query count 0')
    if host_checks_allowed(x):
        check_finite(x.detach(), 'x', mask)
    lead, (length, dim) = x.shape[:-2], x.shape[-2:]
    batch, dtype = math.prod(lead), working_dtype(x.dtype)
    valid = x.new_ones(batch, length, dtype=torch.bool) if mask is None else mask.reshape(batch, length)
    generator = torch.Generator('cpu').manual_seed(seed)
    found = []
    with exact_products(x):
        values = torch.where(valid.unsqueeze(-1), x.reshape(batch, length, dim).to(dtype), 0.0)
        for _ in range(repetitions):
            planes = torch.randn(dim, bits, generator=generator, dtype=torch.float64).to(x.device, dtype)
            kept = values
            if width is not None:
                signs = torch.randint(0, 2, (dim, width), generator=generator).to(x.device, dtype).mul_(2).sub_(1)
                kept = values @ (signs / math.sqrt(width))
            found.append(_buckets(values.detach(), kept, valid, planes, is_query, fill_empty))
    return torch.stack(found, 1).view(*lead, -1) if batch else x.new_zeros(
        *lead, repetitions * 2**bits * (width or dim), dtype=dtype
    )  # fmt: skip


def _buckets(values, kept, valid, planes, is_query: bool, fill_empty: bool) -> Tensor:
    """Return (B, 2^b, d') buckets of one repetition."""
    bits = planes.shape[1]
    signs = (values @ planes > 0).long()  # (B, L, b)
    # reading the signs as a Gray code: neighbors in the order of buckets differ in one sign
    binary = signs.cumsum(-1) % 2
    place = 2 ** torch.arange(bits - 1, -1, -1, device=values.device)
    bucket = (binary * place).sum(-1)
    index = bucket.unsqueeze(-1).expand(-1, -1, kept.shape[-1])
    sums = kept.new_zeros(len(kept), 2**bits, kept.shape[-1]).scatter_add(1, index, kept)
    if is_query:
        return sums
    counts = kept.new_zeros(len(kept), 2**bits).scatter_add(1, bucket, valid.to(kept.dtype)).unsqueeze(-1)
    means = sums / counts.clamp(min=1.0)
    if not fill_empty:
        return means
    number = torch.arange(2**bits, device=values.device)
    pattern = ((number ^ (number >> 1)).unsqueeze(-1) // place % 2).to(kept.dtype)  # (2^b, b) signs of each bucket
    given = signs.to(kept.dtype)
    # |a - b| = a + b - 2 a b of 0/1 numbers, for all pairs by one product
    apart = given.sum(-1, keepdim=True) + pattern.sum(-1) - 2 * given @ pattern.mT
    nearest = apart.masked_fill(~valid.unsqueeze(-1), torch.inf).argmin(1)
    filled = kept.gather(1, nearest.unsqueeze(-1).expand(-1, -1, kept.shape[-1]))
    return torch.where(counts > 0, means, filled)
