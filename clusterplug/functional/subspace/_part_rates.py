# SPDX-License-Identifier: Apache-2.0
"""Rates of the parts of one problem with their gradients, block by block."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clusterplug.functional.subspace.coding import log_det

# Numbers in the matrices of one block: 8 MB in fp32, which the caches of most machines come near.
_BLOCK = 1 << 21


def part_rates(z: Tensor, membership: Tensor, eps2: float, num_neighbors: int | None, mass: float) -> Tensor:
    """R_c of points (n, d) and membership (n, k), a 0-dim tensor."""
    recorded = torch.is_grad_enabled() and (z.requires_grad or membership.requires_grad)
    return _PartRates.apply(z, membership, eps2, num_neighbors, mass, recorded)


class _PartRates(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, membership, eps2, num_neighbors, mass, recorded):
        n, d = z.shape
        work = _Work(z, membership, d / eps2, recorded)
        if num_neighbors is not None:
            work.add_sparse(num_neighbors, mass)
        elif n < d:
            work.add_gram(membership, torch.arange(n, device=z.device)[:, None], range(membership.shape[1]))
        else:
            work.add_moments(membership, range(membership.shape[1]))
        if recorded:
            ctx.save_for_backward(work.z_gradient(), work.member_gradient)
        return work.value / n

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        for_z, for_members = ctx.saved_tensors
        return grad * for_z, grad * for_members, None, None, None, None


class _Work:
    """Sums of one problem: sum_j s_j logdet M_j and its gradients, times n."""

    def __init__(self, z: Tensor, membership: Tensor, ratio: float, recorded: bool):
        self.z, self.membership, self.ratio, self.recorded = z, membership, ratio, recorded
        self.value = z.new_zeros(())
        self.member_gradient = torch.zeros_like(membership) if recorded else None
        self.gram_rows: Tensor | None = None  # (n, n): the gradient by points is 2 ratio gram_rows @ z
        self.moments: Tensor | None = None  # (n, d (d + 1) / 2): sum_j of Gamma_ij M_j^-1
        self.square: Tensor  # (d, d): where these lie in the matrix

    def add_sparse(self, size: int, mass: float) -> None:
        """Columns that few entries fill on their Gram matrix, the others in full."""
        total = self.membership.sum(0)
        kept, rows = self.membership.topk(size, dim=0)
        held = kept.sum(0)
        few = held >= mass * total
        columns, others = few.nonzero().flatten(), (~few).nonzero().flatten()
        if len(columns):
            scaled = kept * (total / torch.where(held > 0, held, 1.0))
            self.add_gram(scaled[:, columns], rows[:, columns], columns)
        if len(others):
            self.add_moments(self.membership[:, others], others)

    def add_moments(self, members: Tensor, columns) -> None:
        """d x d matrices of the columns, all of a block by one product with the outer products of the points."""
        d = self.z.shape[1]
        row, col = torch.triu_indices(d, d, device=self.z.device)
        square = torch.empty(d, d, dtype=torch.long, device=self.z.device)
        square[row, col] = square[col, row] = torch.arange(len(row), device=self.z.device)
        outer = self.z[:, row] * self.z[:, col]  # z z^T
        twice = torch.where(row == col, 1.0, 2.0).to(self.z.dtype)
        eye = torch.eye(d, dtype=self.z.dtype, device=self.z.device)
        moments = torch.zeros_like(outer) if self.recorded else None
        self.moments, self.square = moments, square
        step = max(1, _BLOCK // (d * d))
        for first in range(0, len(columns), step):
            part = members[:, first : first + step]
            total, scale = self._scale(part)
            packed = (part.mT @ outer) * scale[:, None]
            value, factor = log_det(packed[:, square.view(-1)].view(-1, d, d) + eye)
            del packed
            self.value = self.value + (total * value).sum()
            if moments is not None:
                inverse = torch.cholesky_inverse(factor)[:, row, col]
                moments.addmm_(part, inverse)
                energy = outer @ (inverse * twice).mT
                self._members(columns[first : first + step], None, self._slope(part, energy, scale, value))

    def add_gram(self, members: Tensor, rows: Tensor, columns) -> None:
        """s x s matrices of the columns, entries ``members`` (s, c) at points ``rows`` (s, c) or (s, 1)."""
        n, size = len(self.z), len(members)
        gram_rows = self.gram_rows
        if self.recorded and gram_rows is None:
            gram_rows = self.gram_rows = self.z.new_zeros(n * n)
        eye = torch.eye(size, dtype=self.z.dtype, device=self.z.device)
        step = max(1, _BLOCK // (size * max(size, self.z.shape[1] if rows.shape[1] > 1 else 1)))
        for first in range(0, len(columns), step):
            part = members[:, first : first + step]
            where = rows.mT if rows.shape[1] == 1 else rows[:, first : first + step].mT  # (c or 1, s)
            points = self.z[where]
            gram = points @ points.mT
            total, scale = self._scale(part)
            root = part.mT.sqrt()
            scaled = root.unsqueeze(-1) * gram  # D^1/2 G
            value, factor = log_det(eye + scale[:, None, None] * scaled * root.unsqueeze(-2))
            self.value = self.value + (total * value).sum()
            if gram_rows is None:
                continue
            half = torch.linalg.solve_triangular(factor, scaled, upper=False)
            energy = (gram.diagonal(dim1=-2, dim2=-1) - scale[:, None] * half.square().sum(-2)).clamp_min(0).mT
            self._members(columns[first : first + step], where, self._slope(part, energy, scale, value))
            # Gamma Z M^-1 = D (I - c G D^1/2 N^-1 D^1/2) Z
            inside = torch.cholesky_solve(scaled, factor).mT * root.unsqueeze(-2)  # G D^1/2 N^-1 D^1/2
            rows_of_z = part.mT.unsqueeze(-1) * (eye - scale[:, None, None] * inside)
            cells = (where.unsqueeze(-1) * n + where.unsqueeze(-2)).expand_as(rows_of_z)
            gram_rows.index_add_(0, cells.reshape(-1), rows_of_z.reshape(-1))

    def z_gradient(self) -> Tensor:
        """Gradient by the points, divided by n."""
        n, d = self.z.shape
        factor = 2 * self.ratio / n
        result = torch.zeros_like(self.z)
        if self.gram_rows is not None:
            result += self.gram_rows.view(n, n) @ self.z
        if self.moments is not None:
            step = max(1, _BLOCK // (d * d))
            for first in range(0, n, step):
                square = self.moments[first : first + step][:, self.square.view(-1)].view(-1, d, d)
                result[first : first + step] += (square @ self.z[first : first + step].unsqueeze(-1)).squeeze(-1)
        if self.member_gradient is not None:
            self.member_gradient /= n
        return factor * result

    def _scale(self, part: Tensor) -> tuple[Tensor, Tensor]:
        total = part.sum(0)
        return total, torch.where(total > 0, self.ratio / torch.where(total > 0, total, 1.0), 0.0)

    def _slope(self, part: Tensor, energy: Tensor, scale: Tensor, value: Tensor) -> Tensor:
        """d / d Gamma_ij of s_j logdet M_j: ratio z_i M_j^-1 z_i + logdet M_j - tr(I - M_j^-1)."""
        slope = self.ratio * energy + value - scale * (part * energy).sum(0)
        return torch.where(scale > 0, slope, 0.0)  # a part without a member has no slope

    def _members(self, columns, rows: Tensor | None, slope: Tensor) -> None:
        assert self.member_gradient is not None, 'gradients are recorded'
        if isinstance(columns, range):
            columns = slice(columns.start, columns.stop)
        if rows is None or len(rows) == 1:
            self.member_gradient[:, columns] = slope
        else:
            self.member_gradient[rows.mT, columns] = slope
