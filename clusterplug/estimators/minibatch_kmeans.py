"""Mini-batch k-means as an estimator: data that comes in pieces."""

import numbers
from typing import Any

import torch
from torch import Tensor

from clusterplug.estimators._arrays import check_interval, make_generator, read_points, read_weights
from clusterplug.estimators.kmeans import CenterClusterer, check_enough
from clusterplug.functional._numerics import working_dtype
from clusterplug.functional.kmeans import kmeans, nearest_center
from clusterplug.functional.minibatch_kmeans import MiniBatchKMeansState, minibatch_kmeans_update


def minibatch_step(
    centers: Tensor, counts: Tensor, points: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Move each center to the mean of all points that it has ever been given; a center without points stays.

    Args:
        centers: (K, D), fp32 or float64.
        counts: (K,) weight seen by each center so far, float64.
        points: (N, D) a batch, floating.
        weights: (N,) or None.

    Returns:
        New centers (K, D), new counts (K,), and the sum of squared distances of the batch to the old centers.

    Source: :func:`clusterplug.functional.minibatch_kmeans_update`.

    Example:
        >>> import torch
        >>> centers, counts = torch.tensor([[0.0], [10.0]]), torch.tensor([1.0, 1.0]).double()
        >>> minibatch_step(centers, counts, torch.tensor([[2.0], [4.0]]))[0].tolist()
        [[2.0], [10.0]]
    """
    state = MiniBatchKMeansState(centers, counts, 0, 0)
    step = minibatch_kmeans_update(state, points, weights=weights, move_ratio=None)
    return step.state.centers, step.state.counts, step.inertia


class MiniBatchKMeans(CenterClusterer):
    """k-means over batches: ``fit`` draws them from X, ``partial_fit`` is given them.

    Args:
        n_clusters: K.
        init: ``'k-means++'``, ``'kkz'``, or an array (K, D). A string is applied to the first batch that
            ``partial_fit`` gets, or to 3 batches' worth of random samples in ``fit``.
        max_iter: Most passes over X in ``fit``.
        batch_size: Samples of a batch in ``fit``.
        tol: ``fit`` ends when a pass moves the centers by less, relative to the variance of the data.
        random_state: None, an int, a NumPy or a torch generator.
        verbose: 1 prints a line for each pass.

    Attributes:
        cluster_centers_: (K, D). counts_: (K,) weight seen by each center. n_steps_: batches seen.
        labels_: (N,) of the last data. inertia_: float, sum of squared distances of the last data.
        n_iter_: passes of ``fit``. n_features_in_: D.

    Example:
        >>> import numpy as np
        >>> model = MiniBatchKMeans(2, init=np.array([[0.0], [10.0]]))
        >>> for batch in ([[1.0], [9.0]], [[3.0], [11.0]]):
        ...     _ = model.partial_fit(np.array(batch))
        >>> model.cluster_centers_.tolist()
        [[2.0], [10.0]]
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = 'k-means++',
        max_iter: int = 100,
        batch_size: int = 1024,
        tol: float = 1e-4,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.n_clusters = n_clusters
        self.init = init
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.tol = tol
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> 'MiniBatchKMeans':
        """Cluster ``X`` (N, D) by shuffled batches. ``y`` is ignored."""
        self._check_arguments()
        points = read_points(self, X, reset=True)
        x, weights = points.tensor, read_weights(sample_weight, points)
        check_enough(len(x), self.n_clusters)
        generator = make_generator(self.random_state, x.device)
        batch_size = min(int(self.batch_size), len(x))
        sample = torch.randperm(len(x), generator=generator, device=x.device)
        sample = sample[: max(3 * batch_size, 3 * int(self.n_clusters))]
        centers = self._first_centers(x[sample], None if weights is None else weights[sample], generator)
        limit = float(self.tol) * float(x.double().var(0, correction=0).mean())
        steps = 0
        for number in range(1, int(self.max_iter) + 1):
            # Counts start anew with each pass: old positions lose their say, and the passes converge.
            counts = torch.zeros(len(centers), dtype=torch.float64, device=x.device)
            before, inertia = centers, 0.0
            order = torch.randperm(len(x), generator=generator, device=x.device)
            for batch in order.split(batch_size):
                part = None if weights is None else weights[batch]
                centers, counts, cost = minibatch_step(centers, counts, x[batch], part)
                inertia, steps = inertia + float(cost), steps + 1
            centers = _replace_empty(centers, counts, x, weights)
            self._report(f'pass {number}: sum of squared distances {inertia:.6g}')
            if float((centers - before).double().square().sum()) <= limit:
                break
        self.counts_ = points.like(counts)
        self.n_iter_, self.n_steps_ = number, steps
        self._finish(points, centers, weights)
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> 'MiniBatchKMeans':
        """Take one batch ``X`` (N, D) into the centers; the first needs at least K samples or an array as init."""
        self._check_arguments()
        first = not hasattr(self, 'cluster_centers_')
        points = read_points(self, X, reset=first)
        x, weights = points.tensor, read_weights(sample_weight, points)
        if first:
            if isinstance(self.init, str):
                check_enough(len(x), self.n_clusters)
            centers = self._first_centers(x, weights, make_generator(self.random_state, x.device))
            counts = torch.zeros(len(centers), dtype=torch.float64, device=x.device)
            self.n_steps_ = 0
        else:
            centers = torch.as_tensor(self.cluster_centers_).to(x.device, working_dtype(x.dtype))
            counts = torch.as_tensor(self.counts_).to(x.device)
        centers, counts, cost = minibatch_step(centers, counts, x, weights)
        self.counts_ = points.like(counts)
        self.n_steps_ += 1
        self._report(f'batch {self.n_steps_}: mean squared distance {float(cost) / len(x):.6g}')
        self._finish(points, centers, weights)
        return self

    def _check_arguments(self) -> None:
        for name in ('n_clusters', 'max_iter', 'batch_size'):
            check_interval(name, getattr(self, name), numbers.Integral, 1)
        check_interval('tol', self.tol, numbers.Real, 0)

    def _first_centers(self, points: Tensor, weights: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Return the centers to begin with, in the type that batches are summed in."""
        start, points = self._start(points), points.to(working_dtype(points.dtype))
        if isinstance(start, Tensor):
            return start.to(points.dtype)
        num_clusters = int(self.n_clusters)
        return kmeans(points, num_clusters, init=start, num_iters=10, weights=weights, generator=generator).centers

    def _finish(self, points: Any, centers: Tensor, weights: Tensor | None) -> None:
        centers = centers.to(points.tensor.dtype)
        labels, squared = nearest_center(points.tensor, centers)
        self.cluster_centers_ = points.like(centers)
        self.labels_ = points.like(labels)
        self.inertia_ = float((squared if weights is None else squared * weights).double().sum())


def _replace_empty(centers: Tensor, counts: Tensor, points: Tensor, weights: Tensor | None) -> Tensor:
    """Move centers that a whole pass left without a point to the points farthest from their centers."""
    empty = (counts == 0).nonzero().flatten()
    if len(empty) == 0:
        return centers
    squared = nearest_center(points, centers)[1]
    if weights is not None:
        squared = squared * (weights > 0)
    centers = centers.clone()
    centers[empty] = points[squared.topk(len(empty)).indices].to(centers.dtype)
    return centers
