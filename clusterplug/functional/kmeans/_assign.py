# SPDX-License-Identifier: Apache-2.0
"""Nearest centers without an (N, K) matrix: scores x.c - |c|^2 / 2 in blocks, one block at a time in memory."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from clusterplug.core.numerics import host_checks_allowed

# Bytes of one block of scores. On the CPU it shares the second-level cache with its block of points.
CPU_BLOCK_BYTES = 1 << 21
# Bytes of points and scores of the problems that the CPU iterates together: about what the last cache holds. Fewer
# would stay in the second-level cache, but each operation would then cost more to launch than to run.
CPU_GROUP_BYTES = 24 << 20
DEVICE_BLOCK_BYTES = 256 << 20
# Below this many coordinates a problem's product costs no more than finding out which part of it can be left out.
KEPT_COORDINATES = 1 << 14


def blocks(num_points: int, bytes_per_point: int, device: torch.device) -> Iterator[slice]:
    """Yield slices over the points whose blocks of scores (and, on the CPU, points) stay within the budget."""
    budget = DEVICE_BLOCK_BYTES
    if device.type == 'cpu' and not torch.compiler.is_compiling():
        budget = CPU_BLOCK_BYTES * torch.get_num_threads()
    step = max(1, budget // max(1, bytes_per_point))
    for start in range(0, num_points, step):
        yield slice(start, min(start + step, num_points))


def problem_groups(points: Tensor, num_clusters: int) -> list[slice]:
    """Return slices over the problems (B, N, D) that the CPU takes together, whose scores are one block if possible."""
    batch, num_points, dim = points.shape
    size = num_points * (4 if points.element_size() < 4 else points.element_size())
    by_cache = CPU_GROUP_BYTES // (size * (dim + num_clusters))
    step = max(1, min(by_cache, CPU_BLOCK_BYTES // (size * num_clusters)))
    return [slice(start, start + step) for start in range(0, max(batch, 1), step)]


def center_norms(centers: Tensor) -> Tensor:
    """Return the squared norms (B, K) of centers (B, K, D)."""
    return (centers * centers).sum(-1)


class CpuAssigner:
    """Labels of points by whole-row operations that the CPU vectorises.

    ``argmax`` over a short dimension is scalar code and costs as much as the product. Here scores lie with points
    along the fast dimension: the maximum over centers is taken row by row, compared back into a 0/1 matrix, and a
    small product with the rows (0, 1, ..., K - 1) and (1, ..., 1) reads off the label and the number of centers at
    the maximum. Where that is not 1 (ties) the block is done again by ``argmax``, which takes the lowest index.

    Where all points are one block, the scores stay, and only those of centers that moved are computed again.
    """

    def __init__(self, points: Tensor, centers: Tensor) -> None:
        """Take points (B, N, D) and the centers (B, K, D) to begin with."""
        batch, num_clusters, dim = centers.shape
        self.points, self.centers = points, centers.clone(memory_format=torch.contiguous_format)
        ranks = torch.arange(num_clusters, dtype=centers.dtype, device=centers.device)
        self.readout = torch.stack([ranks, torch.ones_like(ranks)]).expand(batch, 2, num_clusters)
        score_bytes = batch * num_clusters * points.element_size()
        self.parts = [slice(0, points.shape[1])]
        if score_bytes * points.shape[1] > CPU_BLOCK_BYTES:
            bytes_per_point = score_bytes + batch * dim * points.element_size()
            self.parts = list(blocks(points.shape[1], bytes_per_point, points.device))
        self.keeps = len(self.parts) == 1 and points.shape[1] * dim >= KEPT_COORDINATES
        self.half_norms = center_norms(self.centers).mul_(0.5).unsqueeze(-1)
        # ascending rows (R,) of all B * K centers whose kept scores are out of date; None = all
        self.stale: Tensor | None = None
        self.buffers: dict[int, tuple[Tensor, ...]] = {}

    def move(self, values: Tensor, rows: Tensor | None = None) -> None:
        """Put ``values`` (B, K, D) in place of all centers, or ``values`` (R, D) in place of the ``rows`` (R,)."""
        if rows is None:
            self.centers.copy_(values)
            torch.mul(center_norms(self.centers), 0.5, out=self.half_norms.squeeze(-1))
        else:
            self.centers.view(-1, values.shape[-1]).index_copy_(0, rows, values)
            self.half_norms.view(-1).index_copy_(0, rows, center_norms(values).mul_(0.5))
        self.stale = rows

    def __call__(self, labels: Tensor, visit: Callable[[slice], None] | None = None) -> None:
        """Fill int64 ``labels`` (B, N); ``visit`` is called after each block, while its points are in cache."""
        for part in self.parts:
            self._label(self.points[:, part], labels[:, part])
            if visit is not None:
                visit(part)

    def _label(self, points: Tensor, labels: Tensor) -> None:
        scores, equal, highest, readout = self._buffer(points.shape[1])
        if not (self.keeps and self._renew(scores)):
            torch.bmm(self.centers, points.mT, out=scores).sub_(self.half_norms)
        self.stale = self.centers.new_empty(0, dtype=torch.int64) if self.keeps else None
        torch.amax(scores, 1, keepdim=True, out=highest)
        torch.eq(scores, highest, out=equal)
        torch.bmm(self.readout, equal, out=readout)
        if len(readout) and readout[:, 1].amax().item() > 1.0:
            labels.copy_(scores.argmax(1))
        else:
            labels.copy_(readout[:, 0])

    def _renew(self, scores: Tensor) -> bool:
        """Bring the kept scores of the stale centers up to date, or return False where all are to be computed."""
        if self.stale is None:
            return False
        batch, num_clusters, dim = self.centers.shape
        if 4 * len(self.stale) > 3 * batch * num_clusters:
            return False
        moved = self.centers.view(-1, dim).index_select(0, self.stale)
        renewed = moved.new_empty(len(moved), self.points.shape[1])
        ends = torch.searchsorted(
            self.stale, torch.arange(1, batch + 1, device=self.points.device) * num_clusters
        ).tolist()
        start = 0
        for points, end in zip(self.points, ends):  # a padded batch would compute up to three times as many rows
            if end > start:
                torch.mm(moved[start:end], points.mT, out=renewed[start:end])
                start = end
        renewed -= self.half_norms.view(-1, 1).index_select(0, self.stale)
        scores.view(batch * num_clusters, -1).index_copy_(0, self.stale, renewed)
        return True

    def _buffer(self, count: int) -> tuple[Tensor, ...]:
        if count not in self.buffers:
            batch, num_clusters = self.centers.shape[:2]
            shapes = ((num_clusters, count), (num_clusters, count), (1, count), (2, count))
            self.buffers[count] = tuple(self.centers.new_empty(batch, *shape) for shape in shapes)
        return self.buffers[count]


def nearest(points: Tensor, centers: Tensor) -> Tensor:
    """Return int64 labels (B, N) of points (B, N, D) among centers (B, K, D), on any device; ties: lowest index."""
    batch, num_points, _ = points.shape
    if num_points == 0:  # a rank without points
        return points.new_empty(batch, 0, dtype=torch.int64)
    num_clusters = centers.shape[-2]
    if host_checks_allowed(points):
        labels = torch.empty(batch, num_points, dtype=torch.int64, device=points.device)
        for group in problem_groups(points, num_clusters):
            CpuAssigner(points[group], centers[group])(labels[group])
        return labels
    norms, transposed = center_norms(centers).unsqueeze(-2), centers.mT
    parts = [
        torch.baddbmm(norms, points[:, part], transposed, alpha=-2.0).argmin(-1)
        for part in blocks(num_points, batch * num_clusters * points.element_size(), points.device)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def squared_distances_to(points: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
    """Return |x - c_label|^2 (B, N), from differences: exact 0 for a point on its center."""
    batch, num_points, dim = points.shape
    if batch * num_points == 0:
        return points.new_empty(batch, num_points)
    offset = torch.arange(batch, device=points.device).unsqueeze(-1) * centers.shape[-2]
    table, rows, flat = centers.reshape(-1, dim), (labels + offset).reshape(-1), points.flatten(0, 1)
    parts = []
    for part in blocks(len(flat), 2 * dim * points.element_size(), points.device):
        own = table.index_select(0, rows[part])
        parts.append(torch.linalg.vector_norm(own.sub_(flat[part]), dim=-1).square_())
    return (parts[0] if len(parts) == 1 else torch.cat([flat.new_empty(0), *parts])).view(batch, num_points)
