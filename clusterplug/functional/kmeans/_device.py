# SPDX-License-Identifier: Apache-2.0
"""Lloyd's iteration for accelerators and for ``torch.compile``: whole batch, static shapes, products only."""

from collections.abc import Callable

import torch
from torch import Tensor

from clusterplug.functional.kmeans._assign import blocks, center_norms, nearest
from clusterplug.functional.kmeans._update import RELOCATE_EVERY, averages, relocate

# Distances below so many eps of |x|^2 are rounding of |x|^2 + |c|^2 - 2 x.c and count as 0.
DISTANCE_ROUNDING = 8
# Share of its old place that a center keeps: nothing beside a point, everything for a cluster without points. It
# saves the operations that would tell empty clusters apart. Weights are at most 1 here.
KEPT_SHARE = 1e-20


def lloyd_device(
    points: Tensor,
    weights: Tensor | None,
    centers: Tensor,
    num_iters: int,
    tolerance: Tensor | None,
    as_returned: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels (B, N), centers (B, K, D) and the iterations used (B,).

    With ``tolerance`` None exactly ``num_iters`` iterations run and nothing is read on the host, so the call can be
    compiled and captured; an iteration is eight launches, and one in ``RELOCATE_EVERY`` also relocates. Otherwise
    flags are read in each iteration, and it relocates where a cluster is empty. Sums are products with the 0/1
    assignment matrix: the same bits in every run, unlike atomic additions.

    Args:
        points: (B, N, D + 1) near the origin, with a last coordinate 1.
        weights: (B, N), zero = is ignored; None = 1.
        centers: (B, K, D) to start from.
        num_iters: Most iterations.
        tolerance: (B,) squared center movement at which a problem stops, or None.
        as_returned: Rounds centers as the caller will see them; the labels are nearest to these.
    """
    batch = points.shape[0]
    state = _Problem(points, weights, centers.shape[-2])
    table = torch.nn.functional.pad(centers, (0, 1), value=1.0)
    if tolerance is None:
        for step in range(num_iters):
            table = state.step(table, relocating=step % RELOCATE_EVERY == 0)
        used = torch.full((batch,), num_iters, dtype=torch.long, device=points.device)
        return _labelled(state, as_returned(table[..., :-1]), used)
    used = torch.zeros(batch, dtype=torch.long, device=points.device)
    active = torch.ones(batch, dtype=torch.bool, device=points.device)
    for _ in range(num_iters):
        moved_to = state.step(table, relocating=None)
        used += active
        # where no label changes, and no empty cluster finds a point, the centers do not move at all
        still = (moved_to - table).square().sum((-2, -1)) > tolerance
        table = torch.where(active.view(-1, 1, 1), moved_to, table)
        active &= still
        if not bool(active.any()):
            break
    return _labelled(state, as_returned(table[..., :-1]), used)


def _labelled(state: '_Problem', centers: Tensor, used: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return nearest(state.plain, centers), centers, used


class _Problem:
    """What stays the same from iteration to iteration."""

    def __init__(self, points: Tensor, weights: Tensor | None, num_clusters: int) -> None:
        self.plain = points[..., :-1]
        self.weighted, self.weights = points, weights
        if weights is not None:
            self.weights = weights / weights.amax(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
            self.weighted = points * self.weights.unsqueeze(-1)
        self.norms = self.plain.square().sum(-1)
        self.least = DISTANCE_ROUNDING * torch.finfo(points.dtype).eps * self.norms
        if weights is not None:  # a point without weight is no place for a center
            self.least = torch.where(weights > 0, self.least, torch.inf)
        self.ranks = torch.arange(num_clusters, device=points.device)
        score_bytes = points.shape[0] * num_clusters * points.element_size()
        self.parts = list(blocks(points.shape[1], score_bytes, points.device))

    def step(self, table: Tensor, *, relocating: bool | None) -> Tensor:
        """Return the centers (B, K, D + 1), last coordinate 1, that follow; ``relocating`` None = if need be."""
        norms, transposed = center_norms(table[..., :-1]).unsqueeze(-2), table[..., :-1].mT
        labels, lowest, sums = [], [], table
        for index, part in enumerate(self.parts):
            best = torch.baddbmm(norms, self.plain[:, part], transposed, alpha=-2.0).min(-1)
            chosen = (best.indices.unsqueeze(-1) == self.ranks).to(table.dtype)
            kept = KEPT_SHARE if index == 0 else 1.0
            sums = torch.baddbmm(sums, chosen.mT, self.weighted[:, part], beta=kept)
            labels.append(best.indices)
            lowest.append(best.values)
        joined = labels[0] if len(labels) == 1 else torch.cat(labels, 1)
        if relocating is None:
            relocating = bool((sums[..., -1] <= KEPT_SHARE).any())
        if not relocating:
            return sums / sums[..., -1:]
        distances = self.norms + (lowest[0] if len(lowest) == 1 else torch.cat(lowest, 1))
        return self._relocated(sums, joined, distances)

    def _relocated(self, sums: Tensor, labels: Tensor, distances: Tensor) -> Tensor:
        distances = torch.where(distances > self.least, distances, 0.0)
        mass = torch.where(sums[..., -1] > KEPT_SHARE, sums[..., -1], 0.0)
        plain = torch.where(mass.unsqueeze(-1) > 0, sums[..., :-1], 0.0)
        plain, mass = relocate(plain, mass, self.plain, self.weights, labels, distances)
        return torch.nn.functional.pad(averages(plain, mass), (0, 1), value=1.0)
