"""Nearest centers without an (N, K) matrix: scores |c|^2 - 2 x.c in blocks, one block at a time in memory."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Bytes of one block of scores. On the CPU it shares the second-level cache with its block of points.
CPU_BLOCK_BYTES = 1 << 21
DEVICE_BLOCK_BYTES = 256 << 20


def blocks(num_points: int, bytes_per_point: int, device: torch.device) -> Iterator[slice]:
    """Yield slices over the points whose blocks of scores (and, on the CPU, points) stay within the budget."""
    budget = DEVICE_BLOCK_BYTES
    if device.type == 'cpu' and not torch.compiler.is_compiling():
        budget = CPU_BLOCK_BYTES * torch.get_num_threads()
    step = max(1, budget // max(1, bytes_per_point))
    for start in range(0, num_points, step):
        yield slice(start, min(start + step, num_points))


def cpu_blocks(points: Tensor, num_clusters: int) -> list[slice]:
    """Return the blocks of points (B, N, D) that share the cache with their scores."""
    batch, num_points, dim = points.shape
    return list(blocks(num_points, batch * (num_clusters + dim) * points.element_size(), points.device))


def center_norms(centers: Tensor) -> Tensor:
    """Return the squared norms (B, K) of centers (B, K, D)."""
    return (centers * centers).sum(-1)


class CpuAssigner:
    """Labels of blocks of points by whole-row operations that the CPU vectorises.

    Points carry a last coordinate 1 and centers a last coordinate -|c|^2 / 2, so one product gives x.c - |c|^2 / 2, the
    largest for the nearest center. ``argmax`` over a short dimension is scalar code and costs as much as the product.
    Here the maximum over centers is taken with points along the fast dimension, compared back into a 0/1 matrix, and
    a small product with the rows (0, 1, ..., K - 1) and (1, ..., 1) reads off the label and the number of centers at
    the maximum. Where that is not 1 (ties) the block is done again by ``argmax``, which takes the lowest index.
    """

    def __init__(self, points: Tensor, centers: Tensor) -> None:
        """Take points (B, N, D + 1) with last coordinate 1 and centers (B, K, D)."""
        batch, num_clusters, self.dim = centers.shape
        self.table = centers.new_empty(batch, num_clusters, self.dim + 1)
        ranks = torch.arange(num_clusters, dtype=centers.dtype)
        self.readout = torch.stack([ranks, torch.ones_like(ranks)]).expand(batch, 2, num_clusters)
        self.buffers = {}
        self.parts = cpu_blocks(points, num_clusters)
        self.transposed = points.mT
        self.centers.copy_(centers)
        self.refresh()

    @property
    def centers(self) -> Tensor:
        """The centers (B, K, D), to be written in place and followed by ``refresh``."""
        return self.table[..., : self.dim]

    def refresh(self) -> None:
        """Bring the norms up to date with the centers."""
        torch.mul(center_norms(self.centers), -0.5, out=self.table[..., self.dim])

    def __call__(self, part: slice) -> Tensor:
        """Return int64 labels (B, n) of the points in ``part``."""
        points = self.transposed[..., part]
        scores, highest, readout = self._buffer(points.shape[-1])
        torch.bmm(self.table, points, out=scores)
        torch.amax(scores, 1, keepdim=True, out=highest)
        torch.eq(scores, highest, out=scores)
        torch.bmm(self.readout, scores, out=readout)
        if readout[:, 1].amax().item() > 1.0:
            torch.bmm(self.table, points, out=scores)
            return scores.argmax(1)
        return readout[:, 0].long()

    def _buffer(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        if count not in self.buffers:
            batch, num_clusters = self.table.shape[:2]
            shapes = ((batch, num_clusters, count), (batch, 1, count), (batch, 2, count))
            self.buffers[count] = tuple(self.table.new_empty(shape) for shape in shapes)
        return self.buffers[count]


def nearest(points: Tensor, centers: Tensor) -> Tensor:
    """Return int64 labels (B, N) of points (B, N, D) among centers (B, K, D), on any device; ties: lowest index."""
    batch, num_points, _ = points.shape
    if num_points == 0:  # a rank without points
        return points.new_empty(batch, 0, dtype=torch.int64)
    num_clusters = centers.shape[-2]
    norms, transposed = center_norms(centers).unsqueeze(-2), centers.mT
    parts = [
        torch.baddbmm(norms, points[:, part], transposed, alpha=-2.0).argmin(-1)
        for part in blocks(num_points, batch * num_clusters * points.element_size(), points.device)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def squared_distances_to(points: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
    """Return |x - c_label|^2 (B, N), from differences: exact 0 for a point on its center."""
    batch, num_points, dim = points.shape
    if num_points == 0:
        return points.new_empty(batch, 0)
    offset = torch.arange(batch, device=points.device).unsqueeze(-1) * centers.shape[-2]
    table = centers.reshape(-1, dim)
    parts = []
    for part in blocks(num_points, batch * 2 * dim * points.element_size(), points.device):
        own = table.index_select(0, (labels[:, part] + offset).reshape(-1)).view(batch, -1, dim)
        parts.append(torch.linalg.vector_norm(own.sub_(points[:, part]), dim=-1).square_())
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
