# SPDX-License-Identifier: Apache-2.0
"""Chamfer (MaxSim) similarity of every query with every document, in chunks, with masks that mask."""

from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_device, check_mask, check_points
from clusterplug.core.numerics import exact_products, working_dtype

__all__ = ['chamfer_similarity']


def chamfer_similarity(
    q: Tensor,
    q_mask: Tensor | None,
    d: Tensor,
    d_mask: Tensor | None,
    *,
    chunk_elements: int = 1 << 22,
) -> Tensor:
    r"""Return the sum over a query's vectors of their largest inner product with a document's vectors, for all pairs.

    .. math:: S_{ij} = \sum_{u \in Q_i} \max_{v \in D_j} \langle u, v \rangle

    Masked document vectors never win, also where all other products are negative; masked query vectors add 0. At most
    ``chunk_elements`` products are in memory at once, so that 1,000 queries x 10,000 documents need little more than
    their inputs.

    Args:
        q: (Q, L, D) query vectors, floating; fp16 and bf16 are multiplied in fp32.
        q_mask: (Q, L) bool, True = valid; None = all. Masked vectors may hold anything, NaN too.
        d: (N, M, D) document vectors.
        d_mask: (N, M) bool likewise.
        chunk_elements: Products at once, at least L x M of one pair.

    Returns:
        (Q, N) scores in fp32, or float64 if one input is: sums of fp16 products leave the range of fp16. 0 for a query
        without a valid vector; -inf for a document without one (where the query has any). The gradient goes to the
        nearest document vector of each query vector; of equal ones, to one.

    Raises:
        TypeError: A tensor is not floating, a mask not bool.
        ValueError: Shapes or devices that do not fit.

    Source: Khattab and Zaharia, "ColBERT", SIGIR 2020, arXiv 2004.12832, equation 3. **Differs from the code of
    lightonai/pylate (MIT)**, which multiplies masked products by 0: padding wins wherever all real ones are negative.

    Example:
        >>> q, d = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[-1.0], [-3.0]], [[5.0], [7.0]]])
        >>> chamfer_similarity(q, None, d, torch.tensor([[True, True], [True, False]])).tolist()
        [[-3.0, 15.0]]
    """
    _check(q, q_mask, d, d_mask)
    chunk_elements = check_count(chunk_elements, 'chunk_elements', 1)
    (num_queries, length, _), (num_documents, width, _) = q.shape, d.shape
    dtype = working_dtype(q.dtype, d.dtype)
    if num_queries == 0 or num_documents == 0:
        return (q.sum() + d.sum()).to(dtype) * q.new_zeros(num_queries, num_documents, dtype=dtype)
    # documents of a chunk are reused by all queries: take as many queries as fit next to some of them
    queries = min(num_queries, max(1, chunk_elements // (length * width)))
    documents = min(num_documents, max(1, chunk_elements // (length * width * queries)))
    recorded = torch.is_grad_enabled() and (q.requires_grad or d.requires_grad)
    # filling masked products costs less than copying documents without the masked vectors, unless there are many rows
    copies = recorded or num_queries * length > d.shape[-1]
    # written into one tensor: small ones kept from each chunk would lie between the large ones of the next, and the
    # memory of these could not be used again
    found = None if recorded else q.new_empty(num_queries, num_documents, dtype=dtype)
    columns = []
    with exact_products(q):
        for first in range(0, num_documents, documents):
            chosen = slice(first, first + documents)
            some, rows = _documents(d, d_mask, chosen, dtype, copies), []
            for start in range(0, num_queries, queries):
                part = slice(start, start + queries)
                scores = _scores(q[part], None if q_mask is None else q_mask[part], some, recorded)
                if found is None:
                    rows.append(scores)
                else:
                    found[part, chosen] = scores
            if rows:
                columns.append(torch.cat(rows))
        return torch.cat(columns, 1) if found is None else found


class _Documents(NamedTuple):
    """Some documents: vectors (n, M, D), and what keeps the masked ones out."""

    vectors: Tensor
    bias: Tensor | None  # (n * M,) 0 or -inf, added to products; then masked vectors are 0
    masked: Tensor | None  # (n, M) bool, products to overwrite


def _documents(d: Tensor, mask: Tensor | None, part: slice, dtype: torch.dtype, copies: bool) -> _Documents:
    vectors = d[part].to(dtype)
    if mask is None:
        return _Documents(vectors, None, None)
    mask = mask[part]
    if not copies:
        return _Documents(vectors, None, ~mask)
    bias = torch.where(mask, 0.0, -torch.inf).to(dtype).flatten()
    return _Documents(torch.where(mask.unsqueeze(-1), vectors, 0.0), bias, None)


def _scores(q: Tensor, mask: Tensor | None, documents: _Documents, recorded: bool) -> Tensor:
    """Return (b, n) scores of a chunk."""
    vectors = documents.vectors
    values = q.to(vectors.dtype)
    if mask is not None:
        values = torch.where(mask.unsqueeze(-1), values, 0.0)
    table = vectors.reshape(-1, vectors.shape[-1]).mT
    flat = values.reshape(-1, values.shape[-1])
    products = flat @ table if documents.bias is None else torch.addmm(documents.bias, flat, table)
    products = products.view(*values.shape[:2], *vectors.shape[:2])
    if documents.masked is not None:
        products.masked_fill_(documents.masked, -torch.inf)
    # max keeps one number of each row for the backward pass, amax would keep all products
    best = products.max(-1).values if recorded else products.amax(-1)
    if mask is not None:
        best = torch.where(mask.unsqueeze(-1), best, 0.0)
    return best.sum(1)


def _check(q, q_mask, d, d_mask) -> None:
    for x, mask, name in ((q, q_mask, 'q'), (d, d_mask, 'd')):
        check_points(x, name)
        if x.dim() != 3:
            raise ValueError(f'{name} must have shape (sequences, vectors, channels), got {tuple(x.shape)}')
        check_mask(mask, x.shape[:2], x.device, f'{name}_mask')
    check_device(d, q.device, 'd')
    if q.shape[-1] != d.shape[-1]:
        raise ValueError(
            f'q and d must have vectors of the same width, got {q.shape[-1]} and {d.shape[-1]}; '
            f'encode both with the same model'
        )
