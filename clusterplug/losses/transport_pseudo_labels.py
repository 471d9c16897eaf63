# SPDX-License-Identifier: Apache-2.0
"""Self-training on soft labels by progressive transport: easy samples first, uneven clusters allowed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_count, check_number
from clusterplug.core.distributed import gather_uneven, rank, world_size
from clusterplug.core.numerics import host_checks_allowed, keep_types, no_autocast, working_dtype
from clusterplug.functional import KNNGraph, ProgressivePlan, progressive_transport, semantic_transport
from clusterplug.memory import FeatureQueue
from clusterplug.registry import MODELS

# On devices nothing is read on the host: so many iterations, from the scalings of the step before.
_DEVICE_ITERS, _DEVICE_OUTER = 40, 20


@MODELS.register_module()
class TransportPseudoLabels(nn.Module):
    r"""Predict from one view the soft label that progressive transport gives to another view of the same sample.

    .. math:: L = \frac1H \sum_h \frac{1}{V - 1} \sum_{u \ne v} \frac1B \sum_b
              - \sum_k Q_u[b, k] \log \mathrm{softmax}(S_v[b] / \tau)_k

    with Q of :func:`~clusterplug.functional.progressive_transport` over the batch (of all ranks) and the logits of past
    batches; all views and heads are one solve. Labels sum to at most 1 a sample: samples that are not selected yet
    weigh little, and the loss grows with ``mass`` (compare runs by loss / mass).

    Schedule ``mass`` with :class:`~clusterplug.hooks.ValueScheduleHook` from 0.1 to 1; the strength of the graph is
    ``strength * (1 - mass)``, so it fades by itself.

    Args:
        num_clusters: K, or one for each head.
        mass: Share of the samples that gets labels, in (0, 1]; an attribute that a schedule changes.
        penalty: Weight of the pull of cluster sizes to ``prior``; smaller for more uneven data.
        epsilon: Strength of the entropy term.
        temperature: tau, divides the scores: 0.1 for cosines, 1 for logits.
        strength: Of the graph at mass 0 (the authors: 1000), used after :meth:`set_graph`; 0 = none.
        buffer_len: Logits of past batches that take part in the solve, of all ranks together; 0 = none.
        prior: Expected shares of the clusters of one head, sum 1; None = uniform.
        tol: Of the solve; on devices other than the CPU a fixed number of iterations runs instead.
        max_iters: Of the solve.
        loss_weight: Factor.

    Shapes:
        ``scores``: V >= 2 views, each a tensor (B, K), or a list of H tensors (B, K_h) for several heads. ``ids`` (B,)
        int64: index of each sample in the data set, for the graph. Returns a 0-dim tensor in fp32 or better; 0 with a
        gradient path for an empty batch. Rows with NaN or inf in a view are ignored.

    State: ``queue`` (a ``FeatureQueue`` of logits and ids, the authors' logits buffer), ``potentials`` (warm starts);
    equal on all ranks. The graph is not saved, set it again before resuming.

    Raises:
        ValueError, TypeError: views or heads of other shapes, an option out of range, ``ids`` missing or unknown.

    Source: Zhang, Ren and He, "P2OT", ICLR 2024, arXiv 2401.09266, and "SP2OT", arXiv 2404.03446; official code
    rhfeiyang/SPPOT (CC BY-NC 4.0; reimplemented). **Differs from the authors' code**: the buffer is next to the batch
    instead of containing it; both views and all heads in one solve; ranks share one buffer.

    Example:
        >>> loss = TransportPseudoLabels(num_clusters=3, buffer_len=8)
        >>> views = [torch.eye(3), torch.eye(3)]
        >>> bool(loss(views) > 0), len(loss.queue)
        (True, 3)
    """

    sync_buffers_exempt = True

    prior: Tensor
    potentials: Tensor
    neighbors: Tensor | None
    similarity: Tensor | None

    def __init__(
        self,
        num_clusters: int | Sequence[int],
        mass: float = 0.1,
        penalty: float = 1.0,
        epsilon: float = 0.1,
        temperature: float = 0.1,
        strength: float = 0.0,
        buffer_len: int = 5120,
        prior: Sequence[float] | None = None,
        tol: float = 1e-6,
        max_iters: int = 1000,
        loss_weight: float = 1.0,
    ):
        super().__init__()
        several = isinstance(num_clusters, Sequence) and not isinstance(num_clusters, str)
        heads: list = list(num_clusters) if isinstance(num_clusters, Sequence) and several else [num_clusters]
        self.num_clusters = [check_count(k, 'num_clusters', 2) for k in heads]
        self.mass = check_number(mass, 'mass', above=0, most=1)
        self.penalty = check_number(penalty, 'penalty', 0, finite=False)
        self.epsilon = check_number(epsilon, 'epsilon', above=0)
        self.temperature = check_number(temperature, 'temperature', above=0)
        self.strength = check_number(strength, 'strength', 0)
        self.tol, self.max_iters = check_number(tol, 'tol', 0), check_count(max_iters, 'max_iters', 1)
        self.loss_weight = check_number(loss_weight, 'loss_weight', 0)
        self.buffer_len = check_count(buffer_len, 'buffer_len')
        most = max(self.num_clusters)
        shares = torch.zeros(len(self.num_clusters), most, dtype=torch.float64)
        for head, count in enumerate(self.num_clusters):
            shares[head, :count] = torch.full((count,), 1 / count) if prior is None else _shares(prior, count)
        self.register_buffer('prior', shares, persistent=False)
        self.register_buffer('potentials', torch.zeros(2, len(self.num_clusters), most, dtype=torch.float64))
        self.queue = FeatureQueue(self.buffer_len, sum(self.num_clusters), ids='int64') if self.buffer_len else None
        self.register_buffer('neighbors', None, persistent=False)
        self.register_buffer('similarity', None, persistent=False)

    def _apply(self, fn, recurse=True):
        """Move with the model; the float64 state stays float64."""
        return super()._apply(keep_types(fn), recurse)

    def set_graph(self, graph: KNNGraph) -> None:
        """Give the similarities of all samples of the data set, lists (M, m) of ``knn_graph``.

        The authors: features of the frozen start, ``knn_graph(x, 20, mode='heat', sigma=2 * x.shape[1] ** 0.5)``.
        """
        if not isinstance(graph, tuple) or len(graph) != 2 or not all(isinstance(each, Tensor) for each in graph):
            raise TypeError(f'graph must be a KNNGraph (indices, weights), got {type(graph).__name__}; call knn_graph')
        indices, weights = graph
        if indices.dim() != 2 or indices.shape != weights.shape or indices.dtype != torch.int64:
            raise ValueError(f'graph must hold int64 indices and weights (M, m), got {tuple(indices.shape)}')
        self.neighbors, self.similarity = indices.to(self.prior.device), weights.to(self.prior.device)

    def forward(self, scores: Sequence[Tensor | Sequence[Tensor]], ids: Tensor | None = None) -> Tensor:
        """Loss of the scores of all views."""
        views = [list(each) if isinstance(each, Sequence) else [each] for each in scores]
        self._check(views, ids)
        first = views[0][0]
        dtype = working_dtype(*(each.dtype for view in views for each in view))
        with no_autocast(first):
            logits = torch.stack([torch.cat([each.to(dtype) for each in view], 1) for view in views]) / self.temperature
            finite = torch.isfinite(logits).all(-1).all(0)
            logits = torch.where(finite.unsqueeze(-1), logits, 0.0)
            labels = self.labels(logits.detach(), finite, ids)
            loss = self._cross_entropy(logits, labels, finite)
        if self.training and self.queue is not None:
            known = torch.full_like(finite, -1, dtype=torch.int64) if ids is None else ids.to(finite.device)
            last = logits[-1].detach().masked_fill(~finite.unsqueeze(-1), torch.nan)
            self.queue.push(last, ids=known)
        return self.loss_weight * loss

    @torch.no_grad()
    def labels(self, logits: Tensor, finite: Tensor, ids: Tensor | None = None) -> Tensor:
        """Return soft labels (V, H, B, max K) of logits (V, B, sum K), solved with the buffer and all ranks."""
        count, own = logits.shape[1], None
        mask, known = finite, ids if ids is not None else torch.full_like(finite, -1, dtype=torch.int64)
        if world_size() > 1:
            mine = torch.full_like(known, rank())
            logits = gather_uneven(logits.transpose(0, 1)).transpose(0, 1)
            mask, known, owner = gather_uneven(finite.to(torch.uint8)).bool(), gather_uneven(known), gather_uneven(mine)
            own = owner == rank()
        new = logits.shape[1]
        if self.queue is not None:
            rows, valid, extra = self.queue.read()
            logits = torch.cat([rows.to(logits.dtype).expand(len(logits), -1, -1), logits], 1)
            mask, known = torch.cat([valid, mask]), torch.cat([extra['ids'], known])
        if logits.shape[1] == 0:
            return logits.new_zeros(len(logits), len(self.num_clusters), 0, max(self.num_clusters))
        plan = self._solve(self._by_head(logits), mask, known)[:, :, plan_rows(logits.shape[1], new)]
        return plan if own is None else plan[:, :, own.nonzero().flatten()] if count else plan[:, :, :0]

    def _solve(self, scores: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        """Return the plan (V, H, R, K) of log-probabilities."""
        shape = scores.shape[:2]
        start = self.potentials if shape == self.potentials.shape[:2] else None
        host = host_checks_allowed(scores)
        options: dict[str, Any] = {
            'epsilon': self.epsilon, 'mass': check_number(self.mass, 'mass', above=0, most=1), 'penalty': self.penalty,
            'prior': self.prior.expand(*shape, -1), 'mask': mask.expand(*shape, -1), 'init': start, 'full_output': True,
        }  # fmt: skip
        strength = self.strength * (1 - self.mass)
        if strength > 0 and self.neighbors is not None:
            steps: dict[str, Any] = {'tol': self.tol if host else 0.0, 'max_iters': 100 if host else _DEVICE_OUTER}
            found = semantic_transport(scores, graph=self._graph(ids, mask), strength=strength, **options, **steps)
        else:
            steps = {'tol': self.tol if host else 0.0, 'max_iters': self.max_iters if host else _DEVICE_ITERS}
            found = progressive_transport(scores, **options, **steps)
        assert isinstance(found, ProgressivePlan), 'the full output was asked for'
        if self.training and start is not None:
            self.potentials.copy_(torch.nan_to_num(found.potentials, 0.0, 0.0, 0.0))
        return found.plan

    def _graph(self, ids: Tensor, mask: Tensor) -> KNNGraph:
        """Return the part of the graph between the rows at hand."""
        assert self.neighbors is not None, 'set_graph came before'
        assert self.similarity is not None, 'set_graph came before'
        size, rows = len(self.neighbors), torch.arange(len(ids), device=ids.device)
        usable = mask & (ids >= 0)
        place = torch.full((size + 1,), -1, dtype=torch.int64, device=ids.device)
        place.scatter_reduce_(0, torch.where(usable, ids, size), rows, 'amax')  # the newest row of a sample
        place[size] = -1
        safe = ids.clamp(0, size - 1)
        local = place[self.neighbors[safe]]
        weights = self.similarity[safe] * ((local >= 0) & usable.unsqueeze(-1))
        return KNNGraph(local.clamp_min(0), weights)

    def _by_head(self, logits: Tensor) -> Tensor:
        """Return log-probabilities (V, H, R, max K) of logits (V, R, sum K); columns that are not there hold 0."""
        most = max(self.num_clusters)
        parts = [part.log_softmax(-1) for part in logits.split(self.num_clusters, -1)]
        parts = [nn.functional.pad(part, (0, most - part.shape[-1])) for part in parts]
        return torch.stack(parts, 1)

    def _cross_entropy(self, logits: Tensor, labels: Tensor, finite: Tensor) -> Tensor:
        predicted = self._by_head(logits)
        others = labels.sum(0, keepdim=True) - labels  # of all other views
        each = -(others * predicted).sum(-1) * finite
        count = max(1, logits.shape[1])
        total = each.sum() / (count * len(self.num_clusters) * (len(logits) - 1))
        return total + 0.0 * logits.sum() if logits.shape[1] == 0 else total

    def _check(self, views: list[list[Tensor]], ids: Tensor | None) -> None:
        if len(views) < 2:
            raise ValueError(f'scores must be of at least 2 views, got {len(views)}; give a list of tensors (B, K)')
        count = len(views[0][0]) if views[0] else 0
        for number, view in enumerate(views):
            wanted = [(count, k) for k in self.num_clusters]
            if any(not isinstance(each, Tensor) or not each.is_floating_point() for each in view):
                raise TypeError(f'scores of view {number} must be floating tensors')
            if [tuple(each.shape) for each in view] != wanted:
                got = [tuple(each.shape) for each in view]
                raise ValueError(
                    f'scores of view {number} must have shapes {wanted}, got {got}; set num_clusters to fit'
                )
        if self.strength == 0 or self.neighbors is None:
            return
        if not isinstance(ids, Tensor) or ids.shape != (count,) or ids.dtype != torch.int64:
            raise ValueError(f'ids must be int64 indices ({count},) of the samples where a graph is set')
        if host_checks_allowed(ids) and count and not bool(((ids >= 0) & (ids < len(self.neighbors))).all()):
            raise ValueError(
                f'ids must lie in 0 .. {len(self.neighbors) - 1}, got {int(ids.min())} .. {int(ids.max())}'
            )


def plan_rows(total: int, new: int) -> slice:
    """Return the rows of the batch behind those of the buffer."""
    return slice(total - new, total)


def _shares(prior: Sequence[float], count: int) -> Tensor:
    shares = torch.as_tensor(prior, dtype=torch.float64)
    if shares.shape != (count,) or not bool((shares >= 0).all()) or abs(float(shares.sum()) - 1) > 1e-3:
        raise ValueError(f'prior must hold {count} shares that sum to 1, got {list(prior)}')
    return shares
