# SPDX-License-Identifier: Apache-2.0
"""Projection-based novel class discovery: a small network that knows the known classes, k-means on its projection."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from clusterplug.core.checks import check_count, check_number
from clusterplug.core.numerics import recording, working_dtype
from clusterplug.estimators._arrays import as_tensor_beside, check_parameter, read_points
from clusterplug.estimators._base import Clusterer, TransformerMixin
from clusterplug.estimators._novel import (
    check_common,
    class_means,
    generator_of,
    novel_kmeans,
    number_of_clusters,
    numbered,
    read_split,
)
from clusterplug.estimators.deep.networks import initialize
from clusterplug.functional import nearest_center

# Layers of tables with few columns would have 2 units.
_LEAST_UNITS = 16


class _Network(nn.Module):
    """Encoder to unit length, mirrored decoder, classifier of the known classes; dropout from a generator."""

    def __init__(self, in_features: int, latent_dim: int, num_classes: int, dropout: float):
        super().__init__()
        wide, narrow = max(_LEAST_UNITS, 3 * in_features // 4), max(_LEAST_UNITS, 2 * in_features // 4)
        self.down = nn.ModuleList(self._part(*each) for each in ((in_features, wide), (wide, narrow)))
        self.latent = skip_init(nn.Linear, narrow, latent_dim)
        self.up = nn.ModuleList(self._part(*each) for each in ((latent_dim, narrow), (narrow, wide)))
        self.output = skip_init(nn.Linear, wide, in_features)
        self.classifier = skip_init(nn.Linear, latent_dim, max(1, num_classes))
        self.dropout = dropout
        self.generator: torch.Generator | None = None

    @staticmethod
    def _part(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(skip_init(nn.Linear, before, after), nn.ReLU(), nn.BatchNorm1d(after))

    def encode(self, x: Tensor) -> Tensor:
        for part in self.down:
            x = self._drop(part(x))
        return nn.functional.normalize(self.latent(x), dim=1)

    def decode(self, z: Tensor) -> Tensor:
        for part in self.up:
            z = self._drop(part(z))
        return self.output(z)

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or self.dropout == 0:
            return x
        kept = torch.rand(x.shape, generator=self.generator, device=x.device, dtype=torch.float32) >= self.dropout
        return x * kept / (1 - self.dropout)


class ProjectionBasedNCD(TransformerMixin, Clusterer):
    r"""Discover classes in unlabeled samples with a projection learned from known classes and from all samples (PBN).

    .. math:: L = w \, CE(\text{classifier}(z), y)_{\text{known}} + (1 - w) \frac1B \sum_i \|\hat x_i - x_i\|^2, \qquad
              z = f(x) / \|f(x)\|

    then k-means on z of the unlabeled samples. The network is small on purpose: its four numbers (``lr``, ``weight``,
    ``dropout``, ``latent_dim``) can be tuned without novel labels by :class:`HiddenClassCV`.

    It solves novel class discovery with a clean split: unlabeled samples belong to novel classes only.

    Args:
        n_clusters: Number of novel classes; ``'auto'`` estimates it by the silhouette in the projection.
        weight: w in [0, 1]; 1 leaves nothing that keeps the structure of novel samples (digits: .925 at .064, .421
            at 1).
        lr: Learning rate of AdamW.
        dropout: Share of units dropped, in [0, 1).
        latent_dim: Width of the projection; None = 0.8 D, 2 to 256.
        epochs: Passes over all samples.
        batch_size: Samples of a step.
        standardize: Subtract the mean of each feature and divide by its deviation first (constant ones become 0).
        n_init: Starts of k-means.
        power: See :class:`NovelClassKMeans`; 2 is plain k-means.
        max_iter: Maximum number of iterations of k-means.
        tol: Of k-means.
        random_state: None, an int, a NumPy or a torch generator; torch's global generator plays no part.
        verbose: 1 prints the loss every tenth of the epochs.

    Attributes:
        labels_: (N,) known labels as given, clusters numbered after the largest of them. cluster_centers_: (K, L) in
            the projection. n_clusters_: K. classes_: known classes. loss_history_: one number for each epoch.
            network_: the trained module.

    Raises:
        ValueError: No unlabeled samples, fewer of them than clusters, no known class with ``weight`` > 0, an option
            out of range.

    Source: Troisemaine, Reiffers-Masson, Gosselin, Lemaire and Vaton, "A Practical Approach to Novel Class Discovery
    in Tabular Data", Data Mining and Knowledge Discovery 2024, arXiv 2311.05440; official code ColinTr/PracticalNCD
    (MIT). **Differs from the authors' code**: projections have unit length in prediction as in training; batches are
    shuffled in every epoch; a batch without known samples has no classification term instead of NaN; layers
    have at least 16 units.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(40, 4)) + np.repeat(np.eye(4) * 9, 10, axis=0)
        >>> y = np.repeat([0, 1, -1, -1], 10)
        >>> model = ProjectionBasedNCD(2, epochs=30, random_state=0).fit(X, y)
        >>> sorted(set(model.labels_.tolist()))
        [0, 1, 2, 3]
    """

    def __init__(
        self,
        n_clusters: Any = 8,
        *,
        weight: float = 0.064,
        lr: float = 1e-3,
        dropout: float = 0.1,
        latent_dim: int | None = None,
        epochs: int = 200,
        batch_size: int = 512,
        standardize: bool = True,
        n_init: int = 10,
        power: int = 2,
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.n_clusters = n_clusters
        self.weight = weight
        self.lr = lr
        self.dropout = dropout
        self.latent_dim = latent_dim
        self.epochs = epochs
        self.batch_size = batch_size
        self.standardize = standardize
        self.n_init = n_init
        self.power = power
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.verbose = verbose

    @recording()
    def fit(self, X: Any, y: Any = None) -> 'ProjectionBasedNCD':
        """Train on all rows of ``X`` (N, D) and cluster those where ``y`` is -1."""
        self._check_parameters()
        split = read_split(self, X, y)
        if self.weight > 0 and not len(split.classes):
            raise ValueError('y must hold known classes where weight > 0, got none; label some or set weight=0')
        # an offset far larger than the spread costs digits in fp32 unless it goes first
        x = split.points.tensor.to(working_dtype(split.points.tensor.dtype))
        self.mean_, self.scale_ = torch.zeros(x.shape[1]).numpy(), torch.ones(x.shape[1]).numpy()
        if self.standardize:
            scale = x.std(0, correction=0)
            constant = scale <= (1e-14 if x.dtype == torch.float64 else 1e-7) * x.abs().amax(0)
            self.mean_ = x.mean(0).cpu().numpy()
            self.scale_ = torch.where(constant, 1.0, scale).cpu().numpy()
        x = self._standardized(x)
        targets = torch.searchsorted(split.classes, split.labels.clamp_min(0)).masked_fill(split.novel, -1)
        generator = generator_of(self, x.device)
        self._train(x, targets, len(split.classes), generator)
        with torch.no_grad():
            z = self.network_.encode(x)
        novel = z[split.novel]
        known = class_means(z[~split.novel], split.labels[~split.novel], split.classes)[:0]  # plain k-means
        self.n_clusters_ = number_of_clusters(self, novel)
        centers, labels, self.inertia_, self.n_iter_ = novel_kmeans(
            novel, self.n_clusters_, known, self.power, int(self.n_init), int(self.max_iter), float(self.tol), generator
        )
        self.cluster_centers_, self.classes_ = split.points.like(centers), split.points.like(split.classes)
        self.labels_, self.first_label_ = numbered(split, labels)
        return self

    def fit_predict(self, X: Any, y: Any = None) -> Any:
        """Fit and return ``labels_``."""
        return self.fit(X, y).labels_

    def transform(self, X: Any) -> Any:
        """Return the projection of each sample, (N, L) fp32 rows of unit length."""
        self._check_fitted()
        points = read_points(self, X, reset=False)
        return points.like(self._project(points.tensor))

    def predict(self, X: Any) -> Any:
        """Return the nearest novel cluster of each sample, in the numbers of ``labels_``."""
        self._check_fitted()
        points = read_points(self, X, reset=False)
        z = self._project(points.tensor)
        centers = as_tensor_beside(self.cluster_centers_, z, 'cluster_centers_')
        return points.like(nearest_center(z, centers)[0] + self.first_label_)

    @property
    def _n_features_out(self) -> int:
        return self.network_.latent.out_features

    @torch.no_grad()
    def _project(self, x: Tensor) -> Tensor:
        device = next(self.network_.parameters()).device
        return self.network_.encode(self._standardized(x.to(device))).to(x.device)

    def _standardized(self, x: Tensor) -> Tensor:
        mean, scale = (torch.as_tensor(each, device=x.device) for each in (self.mean_, self.scale_))
        return ((x.to(working_dtype(x.dtype, mean.dtype)) - mean) / scale).float()

    def _check_parameters(self) -> None:
        check_common(self)
        check_parameter(check_number, self.weight, 'weight', 0, 1)
        check_parameter(check_number, self.lr, 'lr', 0)
        check_parameter(check_number, self.dropout, 'dropout', 0, 0.99)
        for name in ('epochs', 'batch_size'):
            check_parameter(check_count, getattr(self, name), name, 1)
        if self.latent_dim is not None:
            check_parameter(check_count, self.latent_dim, 'latent_dim', 1)

    def _train(self, x: Tensor, targets: Tensor, num_classes: int, generator: torch.Generator) -> None:
        count, width = x.shape
        latent = min(256, max(2, round(0.8 * width))) if self.latent_dim is None else int(self.latent_dim)
        seeds = torch.Generator().manual_seed(int(torch.randint(2**31, (1,), generator=generator, device=x.device)))
        network = _Network(width, latent, num_classes, float(self.dropout)).float()  # whatever the default type
        initialize(network, seeds)
        network.to(x.device).train().generator = generator
        optimizer = torch.optim.AdamW(network.parameters(), lr=float(self.lr))
        size, weight, self.loss_history_ = min(int(self.batch_size), count), float(self.weight), []
        for epoch in range(int(self.epochs)):
            order, total = torch.randperm(count, generator=generator, device=x.device), 0.0
            for rows in order.split(size):
                if len(rows) < 2:
                    continue  # BatchNorm has no statistics of one row
                loss = _loss(network, x[rows], targets[rows], weight)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(rows) / count
            self.loss_history_.append(total)
            if (epoch + 1) % max(1, int(self.epochs) // 10) == 0:
                self._report(f'epoch {epoch + 1} of {self.epochs}: loss {total:.4g}')
        network.generator = None  # a generator cannot be pickled
        self.network_ = network.eval()


def _loss(network: _Network, x: Tensor, targets: Tensor, weight: float) -> Tensor:
    z = network.encode(x)
    terms = []
    if weight < 1:
        terms.append((1 - weight) * (network.decode(z) - x).square().sum(1).mean())
    if weight > 0:
        known = targets >= 0
        each = nn.functional.cross_entropy(network.classifier(z), targets, ignore_index=-1, reduction='sum')
        terms.append(weight * each / known.sum().clamp_min(1))
    return torch.stack(terms).sum()
