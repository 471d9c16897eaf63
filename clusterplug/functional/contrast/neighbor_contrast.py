# SPDX-License-Identifier: Apache-2.0
"""Contrast of every node with its neighbors in a graph: O(N B) memory, the denominator recomputed in backward."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clusterplug.core.checks import check_count, check_device, check_finite, check_number, check_points
from clusterplug.core.numerics import exact_products, host_checks_allowed, working_dtype

__all__ = ['neighbor_contrast']


def neighbor_contrast(
    z: Tensor,
    weights: Tensor | tuple[Tensor, Tensor],
    *,
    temperature: float,
    include_self: bool = True,
    eps: float = 1e-8,
    block_size: int = 1024,
) -> Tensor:
    r"""Return the neighbor-contrastive loss of embeddings under the weights of a graph.

    .. math:: L = -\frac{1}{N} \sum_n \log\left(
              \frac{\sum_m \Gamma_{nm} e^{c_{nm} / \tau}}{\sum_m e^{c_{nm} / \tau}} + \epsilon \right), \qquad
              c_{nm} = \cos(z_n, z_m), \quad c_{nn} := 0

    No N x N matrix is kept: rows are taken in blocks and computed once more in the backward pass. The length of the
    embeddings plays no part. With rows of weights that sum to r, L >= -log max(Gamma), and L -> log N - log r for
    large temperatures.

    Args:
        z: (N, D), floating; fp16 and bf16 are computed in fp32.
        weights: Gamma, non-negative: dense (N, N), sparse (COO or CSR) (N, N), or a pair (indices, weights) of
            (N, m) as of :func:`clusterplug.functional.knn_graph`. No gradient goes to them.
        temperature: tau > 0, which divides; the paper's tau multiplies and is 1 / temperature.
        include_self: Keep the pair of a node with itself, at e^0, in both sums, as the official code does; it keeps
            the row of a node without neighbors defined. False leaves it out of both.
        eps: Inside the logarithm.
        block_size: B, rows at once.

    Returns:
        0-dim loss in the type of ``z``; differentiable once. N = 0 gives 0.

    Raises:
        TypeError: ``z`` is not floating, ``weights`` is none of the three.
        ValueError: A wrong shape, device or option; on the CPU also NaN, inf or negative weights.

    Source: Kulatilleke, Portmann and Chandra, "SCGC: Self-Supervised Contrastive Graph Clustering", arXiv 2204.12656,
    after Hu et al., Graph-MLP, arXiv 2106.04051; gayanku/SCGC (MIT by its README): ``Ncontrast``. **Differs from the
    authors' code**: same numbers, but not N x N memory; a zero embedding has cosine 0 instead of NaN.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> pairs = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]])
        >>> round(float(neighbor_contrast(z, pairs, temperature=0.5)), 3)
        0.952
    """
    check_points(z, 'z', allow_empty=True)
    if z.dim() != 2:
        raise ValueError(f'z must have shape (N, D), got {tuple(z.shape)}; give one graph at a time')
    temperature = check_number(temperature, 'temperature', above=0)
    eps = check_number(eps, 'eps', 0)
    block_size = check_count(block_size, 'block_size', 1)
    if host_checks_allowed(z):
        check_finite(z, 'z')
    dtype = working_dtype(z.dtype)
    edges = _edges(weights, z, dtype)
    if not len(z):
        return z.sum()
    with exact_products(z):
        values = z.to(dtype)
        # In units of the largest entry, so that the sum of squares stays in range.
        largest = values.detach().abs().amax(-1, keepdim=True)
        values = values / torch.where(largest > 0, largest, 1.0)
        units = torch.nn.functional.normalize(values, dim=-1, eps=1e-12)
        losses = _NeighborContrast.apply(units, *edges, 1 / temperature, include_self, eps, block_size)
        return losses.mean().to(z.dtype)


def _edges(weights, z: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return first edges of rows (N + 1,), columns and values, sorted by row."""
    num_nodes = len(z)
    if isinstance(weights, tuple) and len(weights) == 2 and all(isinstance(each, Tensor) for each in weights):
        indices, values = weights
        check_device(indices, z.device, 'weights')
        if indices.shape != values.shape or indices.dim() != 2 or len(indices) != num_nodes:
            raise ValueError(
                f'weights must hold indices and weights ({num_nodes}, m), got {tuple(indices.shape)} and '
                f'{tuple(values.shape)}'
            )
        if indices.dtype != torch.int64:
            raise TypeError(f'the indices of weights must be int64, got {indices.dtype}')
        if host_checks_allowed(indices) and indices.numel():
            low, high = indices.aminmax()
            if low < 0 or high >= num_nodes:
                raise ValueError(
                    f'the indices of weights must lie in 0 .. {num_nodes - 1}, got {int(low)} .. {int(high)}'
                )
        first = torch.arange(num_nodes + 1, device=z.device) * indices.shape[1]
        found = first, indices.flatten(), values.detach().flatten().to(dtype)
    elif isinstance(weights, Tensor):
        check_device(weights, z.device, 'weights')
        if tuple(weights.shape) != (num_nodes, num_nodes):
            raise ValueError(f'weights must have shape {(num_nodes, num_nodes)}, got {tuple(weights.shape)}')
        matrix = weights.detach()
        matrix = (matrix if matrix.layout == torch.sparse_coo else matrix.to_sparse_coo()).coalesce()
        rows, columns = matrix.indices()
        first = torch.zeros(num_nodes + 1, dtype=torch.int64, device=z.device)
        first[1:] = torch.bincount(rows, minlength=num_nodes).cumsum(0)
        found = first, columns, matrix.values().to(dtype)
    else:
        raise TypeError(
            f'weights must be a dense or sparse tensor (N, N) or a pair (indices, weights), got '
            f'{type(weights).__name__}'
        )
    if host_checks_allowed(z) and found[2].numel() and not bool((found[2] >= 0).all() & found[2].isfinite().all()):
        raise ValueError('weights must be finite and not negative; drop those edges')
    return found


