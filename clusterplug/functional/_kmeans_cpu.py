"""Lloyd's iteration on the CPU: problems in groups that fit the cache, sums kept up to date by the changed points."""

import torch
from torch import Tensor

from clusterplug.functional._kmeans_assign import CpuAssigner, squared_distances_to
from clusterplug.functional._kmeans_update import RELOCATE_EVERY, averages, relocate

# Moving a changed point costs three times what summing it anew does, and an iteration changes at most about half as
# many points as the one before: above this share of the last iteration all points are summed anew.
REFRESH_SHARE = 0.5
# Sums are made anew this often, so that rounding does not pile up.
REFRESH_EVERY = 25
# For timing: run all iterations of the fixed-iteration form even where nothing changes any more.
RUN_ALL = False


def lloyd_cpu(
    points: Tensor, weights: Tensor | None, centers: Tensor, num_iters: int, tolerance: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels (B, N), centers (B, K, D) and the iterations used (B,) of problems that share a group.

    Args:
        points: (B, N, D + 1) contiguous, near the origin, with a last coordinate 1.
        weights: (B, N), zero = takes no part; None = 1.
        centers: (B, K, D) to start from.
        num_iters: Most iterations.
        tolerance: (B,) squared center movement, summed over clusters, at which a problem stops; it also stops when
            no label changes. None = the fixed-iteration form, which relocates only in one of ``RELOCATE_EVERY``
            iterations; what would change nothing is left out, unless ``RUN_ALL``.
    """
    assign = CpuAssigner(points, centers)
    sums = _Sums(points, weights, assign)
    batch = points.shape[0]
    fixed = tolerance is None
    limits = [0.0] * batch if fixed else tolerance.tolist()
    active, settled, used = [True] * batch, [False] * batch, [0] * batch
    for step in range(num_iters):
        changed = sums.update()
        shifts = [0.0] * batch
        if any(changed) or sums.empty:
            relocating = not fixed or step % RELOCATE_EVERY == 0
            shifts = _move(assign, sums, active, relocating, max(limits) > 0)
        for index in [index for index in range(batch) if active[index]]:
            used[index] += 1
            settled[index] = not (changed[index] or (fixed and sums.empty))
            active[index] = not (settled[index] or (changed[index] and shifts[index] <= limits[index]))
        if not any(active) and not (fixed and RUN_ALL):
            break
    # labels belong to the centers before the last update unless nothing changed
    if not all(settled):
        sums.relabel()
    return sums.labels, assign.centers.contiguous(), torch.tensor(used)


def _move(assign: CpuAssigner, sums: '_Sums', active: list[bool], relocating: bool, measure: bool) -> list[float]:
    """Move the centers of active problems to their averages; return the squared movement of each if asked."""
    before = assign.centers.clone() if measure or not all(active) else None
    sums.write_centers(relocating)
    if not all(active):
        kept = torch.tensor(active).view(-1, 1, 1)
        assign.centers.copy_(torch.where(kept, assign.centers, before))
    assign.refresh()
    if measure:
        return (assign.centers - before).square_().sum((-2, -1)).tolist()
    return [float('inf')] * len(active)


class _Sums:
    """Labels (B, N) and the sums of weight x (point, 1) of each cluster (B * K, D + 1), updated block by block."""

    def __init__(self, points: Tensor, weights: Tensor | None, assign: CpuAssigner) -> None:
        self.points, self.weights, self.assign = points, weights, assign
        batch, num_points, self.width = points.shape
        self.num_clusters = assign.table.shape[1]
        self.offset = None if batch == 1 else torch.arange(batch).unsqueeze(-1) * self.num_clusters
        self.labels = torch.full((batch, num_points), -1)
        # many short fp32 sums, one for each block, are added in float64; a single block needs no second sum
        self.several = len(assign.parts) > 1
        self.total = points.new_zeros(
            batch * self.num_clusters, self.width, dtype=torch.float64 if self.several else points.dtype
        )
        self.share, self.age = 1.0, 0
        self.empty = False

    def update(self) -> list[bool]:
        """Assign all points, bring the sums up to date and tell for each problem if a label changed."""
        # moving weights in and out would leave rounding in the mass of a cluster that became empty
        refresh = self.weights is not None or self.share > REFRESH_SHARE or self.age >= REFRESH_EVERY
        self.age = 0 if refresh else self.age + 1
        if refresh:
            self.total.zero_()
        moved = self.total
        if self.several:
            moved = self.total.new_zeros(self.total.shape, dtype=self.points.dtype)
        changes = [0] * len(self.labels)
        for part in self.assign.parts:
            labels = self.assign(part)
            differs = labels != self.labels[:, part]
            counts = differs.sum(-1).tolist()
            changes = [a + b for a, b in zip(changes, counts)]
            if refresh:
                self._add_all(moved, part, labels)
            elif any(counts):
                self._add_changed(moved, part, labels, differs)
            if any(counts):
                self.labels[:, part] = labels
            if self.several and (refresh or any(counts)):
                self.total += moved
                moved.zero_()
        self.share = sum(changes) / self.labels.numel()
        return [count > 0 for count in changes]

    def relabel(self) -> None:
        """Assign all points without touching the sums."""
        for part in self.assign.parts:
            self.labels[:, part] = self.assign(part)

    def _flat(self, labels: Tensor) -> Tensor:
        """Return labels (B, n) as rows (B * n,) of the sums."""
        return (labels if self.offset is None else labels + self.offset).reshape(-1)

    def _add_all(self, moved: Tensor, part: slice, labels: Tensor) -> None:
        points = self.points[:, part]
        if self.weights is not None:
            points = points * self.weights[:, part].unsqueeze(-1)
        moved.index_add_(0, self._flat(labels), points.reshape(-1, self.width))

    def _add_changed(self, moved: Tensor, part: slice, labels: Tensor, differs: Tensor) -> None:
        index = differs.reshape(-1).nonzero().squeeze(-1)
        rows = self.points[:, part].reshape(-1, self.width).index_select(0, index)
        moved.index_add_(0, self._flat(labels).index_select(0, index), rows)
        before = self._flat(self.labels[:, part]).index_select(0, index)
        moved.index_add_(0, before, rows, alpha=-1.0)

    def write_centers(self, relocating: bool) -> None:
        """Write the averages to the assigner. A cluster without points takes a far one, or stays if not relocating."""
        sums = self.total.view(-1, self.num_clusters, self.width)
        mass, centers = sums[..., -1:], self.assign.centers
        self.empty = mass.amin().item() <= 0
        if not self.empty:
            if self.several:
                centers.copy_(sums[..., :-1] / mass)
            else:
                torch.div(sums[..., :-1], mass, out=centers)
        elif not relocating:
            centers.copy_(torch.where(mass > 0, sums[..., :-1] / mass, centers))
        else:
            mass, points = mass.squeeze(-1), self.points[..., :-1]
            plain = sums[..., :-1].masked_fill((mass <= 0).unsqueeze(-1), 0.0)  # rounding of points that went away
            distances = squared_distances_to(points, centers, self.labels)
            if self.weights is not None:  # a point without weight is no place for a center
                distances = torch.where(self.weights > 0, distances, 0.0)
            plain, mass = relocate(plain, mass, points, self.weights, self.labels, distances)
            centers.copy_(averages(plain, mass))
