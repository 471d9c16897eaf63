# SPDX-License-Identifier: Apache-2.0
"""One small network over the features of several extractors, trained to cluster: JULE, DEC or IDEC."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.estimators._arrays import Points, check_parameter
from clusterplug.estimators._views import NORMALIZATIONS, ViewStack, read_views, varying
from clusterplug.estimators.deep.base import DeepClusterer
from clusterplug.estimators.deep.embedded import DeepEmbeddedClustering
from clusterplug.estimators.deep.networks import mlp
from clusterplug.estimators.deep.training import Phase
from clusterplug.functional import graph_degree_linkage, knn_graph, normalized_mutual_info, student_assignment

__all__ = ['MultiViewClustering']

OBJECTIVES = ('jule', 'dec', 'idec')


class MultiViewClustering(DeepEmbeddedClustering):
    r"""Cluster samples by the features of several frozen extractors, without choosing among the extractors.

    A branch for each view (Linear, ReLU), their outputs side by side, and shared layers give the embedding z. With
    ``objective='jule'`` the connected chains of nearest neighbors are the first clusters; the network is trained on
    triplets of the clusters of now,

    .. math:: L = \mathrm{mean} \max(0, \; g \|z_a - z_p\|^2 - \|z_a - z_n\|^2 + m),

    then graph degree linkage of z merges min(ceil(eta C), C - K) of the C clusters, until K are left, and a last
    period of training follows. With ``'dec'`` and ``'idec'`` an autoencoder of all views is trained first, see
    :class:`DeepEmbeddedClustering`.

    Args:
        n_clusters: K.
        objective: ``'jule'``, ``'dec'`` or ``'idec'``.
        normalize: Of each view: ``'l2'`` (rows of length 1), ``'standard'`` or None. Without it views with large
            norms dominate.
        hidden: Width of each branch and of the shared layer.
        embed_dims: Width of the embedding.
        unrolling_rate: eta, share of the clusters that a merge step joins.
        period_epochs: Epochs of triplets between merges.
        margin: m, for embeddings of length 1. positive_weight: g. n_negatives: Negatives of each anchor.
        n_neighbors, n_candidates: Of graph degree linkage.
        pretrain_epochs, epochs, cluster_weight, noise, refresh_every, tol: For ``'dec'`` and ``'idec'``, see
            :class:`DeepEmbeddedClustering`.
        batch_size, lr: Of Adam.
        device, random_state, verbose, checkpoint, checkpoint_every: see :class:`DeepClusterer`.

    ``fit(X)`` takes a list or a dict of arrays (N, D_v), or one array. Arrays of a file that is mapped into memory
    (``tools/embed.py`` writes such a bank) are read batch by batch.

    Attributes:
        labels_, history_, network_, partial_: see :class:`DeepClusterer`; with ``'jule'`` the labels are those of the
            merges, and ``predict`` gives the nearest mean of the embedding. view_names_: list.
        cluster_centers_: (K, embed_dims). view_agreement_: (V,) normalized mutual information of ``labels_`` with
            graph degree linkage of each view alone: which extractor the result rests on.

    Source: Guerin, Thiery, Nyiri, Gibaru and Boots, "Combining pretrained CNN feature extractors to enhance clustering
    of complex natural images", Neurocomputing 2021, arXiv 2101.02767; Yang, Parikh and Batra, JULE, CVPR 2016
    (jwyang/JULE.torch, MIT). No official code of the network was found; its architecture is a reconstruction.
    **Differs from JULE.torch**: exact affinities, triplets mined in the batch from one forward pass.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> truth = np.arange(60) % 3
        >>> views = [rng.normal(size=(60, 5)) + 6 * rng.normal(size=(3, 5))[truth] for _ in range(2)]
        >>> model = MultiViewClustering(3, period_epochs=2, random_state=0).fit(views)
        >>> model.labels_.shape, model.view_names_
        ((60,), ['0', '1'])
    """

    def __init__(
        self,
        n_clusters: int = 8,
        objective: str = 'jule',
        *,
        normalize: str | None = 'l2',
        hidden: int = 128,
        embed_dims: int = 32,
        unrolling_rate: float = 0.9,
        period_epochs: int = 20,
        margin: float = 0.5,
        positive_weight: float = 2.0,
        n_negatives: int = 20,
        n_neighbors: int = 20,
        n_candidates: int = 5,
        pretrain_epochs: int = 50,
        epochs: int = 50,
        cluster_weight: float = 0.1,
        noise: float = 0.2,
        refresh_every: int = 1,
        tol: float = 1e-3,
        batch_size: int = 200,
        lr: float = 1e-3,
        device: Any = None,
        random_state: Any = None,
        verbose: int = 0,
        checkpoint: Any = None,
        checkpoint_every: int = 10,
    ):
        self.n_clusters = n_clusters
        self.objective = objective
        self.normalize = normalize
        self.hidden = hidden
        self.embed_dims = embed_dims
        self.unrolling_rate = unrolling_rate
        self.period_epochs = period_epochs
        self.margin = margin
        self.positive_weight = positive_weight
        self.n_negatives = n_negatives
        self.n_neighbors = n_neighbors
        self.n_candidates = n_candidates
        self.pretrain_epochs = pretrain_epochs
        self.epochs = epochs
        self.cluster_weight = cluster_weight
        self.noise = noise
        self.refresh_every = refresh_every
        self.tol = tol
        self.batch_size = batch_size
        self.lr = lr
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every

    def _check_parameters(self) -> None:
        check_parameter(check_choice, self.objective, 'objective', OBJECTIVES)
        if self.normalize not in NORMALIZATIONS:
            check_parameter(check_choice, self.normalize, 'normalize', ('l2', 'standard'), ' or None')
        for name in ('hidden', 'period_epochs', 'n_negatives', 'n_neighbors', 'n_candidates'):
            check_parameter(check_count, getattr(self, name), name, 0 if name == 'period_epochs' else 1)
        check_parameter(check_number, self.unrolling_rate, 'unrolling_rate', 0.01, 1)
        for name in ('margin', 'positive_weight'):
            check_parameter(check_number, getattr(self, name), name, 0)
        objective = self.objective
        self.objective = 'idec' if objective == 'jule' else objective  # the rest is that of the base
        try:
            super()._check_parameters()
        finally:
            self.objective = objective

    # --- views -------------------------------------------------------------------------------------------------------

    def _read(self, X: Any, *, reset: bool) -> Points:
        names, views = read_views(X)
        if reset:
            kept = varying(names, views, stacklevel=5)
            self.view_names_ = [names[number] for number in kept]
            self._all_views = len(names)
        elif all(name in names for name in self.view_names_):
            kept = [names.index(name) for name in self.view_names_]
        else:
            raise ValueError(f'X must hold the views {self.view_names_} as in fit, got {names}')
        widths = [views[number].tensor.shape[1] for number in kept]
        if reset:
            self.input_shape_ = tuple(widths)
        elif widths != list(self.input_shape_):
            raise ValueError(f'X must hold views of {list(self.input_shape_)} features as in fit, got {widths}')
        tensors = [views[number].tensor for number in kept]
        if reset or not hasattr(self, 'view_scaling_'):
            self.view_scaling_ = ViewStack.scaling_of(tensors, self.normalize)
        stack: Any = ViewStack(tensors, self.normalize, self.view_scaling_)  # takes the place of a tensor
        return Points(stack, views[0].is_torch)

    def _fit_scaling(self, x: Any) -> None:
        self.shift_, self.scale_ = None, 1.0  # every view has its own

    def _make_network(self, input_shape: tuple[int, ...], device: torch.device) -> nn.Module:
        network: Any = nn.Module()
        network.encoder = _Branches(input_shape, int(self.hidden), int(self.embed_dims), device)
        network.decoder = mlp([int(self.embed_dims), int(self.hidden), sum(input_shape)], device)
        network.decode = network.decoder.forward
        network.centers = nn.Parameter(torch.zeros(self.n_clusters, self.embed_dims, device=device))
        return network

    # --- JULE --------------------------------------------------------------------------------------------------------

    def _make_phases(self, x: Any) -> list[Phase]:
        if self.objective != 'jule':
            return super()._make_phases(x)
        if 'chains' not in self._state.tensors:
            self._state.tensors['chains'] = self._chains(x)
        counts = merge_schedule(int(self._state.tensors['chains'].max()) + 1, self.n_clusters, self.unrolling_rate)
        phases = []
        for number, count in enumerate(counts):
            phases.append(
                Phase(
                    f'triplets of {count}',
                    self.period_epochs,
                    lambda rows, generator: {'triplets': self._triplets(x, rows, generator)},
                    start=partial(self._merge, x, count if number else None),
                    lr=self.lr,
                    batch_size=self.batch_size,
                )
            )
        return phases

    @torch.no_grad()
    def _chains(self, x: Any) -> Tensor:
        """Label the chains of nearest neighbors of all views side by side; single samples where those are too few."""
        count = len(x)
        alone = torch.arange(count, device=x.device)
        if count == 1:
            return alone
        everything = torch.cat([x[slice(first, first + 4096)] for first in range(0, count, 4096)])
        nearest = knn_graph(everything, 1).indices[:, 0]
        labels = alone
        while True:  # the smallest number of a chain spreads along it
            low = torch.minimum(labels, labels[nearest]).scatter_reduce(0, nearest, labels, 'amin')
            low = low[low]
            if torch.equal(low, labels):
                break
            labels = low
        labels = torch.unique(labels, return_inverse=True)[1]
        return labels if int(labels.max()) + 1 >= self.n_clusters else alone

    def _merge(self, x: Any, count: int | None) -> None:
        """Merge the clusters of now by the embedding down to ``count``; None starts from the chains."""
        if count is None:
            self._state.tensors['labels'] = self._state.tensors['chains']
            return
        z = nn.functional.normalize(self._embed(x), dim=-1)
        self._state.tensors['labels'] = graph_degree_linkage(
            z, int(count), num_neighbors=min(int(self.n_neighbors), len(x) - 1),
            num_candidates=int(self.n_candidates), labels=self._state.tensors['labels'],
        )  # fmt: skip

    def _triplets(self, x: Any, rows: Tensor, generator: torch.Generator) -> Tensor:
        z = nn.functional.normalize(self.network_.encoder(self._rows(x, rows)), dim=-1)
        labels = self._state.tensors['labels'].to(z.device)[rows.to(z.device)]
        squared = (2 - 2 * z @ z.mT).clamp_min(0)
        same = labels[:, None] == labels
        positive = same.clone().fill_diagonal_(False)
        # Random negatives of each anchor: the first ones of a random order of the others.
        order = torch.rand(squared.shape, generator=generator, device='cpu', dtype=torch.float32).to(z.device)
        count = min(int(self.n_negatives), len(rows))
        chosen = (order + 2.0 * same).topk(count, largest=False).indices
        allowed = ~same.gather(1, chosen)
        far = squared.gather(1, chosen)
        hinge = (self.positive_weight * squared[:, :, None] - far[:, None, :] + self.margin).relu()
        taken = positive[:, :, None] & allowed[:, None, :]
        return torch.where(taken, hinge, 0.0).sum() / taken.sum().clamp_min(1)

    # --- results -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _soft_labels(self, x: Any) -> Tensor:
        if self.objective != 'jule':
            return super()._soft_labels(x)

        def compute(batch: Tensor) -> Tensor:
            return student_assignment(nn.functional.normalize(self._encode(batch), dim=-1), self.network_.centers)

        return self._in_blocks(x, compute)

    @torch.no_grad()
    def _finish(self, data: Points) -> None:
        x = data.tensor
        if self.objective != 'jule':
            super()._finish(data)
        else:
            if 'labels' not in self._state.tensors:
                self._merge(x, None)
            labels = self._state.tensors['labels']
            if int(labels.max()) + 1 > self.n_clusters:  # stopped before the last merge
                kept = labels
                self._merge(x, self.n_clusters)
                labels, self._state.tensors['labels'] = self._state.tensors['labels'], kept
            z = nn.functional.normalize(self._embed(x), dim=-1)
            sums = z.new_zeros(self.n_clusters, z.shape[1]).index_add_(0, labels.to(z.device), z)
            sizes = torch.bincount(labels.to(z.device), minlength=self.n_clusters)[:, None]
            self.network_.centers.copy_(sums / sizes.clamp_min(1))
            self.labels_ = data.like(labels.to(x.device))
            self.cluster_centers_ = data.like(self.network_.centers.detach().to(x.device).clone())
        found = torch.as_tensor(self.labels_).cpu()
        self.view_agreement_ = data.like(torch.tensor(
            [self._agreement(x.view(number), found) for number in range(len(self.input_shape_))], device=x.device
        ))  # fmt: skip

    def _agreement(self, view: Tensor, labels: Tensor) -> float:
        if len(view) == 1:
            return 1.0
        alone = graph_degree_linkage(view, int(self.n_clusters), num_neighbors=min(20, len(view) - 1))
        return float(normalized_mutual_info(alone.cpu(), labels))

    def fit(self, X: Any, y: Any = None, *, resume: bool = False) -> 'MultiViewClustering':
        """Train on the views ``X`` and label the samples; see :class:`DeepClusterer`. ``y`` is ignored."""
        DeepClusterer.fit(self, X, y, resume=resume)
        return self


def merge_schedule(count: int, num_clusters: int, rate: float) -> list[int]:
    """Numbers of clusters of the periods of training: from ``count`` down to exactly ``num_clusters``.

    Example:
        >>> merge_schedule(50, 6, 0.9), merge_schedule(50, 6, 0.5)
        ([50, 6], [50, 25, 12, 6])
    """
    counts = [count]
    while counts[-1] > num_clusters:
        counts.append(counts[-1] - min(math.ceil(rate * counts[-1]), counts[-1] - num_clusters))
    return counts


class _Branches(nn.Module):
    """A branch for each view, and shared layers over all."""

    def __init__(self, widths: Sequence[int], hidden: int, embed_dims: int, device: torch.device):
        super().__init__()
        self.widths = list(widths)
        self.branches = nn.ModuleList(mlp([width, hidden], device, last_activation=True) for width in widths)
        self.shared = mlp([len(widths) * hidden, hidden, embed_dims], device)

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings (B, embed_dims) of the views side by side (B, sum of widths)."""
        parts = x.split(self.widths, dim=1)
        return self.shared(torch.cat([branch(part) for branch, part in zip(self.branches, parts, strict=True)], 1))
