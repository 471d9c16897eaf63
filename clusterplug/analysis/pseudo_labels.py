# SPDX-License-Identifier: Apache-2.0
"""Which predictions of a segmentor become labels: by progressive transport, or by their confidence."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_finite, check_number, check_points
from clusterplug.core.numerics import working_dtype
from clusterplug.functional import KNNGraph, ProgressivePlan, progressive_transport, semantic_transport

# Steps of the neighbors' term on one scan, and the change of a label weight at which they end.
_STEPS, _STEP_TOL = 50, 1e-3


class PointLabels(NamedTuple):
    """Labels of the points of one scan.

    Attributes:
        labels: (N,) int64, -1 = none.
        weights: (N,) how sure: the part of the point that was transported to its class, or its probability.
    """

    labels: Tensor
    weights: Tensor


class ConfidentLabels:
    """Keeps predictions whose probability is at least a threshold.

    Args:
        threshold: In [0, 1]; None: what keeps ``share`` of the points of :meth:`fit`.
        share: In (0, 1].
        per_class: One threshold for each class, that keeps ``share`` of its predictions (Zou et al., "Class-Balanced
            Self-Training", ECCV 2018).

    Example:
        >>> log_p = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]]).log()
        >>> ConfidentLabels(threshold=0.65)(log_p).labels.tolist()
        [0, -1, 1]
    """

    num_neighbors = 0

    def __init__(self, threshold: float | None = None, share: float = 0.5, per_class: bool = False):
        self.threshold = None if threshold is None else check_number(threshold, 'threshold', 0, 1)
        self.share, self.per_class = check_number(share, 'share', above=0, most=1), bool(per_class)
        if per_class and threshold is not None:
            raise ValueError('threshold must be None where per_class=True, which finds one for each class from share')
        self.cuts: Tensor | None = None if threshold is None else torch.tensor(self.threshold)

    def fit(self, scans: Sequence[Tensor], neighbors: Sequence[Tensor] | None = None) -> 'ConfidentLabels':
        """Find the thresholds on the log-probabilities (N, K) of some scans; ``neighbors`` are ignored."""
        if self.threshold is not None:
            return self
        weights, labels = torch.cat(_checked(scans, to_fit=True)).exp().max(1)
        if not self.per_class:
            self.cuts = _cut(weights, self.share)
            return self
        num_classes = scans[0].shape[1]
        cuts = [
            _cut(weights[labels == k], self.share) if bool((labels == k).any()) else torch.tensor(1.0)
            for k in range(num_classes)
        ]
        self.cuts = torch.stack([each.to(weights) for each in cuts])
        return self

    def __call__(self, log_probs: Tensor, neighbors: Tensor | None = None) -> PointLabels:
        """Return the labels of one scan from its log-probabilities (N, K)."""
        (log_probs,) = _checked([log_probs])
        if self.cuts is None:
            raise ValueError('call fit first, or give a threshold: the share alone says no threshold')
        weights, labels = log_probs.exp().max(1)
        cuts = self.cuts.to(weights)
        enough = weights >= (cuts[labels] if self.per_class else cuts)
        return PointLabels(torch.where(enough, labels, -1), weights)


class TransportLabels:
    r"""Keeps what progressive transport labels first, class sizes pulled to the shares that are expected.

    On the points of some scans the scalings :math:`b` of the classes and :math:`e^t` of the rest are solved
    (:func:`~clusterplug.functional.progressive_transport`, with ``strength``
    :func:`~clusterplug.functional.semantic_transport`); every scan then gets its part of that plan,

    .. math:: q_{ik} = \frac{b_k \, e^{s_{ik} / \epsilon}}{\sum_l b_l \, e^{s_{il} / \epsilon} + e^t}, \qquad
              s_i = \log p_i + \lambda \sum_j \tfrac12 (w_{ij} + w_{ji}) \, q_j,

    with w = 1 / m between a point and its m neighbors. A point gets the class of its largest q where that is among the
    ``share`` of all points with the largest.

    Args:
        share: Mass of the plan, and the share of the points that get labels, in (0, 1].
        epsilon: Strength of the entropy term, in the unit of log-probabilities.
        penalty: Pull of the class sizes to ``prior``, >= 0; 0: they follow the predictions, ``math.inf``: they are met.
        prior: (K,) expected share of each class, sum 1; None = uniform, which real scans are not.
        strength: lambda >= 0: what neighbors that all agree add to the log-probability of their class. Beyond about
            3 epsilon several plans are consistent, and that of a scan by itself may be another than that of the fit.
        num_neighbors: m, neighbors that a caller is to give.

    Source: Zhang, Ren and He, "P2OT", ICLR 2024, and "SP2OT", arXiv 2404.03446 (see ``progressive_transport``).
    **Differs from the authors' code**: labels of the points of scans, far more than one solve holds, from scalings of
    some of them; neighbors in space, not in the features of a frozen network; hard labels with an ignored rest.

    Example:
        >>> log_p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.45, 0.55]]).log()
        >>> TransportLabels(share=0.5, penalty=10.0).fit([log_p])(log_p).labels.tolist()  # half of them of class 1
        [0, -1, -1, 1]
    """

    def __init__(
        self,
        share: float = 0.5,
        *,
        epsilon: float = 0.1,
        penalty: float = 1.0,
        prior: Tensor | None = None,
        strength: float = 0.0,
        num_neighbors: int = 8,
    ):
        self.share = check_number(share, 'share', above=0, most=1)
        self.epsilon = check_number(epsilon, 'epsilon', above=0)
        self.penalty = check_number(penalty, 'penalty', 0, finite=False, hint='math.inf means that the sizes are met')
        self.strength = check_number(strength, 'strength', 0)
        self.prior, self.num_neighbors = prior, check_count(num_neighbors, 'num_neighbors', 1) if strength > 0 else 0
        self.scaling: Tensor | None = None

    @torch.no_grad()
    def fit(self, scans: Sequence[Tensor], neighbors: Sequence[Tensor] | None = None) -> 'TransportLabels':
        """Solve the scalings on log-probabilities (N, K) of some scans, with ``strength`` their neighbors (N, m)."""
        scores = torch.cat(_checked(scans, to_fit=True))
        options = dict(epsilon=self.epsilon, mass=self.share, penalty=self.penalty, prior=self.prior)
        if self.strength > 0:
            indices = _stacked(scans, neighbors)
            graph = KNNGraph(indices, torch.full(indices.shape, 1 / indices.shape[1], dtype=scores.dtype))
            # a plan of mass `share` has rows of 1 / N: theirs is the pull of S + S^T
            strength = self.strength * len(scores) / 2
            found = semantic_transport(
                scores, graph=graph, strength=strength, tol=1e-4, max_iters=50, full_output=True, **options
            )
        else:
            found = progressive_transport(scores, full_output=True, **options)
        assert isinstance(found, ProgressivePlan), 'the full output was asked for'
        self.scaling = found.potentials
        if self.prior is not None:  # a class that nobody expects stays empty
            self.scaling = self.scaling.masked_fill(self.prior.to(self.scaling.device) <= 0, -math.inf)
        self.rest = self._rest(self._level(scores, found.plan, neighbors, scans))
        weights = [self._weights(each, near) for each, near in zip(scans, neighbors or [None] * len(scans))]
        self.cut = _cut(torch.cat([each.amax(1) for each in weights]), self.share)
        return self

    @torch.no_grad()
    def __call__(self, log_probs: Tensor, neighbors: Tensor | None = None) -> PointLabels:
        """Return the labels of one scan from its log-probabilities (N, K), with ``strength`` its neighbors (N, m)."""
        (log_probs,) = _checked([log_probs])
        if self.scaling is None:
            raise ValueError('call fit first, with the log-probabilities of some scans')
        if self.strength > 0:
            _stacked([log_probs], None if neighbors is None else [neighbors])
        weights, labels = self._weights(log_probs, neighbors).max(1)
        return PointLabels(torch.where(weights >= self.cut, labels, -1), weights)

    def _level(self, scores: Tensor, plan: Tensor, neighbors, scans) -> Tensor:
        """Return log sum_k b_k exp(s_k / epsilon) of every point, (N,) float64."""
        assert self.scaling is not None, 'solved before'
        moved = scores.double()
        if self.strength > 0:
            moved = moved + self.strength * _mean_of_neighbors(plan.double(), _stacked(scans, neighbors))
        return (moved / self.epsilon + self.scaling).logsumexp(1)

    def _rest(self, level: Tensor) -> Tensor:
        """Return t: the mean of sigmoid(level - t) is the share."""
        if self.share == 1:
            return level.new_tensor(-math.inf)
        low, high = level.min() - 60, level.max() + 60
        for _ in range(100):
            middle = (low + high) / 2
            more = (level - middle).sigmoid().mean() > self.share
            low, high = torch.where(more, middle, low), torch.where(more, high, middle)
        return (low + high) / 2

    def _weights(self, log_probs: Tensor, neighbors: Tensor | None) -> Tensor:
        """Return q of one scan, (N, K) float64."""
        assert self.scaling is not None, 'solved before'
        scores, scaling = log_probs.double(), self.scaling.to(log_probs.device)
        q = self._rows(scores / self.epsilon + scaling)
        if self.strength == 0 or neighbors is None:
            return q
        for _ in range(_STEPS):
            pulled = scores + self.strength * _mean_of_neighbors(q, neighbors)
            before, q = q, self._rows(pulled / self.epsilon + scaling)
            if float((q - before).abs().max()) <= _STEP_TOL:
                break
        return q

    def _rows(self, logits: Tensor) -> Tensor:
        rest = torch.full_like(logits[:, :1], float(self.rest))
        return torch.cat([logits, rest], 1).softmax(1)[:, :-1]


def _mean_of_neighbors(q: Tensor, neighbors: Tensor) -> Tensor:
    """Return (S + S^T) q / 2 with weights 1 / m."""
    mine = q[neighbors].mean(1)
    theirs = torch.zeros_like(q)
    for column in neighbors.unbind(1):
        theirs.index_add_(0, column, q)
    return (mine + theirs / neighbors.shape[1]) / 2


def _checked(scans: Sequence[Tensor], to_fit: bool = False) -> list[Tensor]:
    if len(scans) == 0 or (to_fit and sum(map(len, scans)) == 0):
        raise ValueError('scans must hold at least one scan with points, got none')
    found = []
    for each in scans:
        check_points(each, 'log_probs', allow_empty=True)
        if each.dim() != 2 or each.shape[1] < 2 or each.shape[1] != scans[0].shape[1]:
            raise ValueError(f'log_probs must be (N, K) with the same K >= 2 classes, got {tuple(each.shape)}')
        check_finite(each, 'log_probs')
        if each.numel() and float(each.max()) > 1e-3:
            raise ValueError(f'log_probs must be at most 0, got {float(each.max()):.3g}; take log_softmax(1) of logits')
        found.append(each.detach().to(working_dtype(each.dtype)))
    return found


def _stacked(scans: Sequence[Tensor], neighbors: Sequence[Tensor] | None) -> Tensor:
    """Return the neighbors of all scans as rows of their concatenation."""
    if neighbors is None or len(neighbors) != len(scans):
        raise ValueError('neighbors must be given for every scan where strength > 0: (N, m) int64 rows of the scan')
    first, found = 0, []
    for scan, each in zip(scans, neighbors, strict=True):
        if each.dim() != 2 or len(each) != len(scan) or each.dtype != torch.int64:
            raise ValueError(f'neighbors must be int64 ({len(scan)}, m), got {each.dtype} {tuple(each.shape)}')
        if each.numel() and not (int(each.min()) >= 0 and int(each.max()) < len(scan)):
            raise ValueError(f'neighbors must be rows of the scan, 0 .. {len(scan) - 1}')
        found.append(each + first)
        first += len(scan)
    return torch.cat(found)


def _cut(weights: Tensor, share: float) -> Tensor:
    """Return what the ``share`` of the largest weights reaches."""
    count = max(1, round(share * len(weights)))
    return weights.topk(count).values[-1]
