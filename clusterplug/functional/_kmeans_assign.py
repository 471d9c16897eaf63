"""Nearest centers without an (N, K) matrix: scores |c|^2 - 2 x.c in blocks, one block at a time in memory."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Bytes of one block of scores. On the CPU it shares the second-level cache with its block of points.
CPU_BLOCK_BYTES = 3 << 17
DEVICE_BLOCK_BYTES = 256 << 20


def blocks(num_points: int, bytes_per_point: int, device: torch.device) -> Iterator[slice]:
    """Yield slices over the points whose blocks of scores (and, on the CPU, points) stay within the budget."""
    budget = CPU_BLOCK_BYTES * torch.get_num_threads() if device.type == 'cpu' else DEVICE_BLOCK_BYTES
    step = max(1, budget // max(1, bytes_per_point))
    for start in range(0, num_points, step):
        yield slice(start, min(start + step, num_points))


def center_norms(centers: Tensor) -> Tensor:
    """Return the squared norms (B, K) of centers (B, K, D)."""
    return centers.square().sum(-1)


class CpuAssigner:
    """Labels of a block of points (B, n, D) by whole-row operations that the CPU vectorises.

    ``argmin`` over a short dimension is scalar code and costs as much as the product. Here the minimum over centers is
    taken with points along the fast dimension, compared back into a 0/1 matrix, and one small product with the rows
    (0, 1, ..., K - 1) and (1, ..., 1) reads off both the label and the number of centers at the minimum. Where that
    number is not 1 (ties) the block is done again by ``argmin``, which takes the lowest index.
    """

    def __init__(self, centers: Tensor) -> None:
        num_clusters = centers.shape[-2]
        ranks = torch.arange(num_clusters, dtype=centers.dtype, device=centers.device)
        self.readout = torch.stack([ranks, torch.ones_like(ranks)])
        self.buffers = {}
        self.update(centers)

    def update(self, centers: Tensor) -> None:
        """Take new centers (B, K, D)."""
        self.centers = centers
        self.norms = center_norms(centers).unsqueeze(-1)

    def __call__(self, points: Tensor) -> Tensor:
        """Return int64 labels (B, n) of points (B, n, D)."""
        batch, count = points.shape[:2]
        scores, lowest = self._buffer(batch, count)
        torch.baddbmm(self.norms, self.centers, points.mT, alpha=-2.0, out=scores)
        torch.amin(scores, 1, keepdim=True, out=lowest)
        torch.eq(scores, lowest, out=scores)
        readout = torch.matmul(self.readout, scores)
        if float(readout[:, 1].amax()) > 1.0:
            torch.baddbmm(self.norms, self.centers, points.mT, alpha=-2.0, out=scores)
            return scores.argmin(1)
        return readout[:, 0].long()

    def _buffer(self, batch: int, count: int) -> tuple[Tensor, Tensor]:
        if count not in self.buffers:
            num_clusters = self.centers.shape[-2]
            self.buffers[count] = (
                self.centers.new_empty(batch, num_clusters, count),
                self.centers.new_empty(batch, 1, count),
            )
        return self.buffers[count]


def nearest(points: Tensor, centers: Tensor) -> Tensor:
    """Return int64 labels (B, N) of points (B, N, D) among centers (B, K, D), on any device; ties: lowest index."""
    batch, num_points, dim = points.shape
    num_clusters, size = centers.shape[-2], points.element_size()
    if points.device.type == 'cpu' and not torch.compiler.is_compiling():
        assign = CpuAssigner(centers)
        bytes_per_point = batch * (num_clusters + dim) * size
        parts = [assign(points[:, part]) for part in blocks(num_points, bytes_per_point, points.device)]
    else:
        norms, transposed = center_norms(centers).unsqueeze(-2), centers.mT
        parts = [
            torch.baddbmm(norms, points[:, part], transposed, alpha=-2.0).argmin(-1)
            for part in blocks(num_points, batch * num_clusters * size, points.device)
        ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def squared_distances_to(points: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
    """Return |x - c_label|^2 (B, N), from differences: exact 0 for a point on its center."""
    batch, num_points, dim = points.shape
    offset = torch.arange(batch, device=points.device).unsqueeze(-1) * centers.shape[-2]
    table = centers.reshape(-1, dim)
    parts = []
    for part in blocks(num_points, batch * 2 * dim * points.element_size(), points.device):
        own = table.index_select(0, (labels[:, part] + offset).reshape(-1)).view(batch, -1, dim)
        parts.append(own.sub_(points[:, part]).square_().sum(-1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
