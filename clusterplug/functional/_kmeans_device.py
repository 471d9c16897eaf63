"""Lloyd's iteration for accelerators and for ``torch.compile``: whole batch, static shapes, products only."""

import torch
from torch import Tensor

from clusterplug.functional._kmeans_assign import blocks, center_norms, nearest
from clusterplug.functional._kmeans_update import averages, relocate

# Distances below this share of |x|^2 are rounding of |x|^2 + |c|^2 - 2 x.c and count as 0.
DISTANCE_ROUNDING = 1e-6


def lloyd_device(
    points: Tensor, weights: Tensor | None, centers: Tensor, num_iters: int, tolerance: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels (B, N), centers (B, K, D) and the iterations used (B,).

    With ``tolerance`` None exactly ``num_iters`` iterations run and nothing is read on the host, so the call can be
    compiled and captured. Otherwise one flag is read in each iteration. Sums are products with the 0/1 assignment
    matrix: the same bits in every run, unlike atomic additions.
    """
    batch = points.shape[0]
    norms = points.square().sum(-1)
    used = torch.full((batch,), num_iters if tolerance is None else 0, dtype=torch.long, device=points.device)
    active = torch.ones(batch, dtype=torch.bool, device=points.device)
    previous = None
    for _ in range(num_iters):
        labels, moved_to = _step(points, weights, centers, norms)
        if tolerance is None:
            centers = moved_to
            continue
        used += active
        shift = (moved_to - centers).square().sum((-2, -1))
        centers = torch.where(active.view(-1, 1, 1), moved_to, centers)
        still = shift > tolerance
        if previous is not None:
            still &= (labels != previous).any(-1)
        active &= still
        previous = labels
        if not bool(active.any()):
            break
    return nearest(points, centers), centers, used


def _step(points: Tensor, weights: Tensor | None, centers: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labels (B, N) for ``centers`` and the centers that follow from them."""
    batch, num_points, _ = points.shape
    num_clusters = centers.shape[-2]
    ranks = torch.arange(num_clusters, device=points.device)
    own_norms, transposed = center_norms(centers).unsqueeze(-2), centers.mT
    sums, mass, labels, lowest = torch.zeros_like(centers), None, [], []
    for part in blocks(num_points, batch * num_clusters * points.element_size(), points.device):
        best = torch.baddbmm(own_norms, points[:, part], transposed, alpha=-2.0).min(-1)
        chosen = (best.indices.unsqueeze(-1) == ranks).to(points.dtype)
        if weights is not None:
            chosen = chosen * weights[:, part].unsqueeze(-1)
        sums = torch.baddbmm(sums, chosen.mT, points[:, part])
        mass = chosen.sum(1) if mass is None else mass + chosen.sum(1)
        labels.append(best.indices)
        lowest.append(best.values)
    labels = labels[0] if len(labels) == 1 else torch.cat(labels, 1)
    lowest = lowest[0] if len(lowest) == 1 else torch.cat(lowest, 1)
    distances = norms + lowest
    distances = torch.where(distances > DISTANCE_ROUNDING * norms, distances, 0.0)
    return labels, averages(*relocate(sums, mass, points, weights, labels, distances))
