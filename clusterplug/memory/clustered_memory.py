# SPDX-License-Identifier: Apache-2.0
"""A queue of embeddings that is split into clusters while it moves, and looked up inside them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_count, check_number
from clusterplug.core.distributed import gather_uneven
from clusterplug.core.numerics import exact_products, host_checks_allowed, keep_types, unit_rows
from clusterplug.functional import kmeans, sinkhorn_log_plan
from clusterplug.memory.feature_queue import FeatureQueue
from clusterplug.registry import MODELS

_LARGEST = 1e6  # of an entry: sums of clusters add and subtract rows, so that one huge row would leave its rounding


class Neighbors(NamedTuple):
    """What :meth:`ClusteredMemory.query` finds.

    Attributes:
        rows: (B, k, D) stored rows, the most similar first; zeros where not valid.
        indices: (B, k) int64, their slots in the memory.
        valid: (B, k) bool; False where the memory holds fewer than k rows, and for queries that are not finite.
    """

    rows: Tensor
    indices: Tensor
    valid: Tensor


@MODELS.register_module()
class ClusteredMemory(nn.Module):
    r"""The last ``length`` embeddings of all ranks, in K clusters whose shares stay equal (DyCE).

    - :meth:`push` puts rows in the place of the oldest ones. Until the memory is full for the first time they have no
      cluster; then k-means on the normalized rows makes K prototypes. From there on the rows of a push are assigned
      together, by the balanced transport plan of lowest cost to the **nearest** prototypes

      .. math:: \min_P \sum_{ik} P_{ik} \lVert \hat z_i - \hat c_k \rVert - \epsilon H(P), \quad
                P 1 = 1 / N, \quad P^\top 1 = 1 / K,

      and every prototype becomes m times itself plus 1 - m times the mean of all stored rows of its cluster. An empty
      cluster keeps its prototype.
    - :meth:`query` returns, for each row, the most similar stored rows **of its nearest prototype's cluster**, or of
      the whole memory where that holds fewer than k. Query before you push, or every row finds itself.

    All state is in buffers (saved, resumed, moved with the model, fp32 and float64 whatever the model is cast to) and
    equal on all ranks. A push costs its own rows: sums of clusters grow by new rows and shrink by overwritten ones.

    Args:
        length: L, rows kept.
        embed_dims: D.
        num_clusters: K, at most L.
        epsilon: entropic regularization of the assignment, in units of distances between unit vectors (0 to 2).
        num_iters: Sinkhorn iterations.
        momentum: m, share of the old prototype that is kept.
        seed: of the k-means.

    Attributes:
        queue: :class:`~clusterplug.memory.FeatureQueue` with rows (as pushed, not normalized) and ``labels`` (-1 =
            none).
        prototypes: (K, D); of no use before :attr:`clustered`.
        sums, counts: (K, D) float64 and (K,) of the stored rows of each cluster.

    Rows with NaN, infinity or entries beyond 1e6 take their slots as invalid zeros: they are in no cluster and are
    never found. Rows of zeros are stored, without a cluster of their own choice.

    Raises:
        ValueError, TypeError: sizes that do not fit, ``num_clusters`` above ``length``, k above ``length``.

    Source: Poulakakis-Daktylidis, Jamali-Rad, "BECLR: Batch Enhanced Contrastive Few-Shot Learning", ICLR 2024, arXiv
    2402.02444, section 4.1; official code stypoumic/BECLR (Apache-2.0).

    **Differs from the authors' code**: theirs puts +distance into the exponential, which assigns the *farthest*
    prototypes; takes positions inside a cluster for slots of the memory, which returns unrelated rows; enqueues before
    it looks up, so that rows find themselves; divides prototypes by the counts of other clusters once one is empty;
    drops rows at the end of the ring; loops over samples and copies the memory to the CPU; and is not equal on ranks.

    Example:
        >>> memory = ClusteredMemory(6, 2, 2)
        >>> memory.push(torch.tensor([[1.0, 0.0], [1, 0.1], [1, 0.2], [0, 1.0], [0.1, 1], [0.2, 1]]))
        >>> rows, indices, valid = memory.query(torch.tensor([[0.0, 2.0]]), 2)
        >>> indices.tolist(), valid.tolist()
        ([[3, 4]], [[True, True]])
    """

    # every rank holds the same values by construction (see compat.sync_buffers)
    sync_buffers_exempt = True

    prototypes: Tensor
    sums: Tensor
    counts: Tensor
    has_clusters: Tensor

    def __init__(
        self,
        length: int,
        embed_dims: int,
        num_clusters: int,
        epsilon: float = 0.05,
        num_iters: int = 10,
        momentum: float = 0.0,
        seed: int = 0,
    ):
        super().__init__()
        self.queue = FeatureQueue(length, embed_dims, labels=torch.int64)
        self.length, self.embed_dims = self.queue.length, self.queue.embed_dims
        self.num_clusters = check_count(num_clusters, 'num_clusters', 1)
        if self.num_clusters > self.length:
            raise ValueError(f'num_clusters must be at most length, {self.length}, got {num_clusters}')
        self.epsilon = check_number(epsilon, 'epsilon', above=0)
        self.num_iters = check_count(num_iters, 'num_iters', 1)
        self.momentum = check_number(momentum, 'momentum', 0, 1)
        self.seed = int(seed)
        self.labels.fill_(-1)
        self.register_buffer('prototypes', torch.zeros(self.num_clusters, self.embed_dims))
        self.register_buffer('sums', torch.zeros(self.num_clusters, self.embed_dims, dtype=torch.float64))
        self.register_buffer('counts', torch.zeros(self.num_clusters, dtype=torch.int64))
        self.register_buffer('has_clusters', torch.zeros((), dtype=torch.bool))
        self._clustered = False

    @property
    def clustered(self) -> bool:
        """Whether there are prototypes; known on the host."""
        return self._clustered

    @property
    def labels(self) -> Tensor:
        """(L,) int64 cluster of every slot, -1 = none."""
        return self.queue.get_buffer('extra_labels')

    @torch.no_grad()
    def push(self, x: Tensor) -> None:
        """Store rows (N, D) of this rank, any number of them, and those of all other ranks."""
        self._check(x)
        rows = gather_uneven(x.detach().to(self.queue.rows.dtype))[-self.length :]
        huge = ~(rows.abs().amax(1) <= _LARGEST) if len(rows) else rows.new_zeros(0, dtype=torch.bool)
        rows = torch.where(huge[:, None], torch.nan, rows)
        labels = torch.full((len(rows),), -1, device=rows.device)
        if self._clustered and len(rows):
            labels = self._assign(rows, ~huge)
            self._replace(rows, labels)
        self._store(rows, labels)
        if self._clustered:
            self._move_prototypes()
        elif self.queue.full:
            self.recluster()

    @torch.no_grad()
    def query(self, x: Tensor, k: int) -> Neighbors:
        """Return the ``k`` nearest stored rows of each row of ``x`` (B, D), by cosine, inside its cluster."""
        self._check(x)
        k = check_count(k, 'k', 1, self.length)
        with exact_products(x):
            finite = torch.isfinite(x).all(1)
            queries = unit_rows(torch.where(finite[:, None], x, 0.0).to(self.queue.rows.dtype))
            rows, stored, extra = self.queue.read()
            units, labels = unit_rows(rows), torch.where(stored, extra['labels'], -1)
            home = (queries @ unit_rows(self.prototypes).mT).argmax(1) if self._clustered else None
            if home is not None and host_checks_allowed(x):
                best, indices = self._nearest_by_cluster(queries, home, units, labels, stored, k)
            else:  # on a device one product, as sizes of clusters are not known to the host
                allowed = stored.expand(len(x), -1)
                if home is not None:
                    members = labels == home[:, None]
                    allowed = torch.where(members.sum(1, keepdim=True) >= k, members, allowed)
                best, indices = (queries @ units.mT).masked_fill_(~allowed, -torch.inf).topk(k, dim=1)
            valid = (best > -torch.inf) & finite[:, None]
            found = torch.where(valid[..., None], rows[indices], 0.0)
        return Neighbors(found.to(x.dtype), indices, valid)

    def _nearest_by_cluster(
        self, queries: Tensor, home: Tensor, units: Tensor, labels: Tensor, stored: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        """Cosines and rows (B, k) of the nearest: each query against its own cluster alone, one product a cluster."""
        best = queries.new_full((len(queries), k), -torch.inf)
        indices = torch.zeros(len(queries), k, dtype=torch.int64)
        members = labels.argsort(stable=True).split([int((labels < 0).sum()), *self._sizes(labels)])[1:]
        groups = home.argsort(stable=True).split(self._sizes(home))
        everyone = stored.nonzero()[:, 0]
        for own, asking in zip(members, groups, strict=True):
            if len(asking):
                among = own if len(own) >= k else everyone
                top = (queries[asking] @ units[among].mT).topk(min(k, len(among)), dim=1)
                best[asking, : top.values.shape[1]], found = top.values, among[top.indices]
                indices[asking, : found.shape[1]] = found
        return best, indices

    def _sizes(self, labels: Tensor) -> list[int]:
        return torch.bincount(labels[labels >= 0], minlength=self.num_clusters).tolist()

    @torch.no_grad()
    def recluster(self, num_iters: int = 50) -> None:
        """Make new prototypes by k-means on all stored rows, from the present ones where there are some.

        Clusters that k-means leaves empty keep their prototype. Call it every so many epochs (60 in the paper), on all
        ranks alike; the first time happens by itself when the memory is full.

        Raises:
            ValueError: The memory holds fewer valid rows than clusters.
        """
        rows, stored, _ = self.queue.read()
        if int(stored.sum()) < self.num_clusters:  # on the host: once in many epochs
            raise ValueError(
                f'the memory holds {int(stored.sum())} finite rows, too few for {self.num_clusters} clusters; push '
                f'more, or lower num_clusters'
            )
        units = unit_rows(rows)
        generator = torch.Generator(units.device).manual_seed(self.seed)
        start = {'init': unit_rows(self.prototypes)} if self._clustered else {}
        result = kmeans(
            units, self.num_clusters, mask=stored, num_iters=num_iters, tol=1e-6, generator=generator, **start
        )
        labels = torch.where(stored, result.labels, -1)
        self.labels.copy_(labels)
        self.sums.zero_()
        self.counts.zero_()
        self._count(rows, labels, 1)
        self.prototypes.copy_(result.centers)
        self._clustered = True
        self.has_clusters.fill_(True)
        self._move_prototypes(0.0)

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f'x must be a floating tensor (N, {self.embed_dims}), got {got}')
        if x.dim() != 2 or x.shape[1] != self.embed_dims:
            raise ValueError(f'x must have shape (N, {self.embed_dims}), got {tuple(x.shape)}; set embed_dims to fit')

    def _assign(self, rows: Tensor, usable: Tensor) -> Tensor:
        """Clusters (N,) of new rows in equal shares, -1 for unusable rows."""
        with exact_products(rows):
            units, prototypes = unit_rows(torch.where(usable[:, None], rows, 0.0)), unit_rows(self.prototypes)
            squared = (2 - 2 * (units @ prototypes.mT)).clamp(min=0)
            plan = sinkhorn_log_plan(-squared.sqrt(), epsilon=self.epsilon, num_iters=self.num_iters, mask=usable)
        return torch.where(usable, plan.argmax(1), -1)

    def _replace(self, rows: Tensor, labels: Tensor) -> None:
        """Count new rows in, and those that they overwrite out."""
        slots = (self.queue._count + torch.arange(len(rows), device=rows.device)) % self.length
        self._count(self.queue.rows[slots], self.labels[slots], -1)
        self._count(rows, labels, 1)

    def _count(self, rows: Tensor, labels: Tensor, sign: int) -> None:
        # A product and not index_add_, whose order differs: ranks must not drift apart.
        members = (labels[:, None] == torch.arange(self.num_clusters, device=labels.device)).double()
        kept = torch.where(labels[:, None] >= 0, rows, 0.0).double()
        self.sums.add_(members.mT @ kept, alpha=sign)
        self.counts.add_(members.sum(0).long(), alpha=sign)

    def _store(self, rows: Tensor, labels: Tensor) -> None:
        """Write rows that are equal on all ranks already."""
        self.queue.write(rows, labels=labels)

    def _move_prototypes(self, momentum: float | None = None) -> None:
        momentum = self.momentum if momentum is None else momentum
        means = (self.sums / self.counts.clamp(min=1)[:, None]).to(self.prototypes.dtype)
        moved = self.prototypes.lerp(means, 1 - momentum)
        self.prototypes.copy_(torch.where(self.counts[:, None] > 0, moved, self.prototypes))

    def _apply(self, fn, recurse=True):
        """Move to a device with the model, but keep the types."""
        return super()._apply(keep_types(fn), recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._clustered = bool(self.has_clusters)
