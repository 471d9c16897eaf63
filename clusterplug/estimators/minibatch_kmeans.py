# SPDX-License-Identifier: Apache-2.0
"""Mini-batch k-means as an estimator: data that comes in pieces."""

import math
from typing import Any

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_number
from clusterplug.core.numerics import working_dtype
from clusterplug.estimators._arrays import Points, check_parameter, make_generator, read_points, read_weights
from clusterplug.estimators.kmeans import CenterClusterer, check_enough
from clusterplug.functional.kmeans import (
    MiniBatchKMeansState,
    minibatch_kmeans_start,
    minibatch_kmeans_update,
    nearest_center,
)


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

    Source: :func:`clusterplug.functional.minibatch_kmeans_update`, for callers that move empty centers themselves.

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

    Both run :func:`clusterplug.functional.minibatch_kmeans_update`: each center is the mean of all samples that it was
    ever given, and one that is given too few moves to a random sample of the batch. ``fit`` stops by the rules of
    scikit-learn.

    Args:
        n_clusters: K.
        init: ``'k-means++'``, ``'kkz'``, or an array (K, D). A string is applied to the first batch that
            ``partial_fit`` gets, or to ``init_size`` random samples in ``fit``.
        max_iter: At most so many passes over X in ``fit``.
        batch_size: Samples of a batch in ``fit``.
        tol: ``fit`` ends when a batch moves the centers by at most this, in squared distance summed over the centers,
            relative to the variance of the data; 0 = not for this reason.
        max_no_improvement: ``fit`` ends after so many batches in a row without a new minimum of the smoothed inertia
            of a batch (an exponentially weighted mean over about half a pass), counted from the second pass on; None =
            not for this reason.
        n_init: Starts of ``fit`` to choose among with ``'k-means++'``, by the inertia of the samples of all starts.
        init_size: Random samples that each start of ``fit`` is chosen from; None = half a batch, at least 3 K.
        reassignment_ratio: Share of the largest count, from 0 up to but not including 1, below which a center is rare
            and moves; looked at every 10 K samples. A center without samples moves at once.
        random_state: None, an int, a NumPy or a torch generator.
        verbose: 1 prints a line for each pass.

    Attributes:
        cluster_centers_: (K, D). counts_: (K,) weight seen by each center. n_steps_: batches seen.
        labels_: (N,) of the last data. inertia_: float, sum of weight x squared distance of the last data: exactly
        ``-score(X, sample_weight=...)``. n_iter_: passes of ``fit``, the last one begun counted. n_features_in_: D.
        running_centers_: (K, D) fp32, for data in half precision: the means that the centers are rounded from.
        seed_, n_since_move_: with which the next ``partial_fit`` goes on, also after ``save`` and ``load``.

    Source: Sculley, "Web-scale k-means clustering", WWW 2010. **Differs from scikit-learn's ``MiniBatchKMeans``**: a
    pass takes each sample once, in random order, instead of draws with replacement; weights act in the steps, not in
    the draws; the best of several starts is taken, and no improvement is looked for in the first pass.

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
        tol: float = 0.0,
        max_no_improvement: int | None = 10,
        n_init: int = 4,
        init_size: int | None = None,
        reassignment_ratio: float = 0.01,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.n_clusters = n_clusters
        self.init = init
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.tol = tol
        self.max_no_improvement = max_no_improvement
        self.n_init = n_init
        self.init_size = init_size
        self.reassignment_ratio = reassignment_ratio
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> 'MiniBatchKMeans':
        """Cluster ``X`` (N, D) by shuffled batches. ``y`` is ignored."""
        self._check_arguments()
        points = read_points(self, X, reset=True)
        x, weights = points.tensor, read_weights(sample_weight, points)
        check_enough(len(x), self.n_clusters)
        generator = make_generator(self.random_state, x.device)
        # samples without weight are ignored
        usable = torch.arange(len(x), device=x.device) if weights is None else weights.nonzero().flatten()
        state = self._first_state(x, weights, usable, generator)
        batch_size = min(int(self.batch_size), len(usable))
        limit = float(self.tol) * float(x.double().var(0, correction=0).mean()) if self.tol > 0 else -1.0
        stop = _StopRule(limit, self.max_no_improvement, -(-len(usable) // batch_size))
        number, reason = 0, ''
        while number < self.max_iter and not reason:
            number += 1
            order = torch.randperm(len(usable), generator=generator, device=x.device)
            for rows in usable[order].split(batch_size):
                part = None if weights is None else weights[rows]
                mass = len(rows) if part is None else float(part.sum())
                before = state
                step = self._update(state, x[rows], part, generator)
                state = step.state
                moved = (state.centers - before.centers).double().square().sum() if limit >= 0 else math.inf
                reason = stop(float(step.inertia) / mass, 2 * len(rows) / (len(usable) + 1), moved)
                if reason:
                    break
            why = f', {reason}' if reason else ''
            self._report(f'pass {number}: mean squared distance {stop.smoothed:.6g}{why}')
        self.n_iter_ = number
        self.seed_ = _draw_seed(generator, x.device)
        self._finish(points, state, weights)
        self._warn_if_fewer(self.labels_)
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> 'MiniBatchKMeans':
        """Take one batch ``X`` (N, D) into the centers; the first needs at least K samples or an array as init."""
        self._check_arguments()
        first = not hasattr(self, 'cluster_centers_')
        points = read_points(self, X, reset=first)
        x, weights = points.tensor, read_weights(sample_weight, points)
        if first:
            start, generator = self._start(x), make_generator(self.random_state, x.device)
            if isinstance(start, str):
                check_enough(len(x), self.n_clusters)
            state = self._state_at(start, x, weights, generator)
            self.seed_ = _draw_seed(generator, x.device)
        else:
            state = self._last_state(x)
        # Each step has numbers of its own, so that a model that was saved and loaded goes on as one that was not.
        generator = torch.Generator(x.device).manual_seed(self.seed_ + state.num_steps)
        step = self._update(state, x, weights, generator)
        self._finish(points, step.state, weights)
        self._report(f'batch {self.n_steps_}: mean squared distance {float(step.inertia) / len(x):.6g}')
        return self

    def _check_arguments(self) -> None:
        for name in ('n_clusters', 'max_iter', 'batch_size', 'n_init'):
            check_parameter(check_count, getattr(self, name), name, 1)
        if self.init_size is not None:
            check_parameter(check_count, self.init_size, 'init_size', int(self.n_clusters))
        if self.max_no_improvement is not None:
            check_parameter(check_count, self.max_no_improvement, 'max_no_improvement', 1)
        check_parameter(check_number, self.tol, 'tol', 0)
        if check_parameter(check_number, self.reassignment_ratio, 'reassignment_ratio', 0) >= 1:
            raise ValueError(f'reassignment_ratio must be less than 1, got {self.reassignment_ratio!r}; 0.01 is usual')

    def _update(self, state, x, weights, generator) -> Any:
        ratio = float(self.reassignment_ratio)
        return minibatch_kmeans_update(state, x, weights=weights, move_ratio=ratio, generator=generator)

    def _first_state(
        self, x: Tensor, weights: Tensor | None, usable: Tensor, generator: torch.Generator
    ) -> MiniBatchKMeansState:
        """Return the best of ``n_init`` starts, each from random ones of the ``usable`` rows."""
        start, num_starts = self._start(x), int(self.n_init)
        if start != 'k-means++':
            num_starts = 1
        if isinstance(start, Tensor):
            return self._state_at(start, x, weights, generator)
        num_clusters = int(self.n_clusters)
        size = self.init_size or max(int(self.batch_size) // 2, 3 * num_clusters)
        if len(usable) < num_clusters:  # more starting points than samples of weight: then some have none
            usable = torch.arange(len(x), device=x.device)
        draws = [torch.randperm(len(usable), generator=generator, device=x.device) for _ in range(num_starts)]
        rows = usable[torch.stack([draw[: int(size)] for draw in draws])]
        # all starts at once, as a batch of problems
        sample, mass = x[rows], None if weights is None else weights[rows]
        state = self._state_at(start, sample, mass, generator)
        squared = nearest_center(sample.flatten(0, 1).expand(num_starts, -1, -1), state.centers)[1]
        costs = (squared if mass is None else squared * mass.flatten()).sum(-1)
        best = costs.argmin()
        return MiniBatchKMeansState(state.centers[best], state.counts[best], 0, 0)

    def _state_at(self, start, x, weights, generator) -> MiniBatchKMeansState:
        if isinstance(start, Tensor):  # not by minibatch_kmeans_start: a first batch may be smaller than K
            counts = torch.zeros(len(start), dtype=torch.float64, device=x.device)
            return MiniBatchKMeansState(start.to(working_dtype(x.dtype)), counts, 0, 0)
        return minibatch_kmeans_start(x, int(self.n_clusters), init=start, weights=weights, generator=generator)

    def _last_state(self, x: Tensor) -> MiniBatchKMeansState:
        """Return the state that the attributes hold, on the device of ``x``."""
        centers = torch.as_tensor(self.cluster_centers_, device=x.device)
        running = getattr(self, 'running_centers_', None)
        if running is not None:
            running = torch.as_tensor(running, device=x.device)
            if torch.equal(running.to(centers.dtype), centers):  # nobody set other centers by hand
                centers = running
        counts = torch.as_tensor(self.counts_, device=x.device)
        centers = centers.to(working_dtype(x.dtype))
        return MiniBatchKMeansState(centers, counts, self.n_since_move_, self.n_steps_)

    def _finish(self, points: Points, state: MiniBatchKMeansState, weights: Tensor | None) -> None:
        centers = state.centers.to(points.tensor.dtype)
        self.cluster_centers_ = points.like(centers)
        if centers.dtype != state.centers.dtype:
            self.running_centers_ = points.like(state.centers)
        elif hasattr(self, 'running_centers_'):
            del self.running_centers_
        self.counts_ = points.like(state.counts)
        self.n_steps_, self.n_since_move_ = state.num_steps, state.num_points
        self._label(points, weights)


class _StopRule:
    """scikit-learn's two reasons to stop: centers that hardly move, and no new minimum of the smoothed inertia."""

    def __init__(self, limit: float, patience: int | None, steps_of_pass: int):
        self.limit, self.patience, self.steps_of_pass = limit, patience, steps_of_pass
        self.smoothed, self.least, self.waited, self.steps = math.nan, math.inf, 0, 0

    def __call__(self, inertia: float, share: float, moved: Any) -> str:
        """Take the mean squared distance of a batch, its weight in the mean, and the squared movement of the centers;
        return the reason to stop, or nothing."""
        self.steps += 1
        if self.steps == 1:  # it belongs to the centers of the start
            return ''
        share = 1.0 if math.isnan(self.smoothed) else min(share, 1.0)
        before = 0.0 if math.isnan(self.smoothed) else self.smoothed
        self.smoothed = (1 - share) * before + share * inertia
        if self.limit >= 0 and float(moved) <= self.limit:
            return 'centers hardly move'
        # The mean reaches back half a pass: before it is filled it says little, and a low first batch would end it all.
        self.waited = 0 if self.smoothed < self.least or self.steps <= self.steps_of_pass else self.waited + 1
        self.least = min(self.least, self.smoothed)
        return 'no improvement' if self.patience is not None and self.waited >= self.patience else ''


def _draw_seed(generator: torch.Generator, device: torch.device) -> int:
    return int(torch.randint(2**31 - 1, (1,), generator=generator, device=device))
