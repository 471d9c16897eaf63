# SPDX-License-Identifier: Apache-2.0
"""Lloyd's steps of small problems on the CPU: few operations, because each costs more to launch than to run."""

import torch
from torch import Tensor

from clusterplug.functional.kmeans._assign import center_norms, squared_distances_to
from clusterplug.functional.kmeans._update import averages, beyond_rounding, relocate

# Up to this many products an iteration computes everything again: finding out what changed would cost more.
SMALL_PRODUCTS = 1 << 20


def is_small(points: Tensor, centers: Tensor) -> bool:
    """Return whether the problems (B, N, D) with centers (B, K, D) are small, all together."""
    return points.numel() * centers.shape[1] <= SMALL_PRODUCTS


class SmallSums:
    """The steps of ``_cpu._Sums``, with assigner and sums in one and nothing kept between the iterations.

    The 0/1 matrix (B, K, N) of nearest centers times the table (weight x point, weight, 1) (B, N, D + 2) is the sum,
    the mass and the number of points of every cluster. Where a point has several nearest centers the numbers do not
    add up to N, and the matrix is made again from the lowest index.
    """

    def __init__(self, points: Tensor, weights: Tensor | None, centers: Tensor) -> None:
        """Take points (B, N, D), weights (B, N) or None and the centers (B, K, D) to begin with."""
        self.points, self.weights, self.centers = points, weights, centers
        batch, num_points, self.dim = points.shape
        self.num_clusters, self.transposed = centers.shape[1], points.mT
        self.table = points.new_ones(batch, num_points, self.dim + 2)
        if weights is None:
            self.table[..., :-2] = points
        else:
            torch.mul(points, weights.unsqueeze(-1), out=self.table[..., :-2])
            self.table[..., -2] = weights
        shape = batch, self.num_clusters, num_points
        self.scores, self.chosen, self.before = (points.new_empty(shape) for _ in range(3))
        self.highest = points.new_empty(batch, 1, num_points)
        self.sums: Tensor | None = None  # of the last update
        self.empty = [False] * batch

    @property
    def labels(self) -> Tensor:
        """The nearest centers (B, N) int64 of the last update."""
        return self.chosen.max(1).indices

    def _score(self) -> None:
        torch.bmm(self.centers, self.transposed, out=self.scores)
        self.scores.sub_(center_norms(self.centers).mul_(0.5).unsqueeze(-1))

    def final_labels(self, outdated: bool) -> Tensor:
        """Return labels (B, N), of the last update or (``outdated``) of the centers as they are now."""
        if not outdated:
            return self.labels
        self._score()
        return self.scores.max(1).indices  # the first of several

    def update(self) -> list[bool]:
        """Assign and sum all points and return for each problem whether a label changed."""
        self.chosen, self.before = self.before, self.chosen
        self._score()
        torch.amax(self.scores, 1, keepdim=True, out=self.highest)
        torch.eq(self.scores, self.highest, out=self.chosen)
        first, sums = self.sums is None, torch.bmm(self.chosen, self.table)
        if sums[..., -1].sum().item() != self.highest.numel():
            self.chosen.zero_().scatter_(1, self.scores.max(1, keepdim=True).indices, 1.0)
            sums = torch.bmm(self.chosen, self.table)
        self.sums = sums
        batch = len(self.chosen)
        if first or batch == 1:
            return [first or not torch.equal(self.chosen, self.before)] * batch
        return (self.chosen != self.before).flatten(1).any(-1).tolist()

    def move_centers(self, moving: list[bool], relocating: bool, measure: bool) -> list[float]:
        """Move the centers of some problems to their averages; return each problem's squared movement, as ``_Sums``."""
        assert self.sums is not None, 'update comes first'
        sums, mass, before = self.sums[..., :-2], self.sums[..., -2], self.centers
        some_empty = mass.amin().item() <= 0
        self.empty = (mass <= 0).any(-1).tolist() if some_empty else [False] * len(moving)
        centers = self._averages(sums, mass, relocating) if some_empty else sums / mass.unsqueeze(-1)
        if not all(moving):
            centers = torch.where(torch.tensor(moving, device='cpu').view(-1, 1, 1), centers, before)
        self.centers = centers
        if measure or some_empty:
            return (centers - before).square_().sum((-2, -1)).tolist()
        return [float('inf')] * len(moving)

    def _averages(self, sums: Tensor, mass: Tensor, relocating: bool) -> Tensor:
        if not relocating:
            return torch.where(mass.unsqueeze(-1) > 0, sums / mass.unsqueeze(-1), self.centers)
        labels = self.labels
        distances = squared_distances_to(self.points, self.centers, labels)
        distances = beyond_rounding(distances, self.points, labels, self.num_clusters)
        if self.weights is not None:  # a point without weight is no position for a center
            distances = torch.where(self.weights > 0, distances, 0.0)
        return averages(*relocate(sums, mass, self.points, self.weights, labels, distances))
