# SPDX-License-Identifier: Apache-2.0
"""Centers and ring-buffer queues of the subclasses of every class."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import whole_number
from clusterplug.core.constants import arange
from clusterplug.core.numerics import keep_fp32
from clusterplug.core.padded_classes import PaddedClasses
from clusterplug.registry import MODELS


def clusters_per_class(num_clusters: int | Sequence[int] | dict, num_classes: int) -> list[int]:
    """One number of clusters for each class, from an int, a sequence of ``num_classes`` or ``{class: number}``.

    A dict names exceptions; its key ``'default'`` (40 if absent) is for all other classes.
    """
    if isinstance(num_clusters, dict):
        bad = [key for key in num_clusters if key != 'default' and key not in range(num_classes)]
        if bad:
            raise ValueError(f"num_clusters has keys {bad}; allowed are 'default' and classes 0 to {num_classes - 1}")
        numbers: list[Any] = [num_clusters.get(c, num_clusters.get('default', 40)) for c in range(num_classes)]
    elif isinstance(num_clusters, int | Integral):
        numbers = [num_clusters] * num_classes
    else:
        numbers = list(num_clusters)
    if len(numbers) != num_classes:
        raise ValueError(
            f'num_clusters must be one int or one per class ({num_classes} classes), got {len(numbers)} numbers'
        )
    if any(isinstance(k, bool) or not isinstance(k, Integral) or k < 1 for k in numbers):
        raise ValueError(f'num_clusters must be integers of at least 1, got {numbers}')
    return [int(k) for k in numbers]


@MODELS.register_module()
class SubclassMemory(nn.Module):
    """Momentum centers and a queue of recent embeddings for every subclass.

    All state is in buffers, so it is saved, resumed, moved and copied with the model, and it is the same on every rank
    as long as every rank passes the same (gathered) embeddings to :meth:`update`.

    Every class has one row more than clusters, the dummy of :class:`~clusterplug.core.padded_classes.PaddedClasses`
    (``layout``): never in use, and takes in whatever belongs to no subclass. The id of a subclass over all classes is
    ``c * (K + 1) + k``, with ``K`` the largest number of clusters of any class.

    Args:
        num_classes: C.
        num_clusters: clusters per class: int, one int per class, or ``{class: number, 'default': number}``.
        embed_dims: D.
        queue_len: slots per subclass (T).
        enqueue_per_step: at most so many embeddings of a subclass enter its queue in one step.
        seeds_per_step: at most so many centers of a class are seeded in one step; default a quarter of K, rounded up.

    Attributes:
        center_store: (C, K + 1, D) fp32 unit rows, 0 where not seeded.
        queue_store: (C, K + 1, T, D) fp32 unit rows, 0 where not filled.
        num_seeded: (C,) int64, the first so many centers of a class are in use.
        num_enqueued: (C, K + 1) int64, embeddings that ever entered a ring; modulo T the next slot.
        sizes: (C, K + 1) fp32, running mean (0.99 of the old value kept) of the anchors per step of each subclass.
        step: int64 counter of updates; all random choices derive from it, so a resumed run repeats them.

    Seeding: a class has no centers until it is first seen. Then, in every step in which it is present, up to
    ``seeds_per_step`` anchors become centers, each drawn with a probability proportional to its squared distance to
    the centers that exist (uniformly while there are none), until all K exist: the rounds of k-means|| (Bahmani et
    al., "Scalable k-means++", VLDB 2012), here spread over the first few sights of the class. One k-means++ center
    after the other would need K dependent launches; and seeds from several scenes cover the class better.

    Source: Feng et al., ICCV 2023, memory and momentum update (step 4), official code FengZicai/Cluster3DSeg (MIT).

    Differs from the authors' code: centers are seeded from data instead of N(0, 1); the queue starts empty with a fill
    count instead of random vectors that serve as positives; stored rows are rows (theirs reshapes (n, D) as (D, n), so
    that every stored vector mixes many points), of the subclass itself (theirs takes the first n columns), for every
    subclass (theirs skips id 0), at modulo positions (theirs overwrites the end and restarts); everything is a buffer.

    Example:
        >>> memory = SubclassMemory(num_classes=2, num_clusters=3, embed_dims=4)
        >>> memory.centers.shape, memory.queue.shape
        (torch.Size([2, 3, 4]), torch.Size([2, 3, 50, 4]))
    """

    # every rank holds the same values by construction; averaging them would only add rounding (see compat)
    sync_buffers_exempt = True

    center_store: Tensor
    queue_store: Tensor
    num_seeded: Tensor
    num_enqueued: Tensor
    sizes: Tensor
    step: Tensor
    clusters_of: Tensor
    cluster_index: Tensor
    member_of: Tensor
    id_offset: Tensor

    def __init__(
        self,
        num_classes: int,
        num_clusters: int | Sequence[int] | dict = 40,
        embed_dims: int = 64,
        queue_len: int = 50,
        enqueue_per_step: int = 10,
        seeds_per_step: int | None = None,
    ):
        super().__init__()
        num_classes, embed_dims = whole_number('num_classes', num_classes), whole_number('embed_dims', embed_dims)
        queue_len = whole_number('queue_len', queue_len)
        enqueue_per_step = whole_number('enqueue_per_step', enqueue_per_step)
        seeds_per_step = None if seeds_per_step is None else whole_number('seeds_per_step', seeds_per_step)
        numbers = clusters_per_class(num_clusters, num_classes)
        most = max(numbers)
        self.num_classes, self.num_clusters, self.embed_dims = num_classes, most, embed_dims
        self.queue_len = queue_len
        self.enqueue_per_step = min(enqueue_per_step, queue_len)
        self.seeds_per_step = min(seeds_per_step or -(-most // 4), most)
        self.layout = PaddedClasses(num_classes, most)
        rows = self.layout.shape
        self.register_buffer('center_store', torch.zeros(*rows, embed_dims, dtype=torch.float32))
        self.register_buffer('queue_store', torch.zeros(*rows, queue_len, embed_dims, dtype=torch.float32))
        self.register_buffer('num_seeded', torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer('num_enqueued', torch.zeros(rows, dtype=torch.int64))
        self.register_buffer('sizes', torch.zeros(rows, dtype=torch.float32))
        self.register_buffer('step', torch.zeros((), dtype=torch.int64))
        # constants and mirrors, not state
        self.register_buffer('clusters_of', torch.tensor(numbers)[:, None], persistent=False)
        self.register_buffer('cluster_index', torch.arange(rows[1]), persistent=False)
        self.register_buffer('member_of', self.layout.numbers_of_members(), persistent=False)
        self.register_buffer('id_offset', self.layout.first_of_class(), persistent=False)
        self._step = 0

    def _apply(self, fn, recurse=True):
        """Move to a device with the model, but stay fp32: a center moves by 1e-4 of a vector, which bf16 drops."""
        return super()._apply(keep_fp32(fn), recurse)

    @property
    def centers(self) -> Tensor:
        """(C, K, D) view of the centers."""
        return self.layout.without_dummy(self.center_store)

    @property
    def queue(self) -> Tensor:
        """(C, K, T, D) view of the stored embeddings."""
        return self.layout.without_dummy(self.queue_store)

    @property
    def num_filled(self) -> Tensor:
        """(C, K) int64 filled slots of each ring."""
        return self.layout.without_dummy(self.num_enqueued).clamp(max=self.queue_len)

    @property
    def unused(self) -> Tensor:
        """(C, K + 1) bool, rows that are not centers in use."""
        return self.cluster_index >= self.num_seeded[:, None]

    @property
    def used(self) -> Tensor:
        """(C, K + 1) bool, rows that are centers in use."""
        return self.cluster_index < self.num_seeded[:, None]

    def turn(self, number: int) -> int:
        """0 .. number - 1 in turn, step by step, the same on every rank."""
        return self._step % number

    def generator(self, stream: int) -> torch.Generator:
        """Random numbers of this step; each ``stream`` (0, 1 or 2) gives its own, the same on every rank."""
        return torch.Generator(self.step.device).manual_seed(3 * self._step + stream)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        # the dummies hold whatever was written there last, in any order: not worth a launch in every step, nor saving
        self.layout.of_dummy(self.center_store).zero_()
        self.layout.of_dummy(self.queue_store).zero_()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        """Take all or nothing: half a memory of other sizes would be worse than an empty one."""
        names = ('center_store', 'queue_store', 'num_seeded', 'num_enqueued', 'sizes', 'step')
        shapes = {name: tuple(getattr(self, name).shape) for name in names}
        other = {
            name: tuple(state_dict[prefix + name].shape)
            for name in names
            if prefix + name in state_dict and tuple(state_dict[prefix + name].shape) != shapes[name]
        }
        if other:
            errors.append(
                f'{prefix or "SubclassMemory"}: the checkpoint holds a memory of other sizes, which is left out: '
                + ', '.join(f'{name} is {shape}, expected {shapes[name]}' for name, shape in other.items())
                + '; set num_classes, num_clusters, embed_dims and queue_len as in the run that wrote it'
            )
            return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        self._step = int(self.step)

    @torch.no_grad()
    def update(
        self,
        x: Tensor,
        ids: Tensor,
        distance: Tensor,
        valid: Tensor,
        momentum: float,
        units: tuple[Tensor, Tensor] | None = None,
        subclass: Tensor | None = None,
    ) -> None:
        """Enqueue, move and seed, in this order, from the anchors of all ranks. No host synchronization.

        Args:
            x: (C, V, D) fp32 unit rows.
            ids: (C, V) row of each anchor within its class, 0 .. K - 1, or K for anchors of no subclass.
            distance: (C, V) proportional to the squared distance to the nearest center in use, any constant where
                there is none; at most 0 for copies of a center.
            valid: (C, V) bool, slots that hold an anchor (with ``units``: that hold a unit).
            momentum: share of the old center that is kept.
            units: (C, V, D) rows and (C, V) ids of what was assigned where that is not each anchor for itself (means
                of regions): centers follow them, are seeded from them, and ``sizes`` counts them, while the queue
                takes the anchors ``x``, ``ids``. ``distance`` and ``valid`` are then those of the units.
            subclass: (C, V) ``ids + id_offset``, where the caller has it already.
        """
        members = self._members(ids, x)
        counts = members.sum(1)
        self._enqueue(x, ids + self.id_offset if subclass is None else subclass, counts)
        if units is not None:
            x, ids = units
            members = self._members(ids, x)
            counts = members.sum(1)
        self._move_centers(x, members, counts, momentum)
        self._seed_centers(x, distance, valid)
        self.sizes.lerp_(counts, 0.01)
        self._step += 1
        self.step.fill_(self._step)

    def _members(self, ids: Tensor, like: Tensor) -> Tensor:
        """(C, V, K + 1) 1 where the anchor belongs to the subclass, else 0."""
        out = like.new_empty(*ids.shape, self.num_clusters + 1)
        return torch.eq(ids[..., None], self.member_of, out=out)

    def _enqueue(self, x: Tensor, subclass: Tensor, counts: Tensor) -> None:
        subclass, order = subclass.flatten().sort(stable=True)
        rank = arange(subclass.numel(), subclass.device) - torch.searchsorted(subclass, subclass)
        slot = (self.num_enqueued.view(-1)[subclass] + rank).remainder_(self.queue_len)
        # the anchors of a class come in random order, so the first few of a subclass are a fair draw
        dropped = rank >= self.enqueue_per_step
        place = subclass.mul_(self.queue_len).add_(slot).masked_fill_(dropped, self.layout.dummy * self.queue_len)
        self.queue_store.view(-1, self.embed_dims).index_copy_(0, place, x.flatten(0, 1)[order])
        self.num_enqueued.add_(counts.clamp(max=self.enqueue_per_step).long())

    def _move_centers(self, x: Tensor, members: Tensor, counts: Tensor, momentum: float) -> None:
        # a GEMM and not index_add_: atomics add in any order, and ranks must not drift apart
        mean = torch.bmm(members.mT, x).div_(counts[..., None].clamp(min=1))
        # weight 1 - momentum where there are members, else 0
        moved = self.center_store.lerp(mean, counts[..., None].clamp(max=1 - momentum))
        F.normalize(moved, dim=-1, eps=1e-6, out=self.center_store)

    def _seed_centers(self, x: Tensor, distance: Tensor, valid: Tensor) -> None:
        # exponential race: the largest weight / Exp(1) is drawn with probability proportional to its weight
        race = (distance * valid).div_(torch.empty_like(distance).exponential_(generator=self.generator(1)))
        best, draws = race.topk(min(self.seeds_per_step, race.shape[1]), dim=1)
        row = self.num_seeded[:, None] + self.cluster_index[: best.shape[1]]
        usable = (best > 0) & (row < self.clusters_of)
        row = torch.where(usable, row, self.cluster_index[self.layout.dummy])
        chosen = x.gather(1, draws[..., None].expand(-1, -1, self.embed_dims))
        self.center_store.scatter_(1, row[..., None].expand_as(chosen), chosen)
        self.num_seeded.add_(usable.sum(1))
