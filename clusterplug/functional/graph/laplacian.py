# SPDX-License-Identifier: Apache-2.0
"""Laplacian of a graph, its smallest eigenvectors, and powers of its adjacency."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_choice, check_count
from clusterplug.core.numerics import exact_products, working_dtype
from clusterplug.functional.graph._operator import check_graph, edges, is_sparse

__all__ = ['SpectralEmbedding', 'adjacency_power', 'normalized_laplacian', 'spectral_embedding']

KINDS = ('symmetric', 'random_walk')
SOLVERS = ('auto', 'dense', 'eigsh', 'lobpcg')
# Up to this many points a dense decomposition is the faster one.
_DENSE_POINTS = 1500
# Residual |L v - lambda v| of a unit vector that counts as an eigenvector, by type.
_RESIDUAL = {torch.float32: 1e-4, torch.float64: 1e-6}


class SpectralEmbedding(NamedTuple):
    """Eigenvectors of a normalized Laplacian."""

    vectors: Tensor  # (..., N, k) unit columns
    values: Tensor  # (..., k) eigenvalues, ascending


@torch.no_grad()
def normalized_laplacian(graph, *, kind: str = 'symmetric') -> Tensor:
    r"""Return the normalized Laplacian of an undirected graph.

    .. math:: L = I - D^{-1/2} W D^{-1/2} \quad \text{or} \quad L = I - D^{-1} W, \qquad D = \mathrm{diag}(W 1) .

    A directed graph is made undirected first, by the mean of the two directions (a symmetric one stays as it is). A
    point without edges has a row of zeros: each is a component of its own, with eigenvalue 0.

    Args:
        graph: Non-negative weights: a ``KNNGraph`` or a pair (indices, weights) of (..., N, m), a dense (..., N, N)
            or a sparse (N, N) tensor.
        kind: ``'symmetric'`` or ``'random_walk'``.

    Returns:
        (..., N, N) dense for a dense graph; for lists of neighbors and sparse tensors one sparse COO matrix, in
        which the problems of a batch lie on the diagonal. fp32 (float64 for float64).

    Raises:
        TypeError, ValueError: No graph, wrong shape, negative or non-finite weights, unknown ``kind``.

    Source: Chung, "Spectral graph theory", 1997; equal to ``scipy.sparse.csgraph.laplacian(normed=True)``.

    Example:
        >>> normalized_laplacian(torch.tensor([[0.0, 4.0], [4.0, 0.0]]))
        tensor([[ 1., -1.],
                [-1.,  1.]])
    """
    check_graph(graph)
    check_choice(kind, 'kind', KINDS)
    if is_sparse(graph):
        adjacency, degree = _normalized_edges(graph, kind)
        return (_identity(adjacency, (degree > 0).to(degree.dtype)) - adjacency).coalesce()
    weights = graph.detach().to(working_dtype(graph.dtype))
    weights = (weights + weights.mT) / 2
    degree = weights.sum(-1)
    left, right = _factors(degree, kind)
    laplacian = -(weights * left.unsqueeze(-1) * right.unsqueeze(-2))
    laplacian.diagonal(dim1=-2, dim2=-1).add_((degree > 0).to(degree.dtype))
    return laplacian


@torch.no_grad()
def spectral_embedding(
    graph,
    num_components: int,
    *,
    drop_first: bool = True,
    solver: str = 'auto',
    full_output: bool = False,
) -> Tensor | SpectralEmbedding:
    """Return the eigenvectors of the smallest eigenvalues of the symmetric normalized Laplacian of one graph.

    The residual |L v - lambda v| of every vector is tested, whatever the solver: 'auto' goes on to the next solver
    where one did not converge, a solver asked for by name warns. Each vector has unit norm, and its largest entry is
    positive.

    Args:
        graph: Non-negative weights: a ``KNNGraph`` or a pair (indices, weights) of (N, m), a dense (..., N, N) or a
            sparse (N, N) tensor. A directed one is made undirected, see :func:`normalized_laplacian`.
        num_components: k, 1 <= k <= N (N - 1 with ``drop_first``).
        drop_first: Leave out the first eigenvector, the square root of the degrees, which separates nothing in a
            connected graph.
        solver: ``'dense'``; ``'eigsh'`` (scipy's Lanczos); ``'lobpcg'``; ``'auto'``: dense up to 1,500 points, above
            that eigsh where scipy is installed, else lobpcg, and dense where neither converges.
        full_output: Return ``SpectralEmbedding(vectors, values)``.

    Returns:
        (..., N, k) in fp32 (float64 for float64).

    Raises:
        TypeError, ValueError: No graph, wrong shape, k out of range, negative or non-finite weights, unknown solver;
            a batch of graphs given as lists (give one at a time).

    Source: Shi and Malik 2000; Ng, Jordan and Weiss 2001; Knyazev 2001 (LOBPCG).

    Example:
        >>> graph = torch.tensor([[0.0, 1, 0, 0], [1, 0, 0.1, 0], [0, 0.1, 0, 1], [0, 0, 1, 0]])
        >>> spectral_embedding(graph, 1).squeeze(-1).sign()[:2].unique().numel()  # one sign a part
        1
    """
    num_points = check_graph(graph)
    count = check_count(num_components, 'num_components', 1, num_points - int(bool(drop_first)))
    check_choice(solver, 'solver', SOLVERS)
    if not isinstance(graph, Tensor) and graph[0].dim() > 2:
        raise ValueError('graph must be one problem, got a batch of lists of neighbors; embed one at a time')
    wanted = count + int(bool(drop_first))
    laplacian = normalized_laplacian(graph)
    adjacency = _identity(laplacian) - laplacian  # eigenvalues in [-1, 1], the leading ones are wanted
    adjacency = adjacency.coalesce() if adjacency.is_sparse else adjacency
    with exact_products(adjacency):
        vectors, values = _smallest(adjacency, wanted, solver)
    largest = vectors.gather(-2, vectors.abs().argmax(-2, keepdim=True))
    vectors = vectors * torch.where(largest < 0, -1.0, 1.0)
    vectors, values = vectors[..., wanted - count :], values[..., wanted - count :]
    return SpectralEmbedding(vectors, values) if full_output else vectors


@torch.no_grad()
def adjacency_power(
    graph,
    order: int,
    cumulative: bool = False,
    *,
    self_loops: bool = False,
    normalize: str | None = None,
) -> Tensor:
    r"""Return a power of an adjacency matrix, or the sum of all powers up to it.

    .. math:: S^r \quad \text{or} \quad \sum_{i=1}^{r} S^i .

    With rows that sum to 1 the power holds the probabilities of walks of r steps, the sum the influence of one point
    on another within r steps.

    Args:
        graph: A ``KNNGraph`` or a pair (indices, weights) of (N, m), a dense (..., N, N) or a sparse (N, N) tensor.
            Used as it is, directed or not.
        order: r >= 1.
        cumulative: Sum the powers 1 ... r.
        self_loops: Add the identity first.
        normalize: ``'row'`` divides each row by its sum (after the self-loops); rows of zeros stay.

    Returns:
        Dense (..., N, N) for a dense graph, a sparse COO matrix for every other one; fp32 (float64 for float64).

    Raises:
        TypeError, ValueError: No graph, ``order`` < 1, non-finite weights, unknown ``normalize``.

    Source: Kulatilleke, Portmann and Chandra, "SCGC", arXiv 2204.12656: its two graph weights are
    ``normalize='row', self_loops=True`` with ``cumulative`` False and True.

    Example:
        >>> ring = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
        >>> adjacency_power(ring, 2)
        tensor([[0., 0., 1.],
                [1., 0., 0.],
                [0., 1., 0.]])
    """
    check_graph(graph, non_negative=normalize is not None)
    order = check_count(order, 'order', 1)
    if normalize is not None:
        check_choice(normalize, 'normalize', ('row',), ' or None')
    base = edges(graph) if is_sparse(graph) else graph.detach().to(working_dtype(graph.dtype))
    if self_loops:
        base = base + _identity(base)
    if normalize is not None:
        base = _row_normalized(base)
    with exact_products(base):
        power = total = base
        for _ in range(order - 1):
            power = torch.sparse.mm(power, base) if base.is_sparse else power @ base
            total = total + power
    found = total if cumulative else power
    if found.is_sparse:
        return found.coalesce()
    return found.clone() if order == 1 else found


def _identity(matrix: Tensor, diagonal: Tensor | None = None) -> Tensor:
    """Return the identity, or a diagonal matrix, in the layout of ``matrix``."""
    size = matrix.shape[-1]
    if diagonal is None:
        diagonal = torch.ones(size, dtype=matrix.dtype, device=matrix.device)
    if not matrix.is_sparse:
        return torch.diag(diagonal)
    own = torch.arange(size, device=matrix.device)
    return torch.sparse_coo_tensor(torch.stack([own, own]), diagonal, (size, size), check_invariants=False)


def _row_normalized(matrix: Tensor) -> Tensor:
    if not matrix.is_sparse:
        total = matrix.sum(-1, keepdim=True)
        return matrix / torch.where(total > 0, total, 1.0)
    matrix = matrix.coalesce()
    total = torch.sparse.sum(matrix, 1).to_dense()
    total = torch.where(total > 0, total, 1.0)
    values = matrix.values() / total[matrix.indices()[0]]
    return torch.sparse_coo_tensor(matrix.indices(), values, matrix.shape, check_invariants=False).coalesce()


def _factors(degree: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return what the rows and the columns of W are multiplied with."""
    safe = torch.where(degree > 0, degree, 1.0)
    root = safe.rsqrt()
    return (root, root) if kind == 'symmetric' else (1 / safe, torch.ones_like(safe))


def _normalized_edges(graph, kind: str) -> tuple[Tensor, Tensor]:
    """Return the normalized, undirected adjacency as a sparse matrix, and the degrees."""
    directed = edges(graph)
    weights = ((directed + directed.t()) / 2).coalesce()
    rows, cols = weights.indices()
    values = weights.values()
    degree = values.new_zeros(weights.shape[0]).index_add_(0, rows, values)
    left, right = _factors(degree, kind)
    values = values * left[rows] * right[cols]
    return torch.sparse_coo_tensor(weights.indices(), values, weights.shape, check_invariants=False).coalesce(), degree


def _smallest(adjacency: Tensor, count: int, solver: str) -> tuple[Tensor, Tensor]:
    """Return the ``count`` leading eigenvectors of the adjacency and their eigenvalues of the Laplacian, ascending."""
    size = adjacency.shape[-1]
    order = [solver] if solver != 'auto' else ['dense'] if size <= _DENSE_POINTS else ['eigsh', 'lobpcg', 'dense']
    batched = adjacency.dim() > 2
    fits = not batched and 5 * count < size and size > 10  # what the iterations need
    for name in order:
        if name != 'dense' and not fits:
            if solver != 'auto':
                raise ValueError(
                    f"solver must be 'dense' or 'auto' for a batch and for {count} of {size} eigenvectors, "
                    f'got {solver!r}'
                )
            continue
        found = _SOLVE[name](adjacency, count)
        if found is None:
            continue
        vectors, top = found
        product = adjacency @ vectors
        residual = (product - vectors * top.unsqueeze(-2)).norm(dim=-2).amax()
        if residual <= _RESIDUAL[adjacency.dtype]:
            return vectors, 1 - top
        if len(order) == 1:
            warnings.warn(
                f"solver={name!r} did not converge: residual {float(residual):.1e}; use solver='dense' or 'auto'",
                stacklevel=4,
            )
            return vectors, 1 - top
    raise RuntimeError('no solver found the eigenvectors; the graph may hold weights that over- or underflow')


def _dense(adjacency: Tensor, count: int) -> tuple[Tensor, Tensor]:
    matrix = adjacency.to_dense() if adjacency.is_sparse else adjacency
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return vectors[..., -count:].flip(-1), values[..., -count:].flip(-1)


def _eigsh(adjacency: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
    try:
        import numpy as np
        from scipy.sparse import csr_matrix
        from scipy.sparse.linalg import ArpackNoConvergence, eigsh
    except ImportError:
        return None
    if adjacency.is_sparse:
        rows, cols = adjacency.indices().cpu().numpy()
        matrix = csr_matrix((adjacency.values().cpu().double().numpy(), (rows, cols)), shape=tuple(adjacency.shape))
    else:
        matrix = adjacency.cpu().double().numpy()
    start = np.random.default_rng(0).standard_normal(matrix.shape[0])
    try:
        values, vectors = eigsh(matrix, k=count, which='LA', v0=start, ncv=min(matrix.shape[0], max(2 * count + 1, 40)))
    except ArpackNoConvergence:
        return None
    top = torch.from_numpy(values[::-1].copy()).to(adjacency)
    return torch.from_numpy(vectors[:, ::-1].copy()).to(adjacency), top


def _lobpcg(adjacency: Tensor, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    extra = min(adjacency.shape[0] // 3, count + 5)
    start = torch.randn(adjacency.shape[0], extra, generator=generator, dtype=adjacency.dtype).to(adjacency.device)
    # in float64: fp32 stalls above the residual that is asked for
    values, vectors = torch.lobpcg(adjacency.double(), extra, X=start.double(), niter=500, tol=1e-7, largest=True)
    return vectors[:, :count].to(adjacency.dtype), values[:count].to(adjacency.dtype)


_SOLVE = {'dense': _dense, 'eigsh': _eigsh, 'lobpcg': _lobpcg}