class _NeighborContrast(torch.autograd.Function):
    """Losses of all rows; backward recomputes the similarities block by block.

    With P = exp(S - logsumexp S) and rho_n = sum_m Gamma_nm P_nm: d L_n / d S_nm = P_nm (rho_n - Gamma_nm) /
    (rho_n + eps), and 0 on the diagonal, which is a constant.
    """

    @staticmethod
    def forward(ctx, units, first, columns, values, sharpness, include_self, eps, block_size):
        parts = []
        for start in range(0, len(units), block_size):
            scores = _scores(units, start, block_size, sharpness, include_self)
            log_sum = scores.logsumexp(-1)
            rows, cols, gamma = _block_edges(first, columns, values, start, len(scores))
            share = torch.zeros_like(log_sum)
            share.index_add_(0, rows, gamma * (scores[rows, cols] - log_sum[rows]).exp())
            parts.append((log_sum, share))
        log_sums, shares = (torch.cat(part) for part in zip(*parts))
        ctx.save_for_backward(units, first, columns, values, log_sums, shares)
        ctx.options = sharpness, include_self, eps, block_size
        return -(shares + eps).log()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        units, first, columns, values, log_sums, shares = ctx.saved_tensors
        sharpness, include_self, eps, block_size = ctx.options
        result = torch.zeros_like(units)
        for start in range(0, len(units), block_size):
            scores = _scores(units, start, block_size, sharpness, include_self)
            part = slice(start, start + len(scores))
            probabilities = (scores - log_sums[part, None]).exp_()
            scale = grad[part] / (shares[part] + eps)
            rows, cols, gamma = _block_edges(first, columns, values, start, len(scores))
            along_edges = -scale[rows] * gamma * probabilities[rows, cols]
            slope = probabilities.mul_((scale * shares[part])[:, None])
            slope.index_put_((rows, cols), along_edges, accumulate=True)
            own = torch.arange(len(scores), device=units.device)
            slope[own, own + start] = 0
            result[part] += slope @ units
            result += slope.mT @ units[part]
        return result * sharpness, *(None,) * 7


def _scores(units: Tensor, start: int, block_size: int, sharpness: float, include_self: bool) -> Tensor:
    block = units[start : start + block_size]
    scores = (block @ units.mT).mul_(sharpness)
    own = torch.arange(len(block), device=units.device)
    scores[own, own + start] = 0.0 if include_self or len(units) == 1 else -torch.inf
    return scores


def _block_edges(first: Tensor, columns: Tensor, values: Tensor, start: int, count: int):
    """Rows within the block, columns and values of its edges."""
    begin, end = int(first[start]), int(first[start + count])
    lengths = first[start + 1 : start + count + 1] - first[start : start + count]
    rows = torch.repeat_interleave(torch.arange(count, device=first.device), lengths, output_size=end - begin)
    return rows, columns[begin:end], values[begin:end]
