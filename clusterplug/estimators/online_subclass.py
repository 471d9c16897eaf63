# SPDX-License-Identifier: Apache-2.0
"""Subclasses within labeled classes, found on line: the memory of PointClusterLoss without a network."""

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_count, check_number
from clusterplug.estimators._arrays import Points, check_parameter, make_generator, read_points
from clusterplug.estimators._base import Clusterer
from clusterplug.losses.point_cluster import PointClusterLoss

_STATE = ('center_store', 'queue_store', 'num_seeded', 'num_enqueued', 'sizes', 'step')


class OnlineSubclassClusterer(Clusterer):
    """Split each of C classes into K subclasses, batch after batch.

    In every batch, samples of each class are drawn, assigned to the centers of their class by balanced optimal
    transport, and the centers follow their means by momentum, as in
    :class:`~clusterplug.losses.PointClusterLoss`. Features are compared by their directions (cosine).

    Args:
        n_clusters: K, one for all classes or one for each.
        momentum: share of the old center that is kept in a step.
        sinkhorn_eps: entropic regularization of the assignment.
        samples_per_class: at most so many of a class are used in a step; default the larger of 256 and 4 K.
        batch_size: samples of a step in ``fit``.
        max_iter: passes over X in ``fit``.
        random_state: of the order in ``fit``: None, an int, a NumPy or a torch generator. ``partial_fit`` is
            deterministic.
        verbose: 1 prints a line for each pass.

    Attributes:
        classes_: (C,) labels, sorted. cluster_centers_: (C, K, D) unit rows, 0 where a class has none.
        n_seeded_: (C,) centers in use. subclass_sizes_: (C, K) running mean of samples per step.
        labels_: (N,) subclass of the last data of ``fit``, see :meth:`predict`. n_steps_: steps done.
        n_features_in_: D.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> kind = rng.integers(0, 4, 400)
        >>> X, y = np.eye(4)[kind] + 0.01 * rng.standard_normal((400, 4)), kind // 2
        >>> model = OnlineSubclassClusterer(2, momentum=0.5, random_state=0).fit(X, y)
        >>> [len(set(model.labels_[kind == k])) for k in range(4)], len(set(model.labels_))
        ([1, 1, 1, 1], 4)
    """

    n_features_in_: int

    def __init__(
        self,
        n_clusters: int | Sequence[int] = 10,
        *,
        momentum: float = 0.9,
        sinkhorn_eps: float = 0.04,
        samples_per_class: int | None = None,
        batch_size: int = 4096,
        max_iter: int = 10,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.n_clusters = n_clusters
        self.momentum = momentum
        self.sinkhorn_eps = sinkhorn_eps
        self.samples_per_class = samples_per_class
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> 'OnlineSubclassClusterer':
        """Learn from the start, in ``max_iter`` passes of random batches.

        Args:
            X: (N, D) numbers, array or tensor.
            y: (N,) class of each sample, integers or (arrays only) strings.

        Raises:
            ValueError: bad arguments, NaN or infinity, lengths that differ.
        """
        check_parameter(check_count, self.batch_size, 'batch_size', 1)
        check_parameter(check_count, self.max_iter, 'max_iter', 1)
        points = read_points(self, X, reset=True)
        self._start(y, points)
        x, target = points.tensor, self._targets(y, points)
        generator = make_generator(self.random_state, x.device)
        for number in range(self.max_iter):
            for rows in torch.randperm(len(x), generator=generator, device=x.device).split(self.batch_size):
                self._step(x[rows], target[rows])
            self._report(f'pass {number + 1} of {self.max_iter}')
        self._finish(points)
        self.labels_ = self.predict(X, y)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> 'OnlineSubclassClusterer':
        """One step on one batch.

        Args:
            X: (N, D).
            y: (N,) classes.
            classes: all classes there will be, at the first call; default those in ``y``.

        Raises:
            ValueError: as ``fit``; a class that was not among ``classes``.
        """
        first = not hasattr(self, 'classes_')
        points = read_points(self, X, reset=first)
        if first:
            self._start(y if classes is None else classes, points)
        self._step(points.tensor, self._targets(y, points))
        self._finish(points)
        return self

    def predict(self, X: Any, y: Any = None) -> Any:
        """Nearest subclass of each sample.

        Args:
            X: (N, D).
            y: (N,) classes; then the subclass is chosen within the class, else among all.

        Returns:
            (N,) int64 ``c * K + k``: subclass k of the class ``classes_[c]``, K the largest number of clusters; -1
            where the class of a sample has no center yet.
        """
        self._check_fitted()
        points = read_points(self, X, reset=False)
        loss = self._loss(points.tensor.device)
        centers, unused = loss.memory.centers, loss.memory.layout.without_dummy(loss.memory.unused)
        num_clusters = centers.shape[1]
        x = F.normalize(points.tensor.float(), dim=1)
        target = None if y is None else self._targets(y, points)
        found = []
        for start in range(0, len(x), 65536):
            rows = slice(start, start + 65536)
            cosines = torch.einsum('nd,ckd->nck', x[rows], centers).masked_fill_(unused, -2)
            if target is None:
                best, ids = cosines.flatten(1).max(1)
            else:
                best, ids = cosines[torch.arange(len(cosines), device=x.device), target[rows]].max(1)
                ids = ids + target[rows] * num_clusters
            found.append(torch.where(best > -2, ids, -1))
        return points.like(torch.cat(found))

    def fit_predict(self, X: Any, y: Any) -> Any:
        """``fit(X, y).labels_``."""
        return self.fit(X, y).labels_

    def _start(self, y: Any, points: Points) -> None:
        for name in [name for name in vars(self) if name.endswith('_') and name != 'n_features_in_']:
            delattr(self, name)
        values = _class_values(y)
        if values.ndim != 1 or not len(values) or values.dtype.kind not in 'iubUS':
            raise ValueError(
                f'y must be 1D, not empty, of integers or strings; got shape {values.shape} of {values.dtype}'
            )
        self.classes_ = np.unique(values)
        self._module = self._build(points.tensor.device)

    def _build(self, device: torch.device) -> PointClusterLoss:
        given = self.n_clusters
        clusters = int(given) if isinstance(given, int | numbers.Integral) else [int(k) for k in given]
        most = clusters if isinstance(clusters, int) else max(clusters, default=1)
        if self.samples_per_class is not None:
            check_parameter(check_count, self.samples_per_class, 'samples_per_class', 1)
        check_parameter(check_number, self.sinkhorn_eps, 'sinkhorn_eps', 1e-3, 1e4)
        with device:  # not on torch's default device, whatever that is
            return PointClusterLoss(
                len(self.classes_), num_clusters=clusters, embed_dims=self.n_features_in_, momentum=self.momentum,
                queue_len=1, assigner=dict(epsilon=self.sinkhorn_eps), sampler=dict(enqueue_per_step=1),
                contrast=dict(terms=('center',)), ignore_index=-1, projector=nn.Identity(),
                num_anchors_per_class=int(self.samples_per_class or max(256, 4 * most)),
            ).to(device)  # fmt: skip

    def _loss(self, device: torch.device) -> PointClusterLoss:
        """The module; built anew from the attributes after loading, unpickling or cloning."""
        if getattr(self, '_module', None) is None:
            self._module = self._build(device)
            state = {name: torch.as_tensor(getattr(self, f'memory_{name}_'), device=device) for name in _STATE}
            self._module.memory.load_state_dict(state)
        return self._module.to(device)

    def __getstate__(self):
        state = dict(vars(self))
        state.pop('_module', None)
        return state

    def _targets(self, y: Any, points: Points) -> Tensor:
        """(N,) int64 index of each class."""
        values = _class_values(y)
        if values.shape != (len(points.tensor),):
            raise ValueError(f'y must have shape ({len(points.tensor)},), got {values.shape}')
        place = np.searchsorted(self.classes_, values).clip(max=len(self.classes_) - 1)
        unknown = np.unique(values[self.classes_[place] != values])
        if len(unknown):
            raise ValueError(
                f'y holds classes {unknown[:5].tolist()} that are not among {self.classes_[:20].tolist()}; name all '
                f'classes at the first partial_fit'
            )
        return torch.from_numpy(place.astype(np.int64)).to(points.tensor.device)

    @torch.no_grad()
    def _step(self, x: Tensor, target: Tensor) -> None:
        self._loss(x.device).train()(x.float(), target)

    def _finish(self, points: Points) -> None:
        memory = self._loss(points.tensor.device).memory
        for name, value in memory.state_dict().items():
            setattr(self, f'memory_{name}_', value.cpu().numpy().copy())
        self.cluster_centers_ = points.like(memory.centers.clone())
        self.n_seeded_ = points.like(memory.num_seeded.clone())
        self.subclass_sizes_ = points.like(memory.layout.without_dummy(memory.sizes).clone())
        self.n_steps_ = int(memory.step)


def _class_values(y: Any) -> np.ndarray:
    """Return the classes as an array; a data frame's strings come as objects and become strings."""
    values = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if values.dtype.kind in 'OT' and all(isinstance(each, str) for each in values.flat):
        values = values.astype(str)
    return values
