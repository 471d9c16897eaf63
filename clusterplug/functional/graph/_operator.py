# SPDX-License-Identifier: Apache-2.0
"""One form for every kind of graph that a function may be given: lists of neighbors, a dense or a sparse matrix."""

import math
import warnings

import torch
from torch import Tensor

from clusterplug.core.checks import check_device
from clusterplug.core.numerics import host_checks_allowed, working_dtype

FORMS = 'a KNNGraph or a pair (indices (..., N, m), weights (..., N, m)), a dense (..., N, N) or a sparse (N, N) tensor'


def check_graph(graph, name: str = 'graph', *, non_negative: bool = True) -> int:
    """Raise unless ``graph`` is of one of the known forms; return its number of points N."""
    if isinstance(graph, Tensor):
        _check_matrix(graph, name)
        num_points = graph.shape[-1]
        weights = graph.values() if _compressed(graph) else _stored(graph)
    elif isinstance(graph, tuple) and len(graph) == 2 and all(isinstance(each, Tensor) for each in graph):
        num_points = _check_lists(*graph, name)
        weights = graph[1]
    else:
        raise TypeError(f'{name} must be {FORMS}, got {type(graph).__name__}')
    if host_checks_allowed(weights):
        if not bool(torch.isfinite(weights).all()):
            raise ValueError(f'{name} must hold finite weights, got NaN or inf; drop those edges')
        if non_negative and bool((weights < 0).any()):
            raise ValueError(f'{name} must hold non-negative weights, got negative ones; drop those edges')
    return num_points


def _check_matrix(graph: Tensor, name: str) -> None:
    if not graph.is_floating_point():
        raise TypeError(f'{name} must have a floating dtype, got {graph.dtype}; convert it with {name}.float()')
    if graph.dim() < 2 or graph.shape[-1] != graph.shape[-2]:
        raise ValueError(f'{name} must be square (..., N, N), got {tuple(graph.shape)}; pass one row for each point')
    if graph.layout != torch.strided and graph.dim() > 2:
        raise ValueError(f'{name} must be one (N, N) matrix when it is sparse, got {tuple(graph.shape)}')


def _check_lists(indices: Tensor, weights: Tensor, name: str) -> int:
    if indices.dtype != torch.int64:
        raise TypeError(f'the indices of {name} must be int64, got {indices.dtype}; convert them with .long()')
    if not weights.is_floating_point():
        raise TypeError(f'the weights of {name} must have a floating dtype, got {weights.dtype}')
    if indices.dim() < 2 or indices.shape != weights.shape:
        raise ValueError(
            f'{name} must hold indices and weights of one shape (..., N, m), got {tuple(indices.shape)} and '
            f'{tuple(weights.shape)}'
        )
    check_device(weights, indices.device, f'the weights of {name}')
    num_points = indices.shape[-2]
    if indices.numel() and host_checks_allowed(indices):
        low, high = indices.aminmax()
        if low < 0 or high >= num_points:
            raise ValueError(f'the indices of {name} must lie in 0 .. {num_points - 1}, got {int(low)} .. {int(high)}')
    return num_points


def _compressed(graph: Tensor) -> bool:
    return graph.layout in (torch.sparse_csr, torch.sparse_csc)


def _stored(graph: Tensor) -> Tensor:
    return graph.coalesce().values() if graph.layout == torch.sparse_coo else graph


def is_sparse(graph) -> bool:
    """Return whether only the edges of ``graph`` are stored."""
    return not isinstance(graph, Tensor) or graph.layout != torch.strided


def edges(graph, dtype: torch.dtype | None = None) -> Tensor:
    """Return a checked sparse ``graph`` as one sparse COO matrix; the problems of a batch lie on its diagonal."""
    if isinstance(graph, Tensor):
        found = graph.to_sparse_coo() if graph.layout != torch.sparse_coo else graph
        return found.to(dtype or working_dtype(graph.dtype)).coalesce()
    rows, cols, size = _flat_lists(graph[0])
    values = graph[1].reshape(-1).to(dtype or working_dtype(graph[1].dtype))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of checks that are off on purpose
        matrix = torch.sparse_coo_tensor(torch.stack([rows, cols]), values, (size, size), check_invariants=False)
        return matrix.coalesce()


def _flat_lists(indices: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return rows, columns and the size of the matrix with all problems on its diagonal."""
    num_points, most = indices.shape[-2:]
    batch = math.prod(indices.shape[:-2])
    first = torch.arange(batch, device=indices.device).view(-1, 1) * num_points
    rows = torch.arange(batch * num_points, device=indices.device).repeat_interleave(most)
    cols = (indices.reshape(batch, num_points * most) + first).reshape(-1)
    return rows, cols, batch * num_points


class GraphOperator:
    """The product of a checked graph, or of the graph plus its transpose, with (..., N, K) numbers.

    Memory follows the edges. The product of a sparse graph is one sparse-dense product for the whole batch.

    Args:
        graph: One of the forms of :func:`check_graph`.
        dtype: Type to compute in.
        both: Use W + W^T instead of W.
        lead: Leading shape of the numbers; a graph without leading dimensions is shared by the batch.
    """

    def __init__(self, graph, dtype: torch.dtype, *, both: bool = False, lead: tuple = ()):
        self.num_points, self.shared = check_graph(graph), False
        if not is_sparse(graph):
            matrix = graph.detach().to(dtype)
            self.matrix = matrix + matrix.mT if both else matrix
            return
        lists = graph[0] if isinstance(graph, tuple) else None
        own = () if lists is None else tuple(lists.shape[:-2])
        if own and own != tuple(lead):
            if math.prod(own) != 1:
                raise ValueError(f'graph must have leading dimensions {tuple(lead)} or none, got {own}')
            own = ()
        self.shared = math.prod(own) == 1 and math.prod(lead) != 1
        if lists is not None and not both:  # lists of neighbors are compressed rows already
            _, cols, size = _flat_lists(lists)
            starts = torch.arange(size + 1, device=cols.device) * lists.shape[-1]
            self.matrix = _csr(starts, cols, graph[1].detach().reshape(-1).to(dtype), size)
            return
        found = edges(graph, dtype).detach()
        if both:
            found = (found + found.t()).coalesce()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            self.matrix = found.to_sparse_csr()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the product with ``x`` (..., N, K)."""
        if self.matrix.layout == torch.strided:
            return self.matrix @ x
        if not self.shared:
            return (self.matrix @ x.reshape(-1, x.shape[-1])).view(x.shape)
        # one graph for all problems: their columns side by side
        lead, width = x.shape[:-2], x.shape[-1]
        wide = x.reshape(-1, *x.shape[-2:]).transpose(0, 1).reshape(self.num_points, -1)
        product = (self.matrix @ wide).view(self.num_points, -1, width)
        return product.transpose(0, 1).reshape(*lead, self.num_points, width)


def _csr(starts: Tensor, cols: Tensor, values: Tensor, size: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of a layout in beta
        return torch.sparse_csr_tensor(starts, cols, values, (size, size), check_invariants=False)
