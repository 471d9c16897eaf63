"""Lloyd's iteration on the CPU: problems in groups that fit the cache, sums kept up to date by the changed points."""

import torch
from torch import Tensor

from clusterplug.functional._kmeans_assign import CpuAssigner, blocks, nearest, squared_distances_to
from clusterplug.functional._kmeans_update import averages, relocate

# Above this share of changed points summing all of them anew is cheaper than moving the changed ones.
REFRESH_SHARE = 0.25
# Sums are made anew this often, so that rounding does not pile up.
REFRESH_EVERY = 25


def lloyd_cpu(
    points: Tensor, weights: Tensor | None, centers: Tensor, num_iters: int, tolerance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels (B, N), centers (B, K, D) and the iterations used (B,) of problems that share a group.

    Args:
        points: (B, N, D) contiguous, near the origin.
        weights: (B, N), zero = takes no part; None = 1.
        centers: (B, K, D) to start from.
        num_iters: Most iterations.
        tolerance: (B,) squared center movement, summed over clusters, at which a problem stops. A problem also stops
            when no label changes; going on would change nothing. Negative = never (to time all iterations).
    """
    sums = _Sums(points, weights, centers.shape[-2])
    assign = CpuAssigner(centers)
    active = torch.ones(points.shape[0], dtype=torch.bool)
    settled = torch.zeros_like(active)
    used = torch.zeros(points.shape[0], dtype=torch.long)
    for _ in range(num_iters):
        changed = sums.update(assign)
        used += active
        moved_to = sums.centers(centers).to(centers.dtype)
        shift = (moved_to - centers).square().sum((-2, -1))
        centers = torch.where(active.view(-1, 1, 1), moved_to, centers)
        unchanged = ~changed
        settled |= active & unchanged
        active &= ~(unchanged & (tolerance >= 0) | (shift <= tolerance))
        assign.update(centers)
        if not active.any():
            break
    # labels belong to the centers before the last update unless nothing changed
    labels = sums.labels if bool(settled.all()) else nearest(points, centers)
    return labels, centers, used


class _Sums:
    """Labels, and the weighted sums (B, K, D) and mass (B, K) of each cluster in float64, updated by block."""

    def __init__(self, points: Tensor, weights: Tensor | None, num_clusters: int) -> None:
        self.points, self.weights = points, weights
        batch, num_points, self.dim = points.shape
        self.num_clusters = num_clusters
        bytes_per_point = batch * (num_clusters + self.dim) * points.element_size()
        self.parts = list(blocks(num_points, bytes_per_point, points.device))
        self.offset = torch.arange(batch).unsqueeze(-1) * num_clusters
        self.labels = torch.full((batch, num_points), -1)
        self.total = points.new_zeros(batch * num_clusters, self.dim, dtype=torch.float64)
        self.share, self.age = 1.0, 0

    def update(self, assign: CpuAssigner) -> Tensor:
        """Assign all points, bring the sums up to date and return which problems (B,) changed a label."""
        refresh = self.share > REFRESH_SHARE or self.age >= REFRESH_EVERY
        self.age = 0 if refresh else self.age + 1
        if refresh:
            self.total.zero_()
        moved = torch.zeros(self.total.shape, dtype=self.points.dtype)
        changes = torch.zeros(self.labels.shape[0], dtype=torch.long)
        for part in self.parts:
            labels = assign(self.points[:, part])
            differs = labels != self.labels[:, part]
            changes += differs.sum(-1)
            if refresh:
                self._add_all(moved, part, labels)
            else:
                self._add_changed(moved, part, labels, differs)
            self.labels[:, part] = labels
            if len(self.parts) > 1:  # short fp32 sums, added in float64
                self.total += moved
                moved.zero_()
        if len(self.parts) == 1:
            self.total += moved
        self.share = float(changes.sum()) / self.labels.numel()
        return changes > 0

    def _add_all(self, moved: Tensor, part: slice, labels: Tensor) -> None:
        points = self.points[:, part]
        if self.weights is not None:
            points = points * self.weights[:, part].unsqueeze(-1)
        moved.index_add_(0, (labels + self.offset).reshape(-1), points.reshape(-1, self.dim))

    def _add_changed(self, moved: Tensor, part: slice, labels: Tensor, differs: Tensor) -> None:
        index = differs.reshape(-1).nonzero().squeeze(-1)
        if index.numel() == 0:
            return
        rows = self.points[:, part].reshape(-1, self.dim).index_select(0, index)
        if self.weights is not None:
            rows *= self.weights[:, part].reshape(-1).index_select(0, index).unsqueeze(-1)
        moved.index_add_(0, (labels + self.offset).reshape(-1).index_select(0, index), rows)
        before = (self.labels[:, part] + self.offset).reshape(-1).index_select(0, index)
        moved.index_add_(0, before, rows, alpha=-1.0)

    def centers(self, before: Tensor) -> Tensor:
        """Return the float64 averages (B, K, D), after relocation of empty clusters away from ``before``."""
        flat = (self.labels + self.offset).reshape(-1)
        weights = None if self.weights is None else self.weights.reshape(-1).double()
        mass = torch.bincount(flat, weights, minlength=self.total.shape[0]).double().view(-1, self.num_clusters)
        sums = self.total.view(-1, self.num_clusters, self.dim)
        empty = mass <= 0
        if empty.any():
            sums = sums.masked_fill(empty.unsqueeze(-1), 0.0)  # what rounding left of moved points
            distances = squared_distances_to(self.points, before, self.labels)
            sums, mass = relocate(sums, mass, self.points, self.weights, self.labels, distances)
        return averages(sums, mass)
