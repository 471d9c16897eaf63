# SPDX-License-Identifier: Apache-2.0
"""Clustering of the nodes of a graph by contrast with their neighbors: SCGC and SCGC*."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_count, check_number
from clusterplug.core.numerics import recording
from clusterplug.estimators._arrays import Points, check_parameter
from clusterplug.estimators.deep.base import DeepClusterer
from clusterplug.estimators.deep.embedded import label_change
from clusterplug.estimators.deep.networks import MLPAutoencoder
from clusterplug.estimators.deep.training import Phase
from clusterplug.functional import adjacency_power, cluster_target, knn_graph, neighbor_contrast, student_assignment

__all__ = ['GraphContrastClustering']


class GraphContrastClustering(DeepClusterer):
    r"""Clusters of the nodes of an attributed graph, by an encoder of the features that needs no graph later.

    .. math:: L = \alpha \, L_\mathrm{con} + \beta \, \mathrm{KL}(p \,\|\, q) \; [+ \; \mathrm{mean}(\hat x - x)^2]

    L_con is :func:`clusterplug.functional.neighbor_contrast` under the power (``cumulative=False``, SCGC) or the sum
    of powers (SCGC*) of the row-normalized adjacency with self-loops, which stays sparse; q is the Student-t
    assignment to centers that k-means of the embedding gave, p its sharpened target over all nodes. An autoencoder of
    the features is trained first. Labels are those of the last epoch: no epoch is chosen by any label.

    Args:
        n_clusters: K.
        hidden: Widths of the encoder.
        embed_dims: Width of the embedding.
        order: r, length of the walks on the graph.
        cumulative: Sum the powers 1 .. r (SCGC*), instead of the power r alone (SCGC).
        temperature: Divides the cosines; the paper's tau is 1 / temperature.
        contrast_weight: alpha. cluster_weight: beta.
        reconstruction: Keep the reconstruction as a term (SCGC).
        pretrain_epochs: Epochs of the autoencoder.
        warmup_epochs: Epochs of contrast alone before the centers are placed, so that k-means sees an embedding that
            knows the graph.
        epochs: At most as many with all terms.
        batch_size: Of the autoencoder. node_batch: Nodes of a step of the contrast, among which it is taken; None =
            all nodes, in blocks of ``block_size`` rows: memory O(N block_size).
        lr: Learning rate of Adam. refresh_every: Epochs between targets.
        tol: Share of labels that change below which the fit ends.
        max_neighbors: Weights that a row of the graph keeps, the largest, scaled to the sum of the row; None = all.
        block_size: Rows of the similarities at once.
        device, random_state, verbose, checkpoint, checkpoint_every: see :class:`DeepClusterer`.

    Attributes:
        labels_, history_, network_, partial_: see :class:`DeepClusterer`. soft_labels_: (N, K). embedding_: (N,
        embed_dims). cluster_centers_: (K, embed_dims).

    Source: Kulatilleke, Portmann and Chandra, "SCGC: Self-Supervised Contrastive Graph Clustering", arXiv 2204.12656;
    gayanku/SCGC (MIT by its README). **Differs from the authors' code**: sparse powers and row blocks instead of N x N
    matrices; one forward pass a step; a warm-up before the centers are placed (their centers come from the
    autoencoder; 0 epochs gives that); a smaller encoder (500-500-2000 there); and the scores of the last epoch, not
    the maximum over epochs that the labels choose.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(40, 6))
        >>> edges = np.array([(i, j) for i in range(40) for j in range(40) if i != j and i // 20 == j // 20]).T
        >>> model = GraphContrastClustering(2, hidden=(16,), pretrain_epochs=2, epochs=20, random_state=0)
        >>> labels = model.fit_predict(X, edges)
        >>> labels.shape, model.predict(X[:3]).shape
        ((40,), (3,))
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        hidden: Sequence[int] = (256, 128),
        embed_dims: int = 10,
        order: int = 3,
        cumulative: bool = True,
        temperature: float = 2.0,
        contrast_weight: float = 1.0,
        cluster_weight: float = 0.1,
        reconstruction: bool = False,
        pretrain_epochs: int = 15,
        warmup_epochs: int = 20,
        epochs: int = 40,
        batch_size: int = 256,
        node_batch: int | None = None,
        lr: float = 1e-3,
        refresh_every: int = 1,
        tol: float = 0.0,
        max_neighbors: int | None = None,
        block_size: int = 1024,
        device: Any = None,
        random_state: Any = None,
        verbose: int = 0,
        checkpoint: Any = None,
        checkpoint_every: int = 10,
    ):
        self.n_clusters = n_clusters
        self.hidden = hidden
        self.embed_dims = embed_dims
        self.order = order
        self.cumulative = cumulative
        self.temperature = temperature
        self.contrast_weight = contrast_weight
        self.cluster_weight = cluster_weight
        self.reconstruction = reconstruction
        self.pretrain_epochs = pretrain_epochs
        self.warmup_epochs = warmup_epochs
        self.epochs = epochs
        self.batch_size = batch_size
        self.node_batch = node_batch
        self.lr = lr
        self.refresh_every = refresh_every
        self.tol = tol
        self.max_neighbors = max_neighbors
        self.block_size = block_size
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every

    @recording()
    def fit(
        self, X: Any, edge_index: Any = None, *, knn: int | None = None, resume: bool = False
    ) -> 'GraphContrastClustering':
        """Train on features and a graph, and label the nodes.

        Args:
            X: (N, D) features of the nodes.
            edge_index: (2, E) integers, or a sparse or dense matrix (N, N) of which the non-zero entries are edges.
                Edges count in both directions, once; self-loops are added anyway. A node without edges is fine.
            knn: Instead of edges: link every node to its nearest nodes by features. With neither, 5.
            resume: As in :class:`DeepClusterer`.

        Raises:
            ValueError: An argument is wrong, both graphs are given, an edge names a node that is not there.
        """
        self._check_parameters()
        data = self._read(X, reset=True)
        self._weights = self._graph(data, edge_index, knn)
        self._fit(data, resume)
        return self

    def fit_predict(self, X: Any, edge_index: Any = None, *, knn: int | None = None) -> Any:
        """Fit and return the labels."""
        return self.fit(X, edge_index, knn=knn).labels_

    def fit_transform(self, X: Any, edge_index: Any = None, *, knn: int | None = None) -> Any:
        """Fit and return the embedding."""
        return self.fit(X, edge_index, knn=knn).embedding_

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name, least in (
            ('embed_dims', 1), ('order', 1), ('pretrain_epochs', 0), ('warmup_epochs', 0), ('epochs', 0),
            ('refresh_every', 1), ('block_size', 1),
        ):  # fmt: skip
            check_parameter(check_count, getattr(self, name), name, least)
        for name in ('node_batch', 'max_neighbors'):
            if getattr(self, name) is not None:
                check_parameter(check_count, getattr(self, name), name, 1)
        check_parameter(check_number, self.temperature, 'temperature', 1e-6)
        for name in ('contrast_weight', 'cluster_weight', 'tol'):
            check_parameter(check_number, getattr(self, name), name, 0)

    # --- the graph ---------------------------------------------------------------------------------------------------

    def _graph(self, data: Points, edge_index: Any, knn: int | None) -> Tensor:
        """Return the weights of the contrast as a sparse matrix on the device of training."""
        count = len(data.tensor)
        device = torch.device(self.device if self.device is not None else data.tensor.device)
        if edge_index is not None and knn is not None:
            raise ValueError('give edge_index or knn, not both')
        if edge_index is None:
            neighbors = check_parameter(check_count, 5 if knn is None else knn, 'knn', 1)
            if count > 1:
                graph = knn_graph(data.tensor, min(neighbors, count - 1))
                sources = torch.arange(count, device=data.tensor.device).repeat_interleave(graph.indices.shape[1])
                edges = torch.stack([sources, graph.indices.flatten()])
                adjacency = symmetric_adjacency(edges, count)
            else:
                adjacency = symmetric_adjacency(torch.zeros(2, 0, dtype=torch.int64), count)
        else:
            adjacency = symmetric_adjacency(read_edges(edge_index, count), count, warn=True)
        adjacency = adjacency.to(device)
        base: dict[str, Any] = {'self_loops': True, 'normalize': 'row'}
        if self.max_neighbors is None:
            return adjacency_power(adjacency, self.order, self.cumulative, **base)
        step = adjacency_power(adjacency, 1, **base)
        power = total = largest_per_row(step, self.max_neighbors)
        for _ in range(self.order - 1):
            power = largest_per_row(torch.sparse.mm(power, step), self.max_neighbors)
            total = (total + power).coalesce()
        return largest_per_row(total, self.max_neighbors) if self.cumulative else power

    # --- training ----------------------------------------------------------------------------------------------------

    def _make_network(self, input_shape: tuple[int, ...], device: torch.device) -> nn.Module:
        network = MLPAutoencoder(input_shape[0], self.hidden, self.embed_dims, device)
        network.centers = nn.Parameter(torch.zeros(self.n_clusters, self.embed_dims, device=device))
        return network

    def _make_phases(self, x: Tensor) -> list[Phase]:
        def reconstruct(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            batch = self._rows(x, rows)
            return {'reconstruction': (self.network_.decode(self.network_.encoder(batch)) - batch).square().mean()}

        def contrast(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            return self._terms(x, rows)[0]

        def cluster(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            terms, z = self._terms(x, rows)
            target = self._state.tensors['target'][rows.to(z.device)]
            q = student_assignment(z, self.network_.centers)
            divergence = nn.functional.kl_div(q.clamp_min(1e-20).log(), target, reduction='batchmean')
            return {**terms, 'clustering': self.cluster_weight * divergence}

        def refresh() -> float | None:
            q = self._soft_labels(x)
            self._state.tensors['target'] = cluster_target(q).to(self.network_.centers.device)
            return label_change(self._state.tensors, q.argmax(-1))

        nodes: dict[str, Any] = {'lr': self.lr, 'batch_size': self.node_batch}
        return [
            Phase('autoencoder', self.pretrain_epochs, reconstruct, lr=self.lr, batch_size=self.batch_size),
            Phase('contrast', self.warmup_epochs, contrast, **nodes),
            Phase(
                'clustering', self.epochs, cluster, start=lambda: self._place_centers(x), refresh=refresh,
                refresh_every=self.refresh_every, tol=self.tol, **nodes,
            ),
        ]  # fmt: skip

    def _terms(self, x: Tensor, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the contrast among the nodes ``rows`` (and the reconstruction), and their embeddings."""
        batch = self._rows(x, rows)
        z = self.network_.encoder(batch)
        weights = self._weights if len(rows) == len(x) else _among(self._weights, rows.to(z.device))
        loss = neighbor_contrast(z, weights, temperature=self.temperature, block_size=self.block_size)
        terms = {'contrast': self.contrast_weight * loss}
        if self.reconstruction:
            terms['reconstruction'] = (self.network_.decode(z) - batch).square().mean()
        return terms, z

    @torch.no_grad()
    def _place_centers(self, x: Tensor) -> None:
        self.network_.centers.copy_(self._cluster(self._embed(x), 1)[0])
        self._state.tensors['placed'] = torch.ones(1)

    @torch.no_grad()
    def _soft_labels(self, x: Tensor) -> Tensor:
        return self._in_blocks(x, lambda batch: student_assignment(self._encode(batch), self.network_.centers))

    @torch.no_grad()
    def _finish(self, data: Points) -> None:
        embedding = self._embed(data.tensor)
        if 'placed' not in self._state.tensors:  # stopped before the clusters began
            self.network_.centers.copy_(self._cluster(embedding, 1)[0])
        soft = self._soft_labels(data.tensor)
        self.soft_labels_, self.embedding_ = data.like(soft), data.like(embedding)
        self.labels_ = data.like(soft.argmax(-1))
        self.cluster_centers_ = data.like(self.network_.centers.detach().to(data.tensor.device).clone())


def read_edges(edges: Any, num_nodes: int) -> Tensor:
    """Return edges (2, E) int64 of a list of edges or of an adjacency matrix.

    Raises:
        ValueError: A wrong shape or type, or a node outside 0 .. num_nodes - 1.
    """
    if hasattr(edges, 'tocoo'):  # scipy
        matrix = edges.tocoo()
        _check_square(matrix.shape, num_nodes)
        kept = matrix.data != 0
        return torch.from_numpy(np.stack([matrix.row[kept], matrix.col[kept]]).astype(np.int64))
    tensor = edges if isinstance(edges, Tensor) else torch.from_numpy(np.array(edges))
    if tensor.layout != torch.strided:
        _check_square(tensor.shape, num_nodes)
        found = tensor.to_sparse_coo().coalesce()
        return found.indices()[:, found.values() != 0]
    if tensor.is_floating_point() or tensor.dtype == torch.bool or (tensor.dim() == 2 and tensor.shape[0] != 2):
        _check_square(tensor.shape, num_nodes)
        return tensor.nonzero().T
    if tensor.dim() != 2 or tensor.is_complex():
        raise ValueError(
            f'edge_index must have shape (2, E), or be an adjacency matrix {(num_nodes, num_nodes)}, got '
            f'{tuple(tensor.shape)}; transpose a list of pairs'
        )
    tensor = tensor.long()
    if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < num_nodes:
        raise ValueError(
            f'edge_index must name nodes 0 .. {num_nodes - 1}, got {int(tensor.min())} .. {int(tensor.max())}; number '
            f'the nodes by the rows of X'
        )
    return tensor


def _check_square(shape: Sequence[int], num_nodes: int) -> None:
    if tuple(shape) != (num_nodes, num_nodes):
        raise ValueError(
            f'edge_index must have shape (2, E) of integers, or be an adjacency matrix {(num_nodes, num_nodes)}, got '
            f'{tuple(shape)}; transpose a list of pairs'
        )


def symmetric_adjacency(edges: Tensor, num_nodes: int, warn: bool = False) -> Tensor:
    """Return the sparse 0 / 1 matrix of undirected edges, without self-loops; repeated edges count once."""
    edges = edges[:, edges[0] != edges[1]]
    codes = torch.unique(edges[0] * num_nodes + edges[1])
    backward = (codes % num_nodes) * num_nodes + codes // num_nodes
    both = torch.unique(torch.cat([codes, backward]))
    if warn and len(both) not in (len(codes), 2 * len(codes)):  # not in both directions, nor each once
        warnings.warn('edge_index holds directed edges; each counts in both directions', stacklevel=4)
    indices = torch.stack([both // num_nodes, both % num_nodes])
    ones = torch.ones(len(both), device=edges.device)
    return torch.sparse_coo_tensor(indices, ones, (num_nodes, num_nodes), check_invariants=False).coalesce()


def largest_per_row(matrix: Tensor, count: int) -> Tensor:
    """Keep the ``count`` largest entries of each row of a sparse matrix, scaled to the sum of the row."""
    matrix = matrix.coalesce()
    rows, columns = matrix.indices()
    values = matrix.values()
    order = values.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]  # by row, the largest first
    starts = torch.zeros(len(matrix) + 1, dtype=torch.int64, device=values.device)
    starts[1:] = torch.bincount(rows, minlength=len(matrix)).cumsum(0)
    rank = torch.arange(len(order), device=values.device) - starts[rows[order]]
    order = order[rank < count]
    before = values.new_zeros(len(matrix)).index_add_(0, rows, values)
    after = values.new_zeros(len(matrix)).index_add_(0, rows[order], values[order])
    kept = values[order] * (before / torch.where(after > 0, after, 1.0))[rows[order]]
    indices = torch.stack([rows[order], columns[order]])
    return torch.sparse_coo_tensor(indices, kept, matrix.shape, check_invariants=False).coalesce()


def _among(weights: Tensor, nodes: Tensor) -> Tensor:
    """Return the weights between the given nodes, as they are: rows are not scaled to their old sums."""
    place = torch.full((len(weights),), -1, dtype=torch.int64, device=nodes.device)
    place[nodes] = torch.arange(len(nodes), device=nodes.device)
    rows, columns = place[weights.indices()]
    kept = (rows >= 0) & (columns >= 0)
    indices = torch.stack([rows[kept], columns[kept]])
    size = (len(nodes), len(nodes))
    return torch.sparse_coo_tensor(indices, weights.values()[kept], size, check_invariants=False).coalesce()
