# SPDX-License-Identifier: Apache-2.0
"""Clusters of Gaussians of different shapes by semidefinite programs: an estimator without local optima of labels."""

from typing import Any

import torch
from torch import Tensor

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.estimators._arrays import as_tensor_beside, check_parameter, make_generator, read_points
from clusterplug.estimators._base import Clusterer
from clusterplug.estimators._gaussians import fit_gaussians, log_densities
from clusterplug.functional import kmeans, kmeans_sdp, likelihood_sdp, membership_labels

TYPES = ('full', 'diag', 'spherical', 'tied')
SOLVERS = ('auto', 'admm', 'factorized')
# Up to here 'auto' solves the dense program: some seconds with K = 3.
_DENSE_SAMPLES = 300


class LikelihoodSDP(Clusterer):
    r"""Cluster by the likelihood of Gaussians with unequal covariances, relaxed to a semidefinite program (iLA-SDP).

    In turns: covariances of the clusters, from the memberships as relaxed (a sample that is between two clusters counts
    in both), then the memberships of all samples at once by :func:`~clusterplug.functional.likelihood_sdp`, started at
    :func:`~clusterplug.functional.kmeans_sdp`. Stops when no label changes (twice in a row where memberships are
    between 0 and 1); the round of the largest regularized likelihood is kept. Such a likelihood has no upper bound (a
    cluster may collapse on D + 1 samples), so covariances are regularized: a ridge, a cap on the ratio of eigenvalues
    over all clusters, and a share of the pooled covariance for clusters of fewer than D + 1 samples.

    Args:
        n_clusters: K.
        covariance_type: ``'full'``, ``'diag'``, ``'spherical'`` or ``'tied'``: of the estimated covariances.
        covariances: (K, D, D) known covariances; then one program is solved (LA-SDP) and nothing is estimated.
        ridge: Share of the mean variance that is added to the diagonal.
        max_eigenvalue_ratio: Largest to smallest eigenvalue of all covariances; smaller ones are raised.
        max_iter: Rounds at most.
        init: ``'kmeans_sdp'``, ``'kmeans'`` or labels (N,), of the first start.
        n_init: Starts; the second and further ones begin at random labels. The rounds of the start with the largest
            regularized likelihood are kept. With ``covariances`` known one start is enough, and used.
        solver: ``'admm'`` (dense, with a certificate), ``'factorized'`` (no N x N matrix) or ``'auto'``: dense for at
            most 300 samples.
        tol: Accuracy of each program.
        solver_iter: Iterations of each program at most.
        sketch_size: Solve on so many samples drawn at random and label the others by their density; None: on all.
        random_state: Of the draw and the starts: None, an int, a NumPy or a torch generator.
        verbose: 1 prints a line for each round.

    Attributes:
        labels_: (N,). means_: (K, D). covariances_: (K, D, D), regularized. weights_: (K,) shares of the samples.
        objective_: twice the log-likelihood of the partition plus N D log 2 pi, at ``covariances_``.
        duality_gap_: the bound of the last program less its rounded value; 0 to rounding certifies that no labels are
            more likely at these covariances (dense solver; see :func:`~clusterplug.functional.likelihood_sdp`).
        n_iter_: rounds of the start that was kept. converged_: whether the labels came to rest. n_features_in_: D.

    Source: Zhuang, Chen and Yang, "Likelihood adjusted semidefinite programs for clustering heterogeneous data", ICML
    2023, arXiv 2209.15097; no official code; sketch as Zhuang, Chen and Yang, "Sketch-and-lift", AISTATS 2022.
    **Differs**: regularized as above; ADMM or factors instead of SDPNAL+.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = np.concatenate([rng.normal(size=(20, 2)) * [3, 0.1], rng.normal(size=(20, 2)) * 0.2 + [0, 3]])
        >>> labels = LikelihoodSDP(2, random_state=0).fit_predict(X)
        >>> len(set(labels[:20])), len(set(labels[20:])), len(set(labels))
        (1, 1, 2)
    """

    objective_: float
    duality_gap_: float
    n_iter_: int
    converged_: bool

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        covariance_type: str = 'full',
        covariances: Any = None,
        ridge: float = 1e-4,
        max_eigenvalue_ratio: float = 100.0,
        max_iter: int = 20,
        init: Any = 'kmeans_sdp',
        n_init: int = 1,
        solver: str = 'auto',
        tol: float = 1e-3,
        solver_iter: int = 200,
        sketch_size: int | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.n_clusters = n_clusters
        self.covariance_type = covariance_type
        self.covariances = covariances
        self.ridge = ridge
        self.max_eigenvalue_ratio = max_eigenvalue_ratio
        self.max_iter = max_iter
        self.init = init
        self.n_init = n_init
        self.solver = solver
        self.tol = tol
        self.solver_iter = solver_iter
        self.sketch_size = sketch_size
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> 'LikelihoodSDP':
        """Cluster ``X`` (N, D). ``y`` is ignored."""
        self._check_parameters()
        points = read_points(self, X, reset=True)
        n = len(points.tensor)
        if n <= self.n_clusters and not (n == 1 == self.n_clusters):
            raise ValueError(
                f'n_samples={n} should be > n_clusters={self.n_clusters}: a cluster of every sample has no shape'
            )
        x = points.tensor.double()
        generator = make_generator(self.random_state, x.device)
        known = None if self.covariances is None else as_tensor_beside(self.covariances, x, 'covariances')
        if known is not None and known.shape != (self.n_clusters, x.shape[1], x.shape[1]):
            raise ValueError(f'covariances must be ({self.n_clusters}, {x.shape[1]}, {x.shape[1]}), got {known.shape}')
        sample, rows = x, None
        if self.sketch_size is not None and self.sketch_size < n:
            drawn = torch.randperm(n, generator=generator, device=_device(generator, x))
            rows = drawn[: self.sketch_size].to(x.device)
            sample = x[rows]
        center, unit = sample.mean(0), _unit(sample)
        scaled = (sample - center) / unit  # far from the origin, or in odd units, sums of squares lose digits
        labels, parts = self._iterate(scaled, None if known is None else known / unit**2, rows, generator)
        means, covariances, weights = parts
        if rows is not None:
            labels = log_densities((x - center) / unit, means, covariances, weights).argmax(1)
        self.means_ = points.like((means * unit + center).to(points.tensor.dtype))
        self.covariances_ = points.like((covariances * unit**2).to(points.tensor.dtype))
        self.weights_ = points.like(weights.to(points.tensor.dtype))
        self.objective_ -= 2 * len(sample) * x.shape[1] * float(unit.log())
        self.labels_ = points.like(labels)
        self._warn_if_fewer(self.labels_)
        return self

    def predict(self, X: Any) -> Any:
        """Return the cluster of the largest density of each sample, weighted by its share of the fitted ones: (N,)."""
        self._check_fitted()
        points = read_points(self, X, reset=False)
        x = points.tensor.double()
        values = (torch.as_tensor(v, device=x.device).double() for v in (self.means_, self.covariances_, self.weights_))
        return points.like(log_densities(x, *values).argmax(1))

    def _iterate(self, x: Tensor, known: Tensor | None, rows: Tensor | None, generator) -> tuple[Tensor, tuple]:
        """Labels, and means, covariances and shares of the best round of the best start."""
        solver = self.solver
        if solver == 'auto':
            solver = 'admm' if len(x) <= _DENSE_SAMPLES else 'factorized'
        starts = [self._start(x, solver, rows, generator)]
        if known is None and self.n_clusters > 1:
            drawn = (
                torch.randperm(len(x), generator=generator, device=_device(generator, x))
                for _ in range(self.n_init - 1)
            )
            starts += [each.to(x.device) % int(self.n_clusters) for each in drawn]
        results = []
        for labels in starts:
            found = self._iterate_from(x, labels, known, solver, generator)
            results.append((self.objective_, self.duality_gap_, self.n_iter_, self.converged_, found))
        best = max(results, key=lambda each: each[0])
        self.objective_, self.duality_gap_, self.n_iter_, self.converged_, found = best
        return found

    def _iterate_from(
        self, x: Tensor, labels: Tensor, known: Tensor | None, solver: str, generator
    ) -> tuple[Tensor, tuple]:
        """Rounds of covariances and programs, of one start."""
        options = {'solver': solver, 'tol': self.tol, 'num_iters': self._iterations(solver), 'generator': generator}
        best, relaxed, repeated = None, labels, 0
        self.converged_, self.n_iter_, self.duality_gap_ = self.n_clusters == 1, 0, 0.0
        for _ in range(0 if self.n_clusters == 1 else 1 if known is not None else int(self.max_iter)):
            parts = self._gaussians(x, relaxed, known)
            start = None if known is not None else relaxed if solver == 'admm' else labels
            result = likelihood_sdp(x, parts[1], init=start, **options)
            fresh = membership_labels(result.memberships, int(self.n_clusters), generator=generator)
            self.n_iter_ += 1
            parts = self._gaussians(x, fresh, known)
            value = _value(x, fresh, parts)
            self._report(f'round {self.n_iter_}: objective {value:.6g}, gap {float(result.gap):.3g}')
            if best is None or value > best[0]:
                best = value, fresh, parts, float(result.gap)
            # Labels alone may repeat while memberships between 0 and 1, and so the covariances, still change
            repeated = repeated + 1 if bool((fresh == labels).all()) else 0
            exact = float(result.gap) <= self.tol * abs(value)
            self.converged_ = known is not None or repeated >= (1 if exact else 2)
            if self.converged_:
                break
            labels, relaxed = fresh, result.memberships
        if best is None:
            parts = self._gaussians(x, labels, known)
            best = _value(x, labels, parts), labels, parts, 0.0
        self.objective_, self.duality_gap_ = best[0], best[3]
        return best[1], best[2]

    def _start(self, x: Tensor, solver: str, rows: Tensor | None, generator) -> Tensor:
        if self.n_clusters == 1:
            return torch.zeros(len(x), dtype=torch.long, device=x.device)
        if not isinstance(self.init, str):
            labels = torch.as_tensor(self.init, device=x.device)
            labels = labels if rows is None or len(labels) == len(x) else labels[rows]
            good = not labels.is_floating_point() and labels.shape == (len(x),)
            if not good or int(labels.min()) < 0 or int(labels.max()) >= self.n_clusters:
                raise ValueError(f'init must be labels ({len(x)},) in 0 .. {self.n_clusters - 1}, or a name')
            return labels.long()
        if self.init == 'kmeans':
            starts = x.expand(10, *x.shape).contiguous()
            result = kmeans(starts, int(self.n_clusters), generator=generator)
            return result.labels[int(result.inertia.argmin())]
        relaxed = kmeans_sdp(
            x, int(self.n_clusters), solver=solver, tol=self.tol, num_iters=self._iterations(solver),
            generator=generator,
        )  # fmt: skip
        return membership_labels(relaxed.memberships, int(self.n_clusters), generator=generator)

    def _iterations(self, solver: str) -> int:
        return int(self.solver_iter) * (10 if solver == 'factorized' else 1)  # its steps are a hundred times cheaper

    def _gaussians(self, x: Tensor, parts: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        means, covariances, weights = fit_gaussians(
            x, parts, int(self.n_clusters), self.covariance_type, self.ridge, self.max_eigenvalue_ratio
        )
        return means, covariances if known is None else known, weights

    def _check_parameters(self) -> None:
        for name in ('n_clusters', 'max_iter', 'solver_iter', 'n_init'):
            check_parameter(check_count, getattr(self, name), name, 1)
        if self.sketch_size is not None:
            check_parameter(check_count, self.sketch_size, 'sketch_size', int(self.n_clusters) + 1)
        for name, allowed in (('covariance_type', TYPES), ('solver', SOLVERS)):
            check_parameter(check_choice, getattr(self, name), name, allowed)
        if isinstance(self.init, str):
            check_parameter(check_choice, self.init, 'init', ('kmeans_sdp', 'kmeans'))
        check_parameter(check_number, self.ridge, 'ridge', 0)
        check_parameter(check_number, self.max_eigenvalue_ratio, 'max_eigenvalue_ratio', 1)
        check_parameter(check_number, self.tol, 'tol', 1e-12)


def _device(generator: torch.Generator | None, x: Tensor) -> torch.device:
    return x.device if generator is None else generator.device


def _unit(x: Tensor) -> Tensor:
    size = (x - x.mean(0)).square().mean().sqrt()
    return torch.where(size > 0, size, 1.0)


def _value(x: Tensor, labels: Tensor, parts: tuple[Tensor, Tensor, Tensor]) -> float:
    """Twice the log-likelihood of the labels plus n D log 2 pi."""
    means, covariances, weights = parts
    each = log_densities(x, means, covariances, torch.ones_like(weights))
    return float(2 * each.gather(1, labels[:, None]).sum())
