# SPDX-License-Identifier: Apache-2.0
"""Clusters of a scatterplot as a reader would draw them, by a network that was trained for it."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clusterplug.backbones import ClusterLogits, PointClusterNet, scale_plots
from clusterplug.core.checks import check_choice, check_count
from clusterplug.core.files import load_arrays
from clusterplug.core.numerics import no_autocast
from clusterplug.estimators._arrays import check_parameter, make_generator, read_points
from clusterplug.estimators._base import Clusterer
from clusterplug.functional import cut_linkage, group_kappa, linear_assignment, linkage, nearest_center

__all__ = ['PerceptualClusterer']

_SHIPPED = Path(__file__).parent / 'weights' / 'perceptual.npz'
_FEWEST_SPLIT = 24  # clusters with fewer points are not looked at by themselves


class PerceptualClusterer(Clusterer):
    r"""Clusters of points in the plane as people see them: no number of clusters, no radius, no density threshold.

    A :class:`~clusterplug.backbones.PointClusterNet` gives every point a probability for each of its columns; the
    points of a column are a cluster. The probabilities are averaged over turned and mirrored views, whose columns are
    matched to those of the first view by overlap (an order of columns means nothing). Sets that fill every column of
    the network are looked at again cluster by cluster, so there may be more clusters than columns.

    Args:
        n_clusters: None: the network decides. A number: exactly so many, by average linkage of the probability that
            two points belong apart; at most the network's columns.
        weights: None: the weights of the package (8 columns, 2-D; generated plots, see the page). The path of a file
            of ``tools/train_perceptual_clusterer.py``, or a ``PointClusterNet``.
        n_points: Points that the network sees at once. Of larger sets a random sample; the others take the cluster of
            their nearest point of the sample.
        n_views: Views that are averaged. Needs a network of 2 or 3 coordinates (turned around z) without ``per_axis``.
        max_depth: How often a set that fills all columns may be split further; 0 = never. Not used with a number
            ``n_clusters``.
        projection: None: X must have the network's number of coordinates. ``'pca'``: project X onto so many
            principal components (fewer features than that are filled up with zeros).
        random_state: Of the sample; the default repeats the result.
        device: Where the network runs; None = the device of X.
        verbose: 1 prints a line at the end.

    Attributes:
        labels_: (N,) int64, numbered in the order of the first points; -1 = noise, of networks with that column.
        agreement_: (N,) fp32 from 0 to 1, how far raters would agree on which others the point belongs with; None of
            networks that do not predict it.
        n_clusters_: number found. n_features_in_: D.

    Raises:
        ValueError: Fewer than 3 points, NaN, another number of coordinates, a file that holds no such network.

    Source: Hartwig et al., "ClusterNet: A Perception-Based Clustering Model for Scattered Data", arXiv 2304.14185
    (later "HPSCAN"). Official repository: kopetri/HPSCAN, without code and license. **Differs from the paper**: the
    sizes, the loss and the training are a reconstruction from the abstract, and the weights of the package were trained
    on generated plots with generated raters, not on the people's labels of the paper; ``from_pretrained`` takes yours.
    Views are averaged as probabilities with matched columns, not as pairs, which needs no N x N matrix.

    Example:
        >>> import numpy as np
        >>> g = np.random.default_rng(0)
        >>> X = np.concatenate([g.normal(0, 0.04, (40, 2)), g.normal(1, 0.04, (40, 2))])
        >>> PerceptualClusterer().fit(X).n_clusters_
        2
    """

    def __init__(
        self,
        n_clusters: int | None = None,
        *,
        weights: Any = None,
        n_points: int = 128,
        n_views: int = 4,
        max_depth: int = 2,
        projection: str | None = None,
        random_state: Any = 0,
        device: Any = None,
        verbose: int = 0,
    ):
        self.n_clusters = n_clusters
        self.weights = weights
        self.n_points = n_points
        self.n_views = n_views
        self.max_depth = max_depth
        self.projection = projection
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    @classmethod
    def from_pretrained(cls, path: Any = None, **options: Any) -> 'PerceptualClusterer':
        """Return an estimator with the weights in ``path`` (None: those of the package), which is read at once.

        Raises:
            FileNotFoundError, ValueError: There is no such file, or it holds no network of this kind.
        """
        estimator = cls(weights=None if path is None else str(path), **options)
        estimator._load_network()
        return estimator

    def fit(self, X: Any, y: Any = None) -> 'PerceptualClusterer':
        """Cluster ``X`` (N, 2), or as many coordinates as the network takes. ``y`` is ignored."""
        network = self._load_network()
        self._check_parameters(network)
        points = read_points(self, X, reset=True)
        if len(points.tensor) < 3:
            raise ValueError(
                f'n_samples={len(points.tensor)} is too few: X must hold at least 3 points; with fewer there is '
                f'nothing to see'
            )
        x = self._coordinates(points.tensor, network)
        device = torch.device(self.device if self.device is not None else x.device)
        network = network.to(device)
        generator = make_generator(self.random_state, torch.device('cpu'))
        labels, agreement = self._label(x.to(device), network, generator, int(self.max_depth))
        self.labels_, self.agreement_ = points.like(_in_order(labels).to(x.device)), None
        if agreement is not None:
            self.agreement_ = points.like(agreement.to(x.device))
        self.n_clusters_ = int(self.labels_.max()) + 1
        self._report(f'{len(x)} samples in {self.n_clusters_} clusters')
        return self

    def group_score(self, X: Any, raters: Any) -> float:
        """Return :func:`~clusterplug.functional.group_kappa` of the clusters of ``X`` with labels of raters.

        Args:
            X: (N, 2), clustered anew by a copy.
            raters: (R, N) integers of R raters, or (N,) of one; below 0 = noise.
        """
        found = type(self)(**self.get_params(deep=False)).fit(X).labels_
        raters = torch.as_tensor(raters)
        return group_kappa(torch.as_tensor(found), raters if raters.dim() == 2 else raters.unsqueeze(0))

    def _check_parameters(self, network: PointClusterNet) -> None:
        for name, least in (('n_points', 8), ('n_views', 1), ('max_depth', 0)):
            check_parameter(check_count, getattr(self, name), name, least)
        if self.n_clusters is not None:
            check_parameter(check_count, self.n_clusters, 'n_clusters', 1, network.num_clusters)
        if self.projection is not None:
            check_parameter(check_choice, self.projection, 'projection', ('pca',), ' or None')
        if self.n_views > 1 and (network.per_axis or network.in_channels not in (2, 3)):
            raise ValueError(
                f'n_views must be 1 for a network of {network.in_channels} coordinates with '
                f'per_axis={network.per_axis}, got {self.n_views}; turned plots would be other plots to it'
            )

    def _load_network(self) -> PointClusterNet:
        """Return the network, in evaluation mode and without a gradient; the user's own module is copied."""
        if isinstance(self.weights, PointClusterNet):
            with torch.device('cpu'):
                options: dict[str, Any] = self.weights.options
                network = PointClusterNet(**options)
            network.load_state_dict(self.weights.state_dict())
            return network.eval().requires_grad_(False)
        if self.weights is not None and not isinstance(self.weights, str | Path):
            raise ValueError(f'weights must be None, a path or a PointClusterNet, got {type(self.weights).__name__}')
        return _read_network(_SHIPPED if self.weights is None else self.weights)

    def _coordinates(self, x: Tensor, network: PointClusterNet) -> Tensor:
        """Return points in the coordinates of the network, in fp32 from 0 to 1."""
        count = network.in_channels
        if x.shape[1] != count and self.projection is None:
            raise ValueError(
                f"X must have {count} features, the coordinates of the network, got {x.shape[1]}; projection='pca' "
                f'takes others'
            )
        # by the largest coordinate first: squares of the numbers of X may be no numbers
        x = scale_plots(x.unsqueeze(0), per_axis=network.per_axis and x.shape[1] == count)[0].double()
        if x.shape[1] > count:
            centered = x - x.mean(0)
            basis = torch.linalg.eigh(centered.mT @ centered).eigenvectors[:, -count:].flip(1)
            x = centered @ basis
        elif x.shape[1] < count:
            x = torch.cat([x, x.new_zeros(len(x), count - x.shape[1])], 1)
        return x

    def _label(
        self, x: Tensor, network: PointClusterNet, generator: torch.Generator, depth: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return labels (N,) and the agreement (N,) of points of any number."""
        kept = torch.arange(len(x), device='cpu')
        if len(x) > self.n_points:
            kept = torch.randperm(len(x), generator=generator, device='cpu')[: self.n_points]
        sample = x[kept.to(x.device)]
        p, agreement = self._probabilities(sample, network)
        labels = p.argmax(-1)
        if network.noise:
            labels = torch.where(labels == network.num_clusters, -1, labels)
        if self.n_clusters is not None:
            labels = self._cut(p, labels)
        if len(kept) < len(x):
            nearest = nearest_center(x, sample)[0]
            labels = labels[nearest]
            agreement = None if agreement is None else agreement[nearest]
        used = labels[labels >= 0].unique()
        if self.n_clusters is None and depth > 0 and len(used) == network.num_clusters > 1:
            number = network.num_clusters
            for each in used.tolist():
                members = labels == each
                if int(members.sum()) < _FEWEST_SPLIT:
                    continue
                parts, _ = self._label(x[members], network, generator, depth - 1)
                found = int(parts.max()) + 1
                if found > 1:
                    labels[members] = torch.where(parts >= 0, parts + number, -1)
                    number += found
        return labels, agreement

    @torch.no_grad()
    def _probabilities(self, x: Tensor, network: PointClusterNet) -> tuple[Tensor, Tensor | None]:
        """Return the probabilities (N, C) of the columns, averaged over views, and the agreement."""
        x = scale_plots(x.unsqueeze(0), per_axis=network.per_axis)[0]
        views = torch.stack([_view(x - 0.5, number, int(self.n_views)) for number in range(int(self.n_views))])
        with no_autocast(x):
            outputs = [network(view.unsqueeze(0).float()) for view in views]
        agreement = None
        if isinstance(outputs[0], ClusterLogits):
            agreement = torch.stack([each.agreement[0] for each in outputs]).mean(0)
            outputs = [each.logits for each in outputs]
        p = torch.stack([each[0].double().softmax(-1) for each in outputs])
        clusters = network.num_clusters
        total = p[0].clone()
        for each in p[1:]:
            columns = linear_assignment(total[:, :clusters].mT @ each[:, :clusters], maximize=True).cols
            total[:, :clusters] += each[:, columns]
            total[:, clusters:] += each[:, clusters:]
        return total / len(p), agreement

    def _cut(self, p: Tensor, labels: Tensor) -> Tensor:
        """Return labels of exactly ``n_clusters`` clusters, noise aside."""
        inside = labels >= 0
        if int(inside.sum()) < self.n_clusters:
            raise ValueError(
                f'n_clusters must be at most the number of points that are no noise, {int(inside.sum())}, got '
                f'{self.n_clusters}'
            )
        q = p[inside]
        apart = (1 - q @ q.mT).clamp(0, 1).fill_diagonal_(0)
        labels = labels.clone()
        labels[inside] = cut_linkage(linkage((apart + apart.mT) / 2, metric='precomputed'), int(self.n_clusters))
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.non_deterministic = self.random_state is None
        return tags


def _view(x: Tensor, number: int, count: int) -> Tensor:
    """Return the points turned by a part of a full turn; every other view is mirrored."""
    if number == 0:
        return x
    angle = 2 * math.pi * number / count + 0.3 * number
    cos, sin, side = math.cos(angle), math.sin(angle), -1.0 if number % 2 else 1.0
    turn = torch.tensor([[cos, -sin * side], [sin, cos * side]], dtype=x.dtype, device=x.device)
    return torch.cat([x[:, :2] @ turn.mT, x[:, 2:]], 1)


def _in_order(labels: Tensor) -> Tensor:
    """Number clusters in the order of their first points; -1 stays."""
    kinds, index = labels.unique(return_inverse=True)
    first = torch.full((len(kinds),), len(labels), device=labels.device)
    first = first.scatter_reduce(0, index, torch.arange(len(labels), device=labels.device), 'amin')
    first = torch.where(kinds < 0, -1, first)
    rank = first.argsort().argsort() - int((kinds < 0).sum())
    return torch.where(labels < 0, -1, rank[index])


def _read_network(path: Any) -> PointClusterNet:
    """Return the network of a file of ``tools/train_perceptual_clusterer.py``."""
    arrays, header = load_arrays(path)
    options = header.get('network')
    if not isinstance(options, dict):
        raise ValueError(
            f'weights must be a file of tools/train_perceptual_clusterer.py, got {path}, which describes no network'
        )
    try:
        # whatever the default device is; the start is overwritten, so it takes no random numbers from the caller
        with torch.random.fork_rng(devices=[]), torch.device('cpu'):
            network = PointClusterNet(**options)
        network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f'{path} does not fit the network that it describes: {error}') from error
    return network.eval().requires_grad_(False)
