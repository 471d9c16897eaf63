# SPDX-License-Identifier: Apache-2.0
"""Lloyd's iteration on the CPU: problems in groups that fit the cache, work only for what changed."""

from collections.abc import Callable

import torch
from torch import Tensor

from clusterplug.functional.kmeans._assign import CpuAssigner, blocks, squared_distances_to
from clusterplug.functional.kmeans._small import SmallSums, is_small
from clusterplug.functional.kmeans._update import RELOCATE_EVERY, averages, beyond_rounding, relocate

# Moving a changed point costs three times what summing it anew does: above this share all points are summed anew.
REFRESH_SHARE = 1 / 3
# Sums are made anew this often, so that rounding does not pile up.
REFRESH_EVERY = 25


def lloyd_cpu(
    points: Tensor,
    weights: Tensor | None,
    centers: Tensor,
    num_iters: int,
    tolerance: Tensor | None,
    as_returned: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels (B, N), centers (B, K, D) and the iterations used (B,) of problems that share a group.

    Args:
        points: (B, N, D) contiguous, near the origin.
        weights: (B, N), zero = is ignored; None = 1.
        centers: (B, K, D) to start from.
        num_iters: Most iterations.
        tolerance: (B,) squared center movement, summed over clusters, at which a problem stops; it also stops when
            no label changes. None = the fixed-iteration form, which relocates only in one of ``RELOCATE_EVERY``
            iterations; what would change nothing is skipped.
        as_returned: Rounds centers as the caller will see them; the labels are nearest to these.
    """
    sums = SmallSums(points, weights, centers) if is_small(points, centers) else _Sums(points, weights, centers)
    batch = points.shape[0]
    fixed = tolerance is None
    limits = [0.0] * batch if tolerance is None else tolerance.tolist()
    active, outdated, used = [True] * batch, [False] * batch, [0] * batch
    for step in range(num_iters):
        changed, relocating = sums.update(), not fixed or step % RELOCATE_EVERY == 0
        # an empty cluster may find a point to take although no label changed
        moving = [active[i] and (changed[i] or (sums.empty[i] and relocating)) for i in range(batch)]
        waiting = [fixed and not relocating and sums.empty[i] for i in range(batch)]
        shifts = [0.0] * batch
        if any(moving):
            shifts = sums.move_centers(moving, relocating, max(limits) > 0)
        for index in [index for index in range(batch) if active[index]]:
            used[index] += 1
            outdated[index] = moving[index] and shifts[index] != 0
            rests = not outdated[index] and not (changed[index] or waiting[index])
            stands = not fixed and moving[index] and shifts[index] <= limits[index]
            active[index] = not (rests or stands)
        if not any(active):
            break
    final = as_returned(sums.centers)
    if final is not sums.centers and not torch.equal(final, sums.centers):
        sums.centers = final
        outdated = [True]
    return sums.final_labels(any(outdated)), sums.centers, torch.tensor(used, device='cpu')


class _Sums:
    """Labels (B, N) and the sums of weight x point of each cluster (B * K, D), kept up to date by what changes."""

    def __init__(self, points: Tensor, weights: Tensor | None, centers: Tensor) -> None:
        self.points, self.weights, self.assign = points, weights, CpuAssigner(points, centers)
        batch, num_points, self.dim = points.shape
        self.num_clusters = centers.shape[1]
        self.offset = (
            None if batch == 1 else torch.arange(batch, device=points.device).unsqueeze(-1) * self.num_clusters
        )
        self.labels: Tensor | None = None  # of the last update
        self.next = torch.empty(batch, num_points, dtype=torch.int64, device=points.device)
        # many short fp32 sums, one for each block, are added in float64; a single block needs no second sum
        several = len(self.assign.parts) > 1
        self.total = points.new_zeros(
            batch * self.num_clusters, self.dim, dtype=torch.float64 if several else points.dtype
        )
        self.part_sums = self.total.to(points.dtype)  # the same memory where the types are equal
        # what share of the labels the next iteration will change
        self.expected, self.age = 0.5 if several else 0.0, 0
        # for each problem, whether a cluster was empty when the centers were last moved
        self.empty = [False] * batch
        self.touched: Tensor | None = None  # (B * K,) clusters whose points changed in the last update

    @property
    def centers(self) -> Tensor:
        return self.assign.centers

    @centers.setter
    def centers(self, values: Tensor) -> None:
        self.assign.move(values)

    def final_labels(self, outdated: bool) -> Tensor:
        """Return labels (B, N), of the last update or (``outdated``) of the centers as they are now."""
        labels = self._last_labels()
        if outdated:
            self.assign(labels)
        return labels

    def _last_labels(self) -> Tensor:
        assert self.labels is not None, 'update comes first'
        return self.labels

    def update(self) -> list[bool]:
        """Assign all points, bring the sums up to date and return for each problem whether a label changed."""
        if self.labels is None:
            self.assign(self.next, self._add_all)
            self.labels, self.next = self.next, torch.empty_like(self.next)
            return [True] * len(self.next)
        # moving weights in and out would leave rounding in the mass of a cluster that became empty
        renew = self.weights is not None or self.age >= REFRESH_EVERY or self.expected > REFRESH_SHARE
        if renew:
            self.total.zero_()
        self.assign(self.next, self._add_all if renew else None)
        differs = self.next != self.labels
        counts = differs.sum(-1).tolist()
        index = differs.view(-1).nonzero().squeeze(-1)
        before, after = (self._flat(labels).index_select(0, index) for labels in (self.labels, self.next))
        self.touched = self.total.new_zeros(len(self.total), dtype=torch.bool)
        self.touched.index_fill_(0, before, True).index_fill_(0, after, True)
        if not renew and len(index):
            self._add_changed(index, before, after)
        self.age = 0 if renew else self.age + 1
        self.labels, self.next = self.next, self.labels
        # an iteration mostly changes at most half as many points as the one before
        self.expected = 0.5 * len(index) / self.labels.numel()
        return [count > 0 for count in counts]

    def _flat(self, labels: Tensor) -> Tensor:
        """Return labels (B, n) as rows (B * n,) of the sums."""
        return (labels if self.offset is None else labels + self.offset).reshape(-1)

    def _add_all(self, part: slice) -> None:
        points = self.points[:, part]
        if self.weights is not None:
            points = points * self.weights[:, part].unsqueeze(-1)
        self._add(self._flat(self.next[:, part]), points.reshape(-1, self.dim))

    def _add_changed(self, index: Tensor, before: Tensor, after: Tensor) -> None:
        flat = self.points.reshape(-1, self.dim)
        for part in blocks(len(index), self.dim * flat.element_size(), flat.device):
            rows = flat.index_select(0, index[part])
            self._add(after[part], rows)
            self._add(before[part], rows, -1.0)

    def _add(self, labels: Tensor, rows: Tensor, sign: float = 1.0) -> None:
        self.part_sums.index_add_(0, labels, rows, alpha=sign)
        if self.part_sums is not self.total:
            self.total += self.part_sums
            self.part_sums.zero_()

    def _mass(self) -> Tensor:
        """Return the sum of weights of each cluster (B * K,) in the type of the points."""
        weights = None if self.weights is None else self.weights.reshape(-1).double()
        return torch.bincount(self._flat(self._last_labels()), weights, len(self.total)).to(self.points.dtype)

    def move_centers(self, moving: list[bool], relocating: bool, measure: bool) -> list[float]:
        """Move the centers of some problems to their averages; return each problem's squared movement.

        It is infinity where it was not asked for and no cluster is empty. A cluster without points takes a far one,
        or stays if not relocating.
        """
        mass, shifts = self._mass(), self.points.new_full((len(moving),), float('inf'))
        was_empty, some_empty = any(self.empty), mass.amin().item() <= 0
        if some_empty:
            self.empty = (mass.view(len(moving), -1) <= 0).any(-1).tolist()
        elif was_empty:
            self.empty = [False] * len(moving)
        # a relocated center is not the average of the points with its label, so all are to be written again
        if self.assign.keeps and self.touched is not None and not (was_empty or some_empty):
            touched = self.touched
            if not all(moving):
                touched = touched & torch.tensor(moving, device='cpu').repeat_interleave(self.num_clusters)
            rows = touched.nonzero().squeeze(-1)
            values = self.total.index_select(0, rows) / mass.index_select(0, rows).unsqueeze(-1)
            if measure:
                moves = self.assign.centers.view(-1, self.dim).index_select(0, rows).sub_(values).square_().sum(-1)
                shifts = torch.zeros_like(shifts).index_add_(0, rows // self.num_clusters, moves)
            self.assign.move(values, rows)
            return shifts.tolist()
        centers = self._averages(mass.view(len(moving), -1), some_empty, relocating).to(self.points.dtype)
        if not all(moving):
            centers = torch.where(torch.tensor(moving, device='cpu').view(-1, 1, 1), centers, self.assign.centers)
        if measure or some_empty:
            shifts = (centers - self.assign.centers).square_().sum((-2, -1))
        self.assign.move(centers)
        return shifts.tolist()

    def _averages(self, mass: Tensor, some_empty: bool, relocating: bool) -> Tensor:
        sums, centers = self.total.view(*mass.shape, self.dim), self.assign.centers
        if not some_empty:
            return sums / mass.unsqueeze(-1)
        if not relocating:
            return torch.where(mass.unsqueeze(-1) > 0, sums / mass.unsqueeze(-1), centers)
        plain = sums.masked_fill((mass <= 0).unsqueeze(-1), 0.0)  # rounding of points that went away
        labels = self._last_labels()
        distances = squared_distances_to(self.points, centers, labels)
        distances = beyond_rounding(distances, self.points, labels, self.num_clusters)
        if self.weights is not None:  # a point without weight is no position for a center
            distances = torch.where(self.weights > 0, distances, 0.0)
        return averages(*relocate(plain, mass, self.points, self.weights, labels, distances))
