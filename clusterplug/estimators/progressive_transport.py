# SPDX-License-Identifier: Apache-2.0
"""Clustering of fixed features by self-training on progressive transport labels."""

import math
from typing import Any

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_number
from clusterplug.core.numerics import recording, working_dtype
from clusterplug.estimators._arrays import as_tensor_beside, check_parameter, make_generator, read_points
from clusterplug.estimators._base import Clusterer, TransformerMixin
from clusterplug.estimators.kmeans import check_enough
from clusterplug.functional import kmeans, knn_graph, progressive_transport, semantic_transport


class ProgressiveTransportClustering(TransformerMixin, Clusterer):
    r"""Cluster features of uneven classes with a cosine classifier trained on its own transport labels (P2OT, SP2OT).

    The prototypes start at the centers of k-means. In every step a batch gets soft labels by
    :func:`clusterplug.functional.progressive_transport`, of a share of the mass that grows from ``mass`` to 1,

    .. math:: \rho(t) = \rho_0 + (1 - \rho_0) e^{-5 (1 - t / T)^2},

    and Adam moves the prototypes by the cross-entropy. With ``strength`` > 0 the labels of neighbors are pulled
    together, by strength (1 - rho).

    Args:
        n_clusters: K, at least 2.
        mass: rho_0, the share of samples with labels at the start.
        penalty: Pull of the cluster sizes to equal ones: 1 is the authors' value for classes of moderately uneven
            size; smaller for more uneven ones (0.05 at 400 : 20).
        epsilon: Strength of the entropy term of the labels.
        temperature: Divides the cosines.
        strength: Of the graph at rho = 0; 0 = none.
        n_neighbors: Of the graph, the sample itself counted.
        n_iter: T, steps.
        lr: Learning rate of Adam.
        batch_size: Samples of a step; all where there are fewer.
        random_state: None, an int, a NumPy or a torch generator.
        verbose: 1 prints the loss every tenth of the steps.

    Attributes:
        labels_: (N,). cluster_centers_: (K, D) prototypes of unit length, for samples less ``mean_``. mean_: (D,).
            loss_history_: one number a step, loss / rho. n_features_in_: D.

    Raises:
        ValueError: Fewer samples than clusters, one cluster, an option out of range, NaN or inf.

    Source: Zhang, Ren and He, "P2OT", ICLR 2024, arXiv 2401.09266, and "SP2OT", arXiv 2404.03446; official code
    rhfeiyang/SPPOT (CC BY-NC 4.0; reimplemented). **Differs from the authors' code**: features are fixed, so there is
    one view and no buffer: a batch is large.

    Example:
        >>> import numpy as np
        >>> X = np.repeat(np.eye(3) * 9, [20, 8, 4], axis=0) + np.random.default_rng(0).normal(size=(32, 3))
        >>> model = ProgressiveTransportClustering(3, n_iter=20, random_state=0).fit(X)
        >>> sorted(np.bincount(model.labels_).tolist())
        [4, 8, 20]
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        mass: float = 0.1,
        penalty: float = 0.05,
        epsilon: float = 0.1,
        temperature: float = 0.1,
        strength: float = 0.0,
        n_neighbors: int = 21,
        n_iter: int = 250,
        lr: float = 0.01,
        batch_size: int = 2048,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.n_clusters = n_clusters
        self.mass = mass
        self.penalty = penalty
        self.epsilon = epsilon
        self.temperature = temperature
        self.strength = strength
        self.n_neighbors = n_neighbors
        self.n_iter = n_iter
        self.lr = lr
        self.batch_size = batch_size
        self.random_state = random_state
        self.verbose = verbose

    @recording()
    def fit(self, X: Any, y: Any = None) -> 'ProgressiveTransportClustering':
        """Cluster ``X`` (N, D). ``y`` is ignored."""
        self._check_parameters()
        points = read_points(self, X, reset=True)
        check_enough(len(points.tensor), self.n_clusters)
        generator = make_generator(self.random_state, points.tensor.device)
        # an offset far larger than the spread costs digits in fp32 unless it goes first
        wide = points.tensor.to(working_dtype(points.tensor.dtype))
        mean = wide.mean(0)
        x = (wide - mean).float()
        start = kmeans(x, int(self.n_clusters), generator=generator).centers
        prototypes = self._train(_unit(x), _unit(start), generator)
        self.mean_, self.cluster_centers_ = points.like(mean), points.like(prototypes)
        self.labels_ = points.like((_unit(x) @ prototypes.T).argmax(1))
        self._warn_if_fewer(self.labels_)
        return self

    def predict(self, X: Any) -> Any:
        """Return the cluster of each sample, (N,) int64."""
        points, cosines = self._cosines(X)
        return points.like(cosines.argmax(1))

    def predict_proba(self, X: Any) -> Any:
        """Return the softmax of the scaled cosines, (N, K) fp32."""
        points, cosines = self._cosines(X)
        return points.like((cosines / self.temperature).softmax(1))

    def transform(self, X: Any) -> Any:
        """Return the cosine of each sample to each prototype, (N, K) fp32."""
        points, cosines = self._cosines(X)
        return points.like(cosines)

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    def _cosines(self, X: Any) -> tuple[Any, Tensor]:
        self._check_fitted()
        points = read_points(self, X, reset=False)
        mean = as_tensor_beside(self.mean_, points.tensor.double(), 'X')
        x = (points.tensor.double() - mean).float()
        return points, _unit(x) @ as_tensor_beside(self.cluster_centers_, x, 'X').T

    def _check_parameters(self) -> None:
        check_parameter(check_count, self.n_clusters, 'n_clusters', 2)
        check_parameter(check_count, self.n_iter, 'n_iter', 1)
        check_parameter(check_count, self.batch_size, 'batch_size', 2)
        check_parameter(check_count, self.n_neighbors, 'n_neighbors', 2)
        for name in ('strength', 'lr', 'penalty'):
            check_parameter(check_number, getattr(self, name), name, 0)
        for name in ('mass', 'epsilon', 'temperature'):
            least, most = 1e-6, 1 if name == 'mass' else math.inf
            check_parameter(check_number, getattr(self, name), name, least, most)

    def _train(self, x: Tensor, start: Tensor, generator: torch.Generator) -> Tensor:
        weight = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([weight], lr=float(self.lr))
        count, size, steps = len(x), min(len(x), int(self.batch_size)), int(self.n_iter)
        init, self.loss_history_ = None, []
        for step in range(steps):
            rows = torch.randperm(count, generator=generator, device=x.device)[:size] if size < count else slice(None)
            share = self.mass + (1 - self.mass) * math.exp(-5 * (1 - step / steps) ** 2)
            predicted = ((x[rows] @ _unit(weight).T) / self.temperature).log_softmax(1)
            found = self._labels(predicted.detach(), x[rows], share, init)
            init = found.potentials
            loss = -(found.plan * predicted).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.loss_history_.append(float(loss.detach()) / share)
            if (step + 1) % max(1, steps // 10) == 0:
                self._report(f'step {step + 1} of {steps}: loss {self.loss_history_[-1]:.4g}, mass {share:.2f}')
        return _unit(weight.detach())

    def _labels(self, scores: Tensor, x: Tensor, share: float, init: Tensor | None) -> Any:
        options: dict[str, Any] = {
            'epsilon': float(self.epsilon), 'mass': share, 'penalty': float(self.penalty), 'init': init,
            'full_output': True,
        }  # fmt: skip
        strength = self.strength * (1 - share)
        if strength == 0 or len(x) < 2:
            return progressive_transport(scores, tol=1e-4, **options)
        graph = knn_graph(x, min(int(self.n_neighbors), len(x)) - 1, mode='heat')
        return semantic_transport(scores, graph=graph, strength=strength, tol=1e-4, **options)


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)
