# SPDX-License-Identifier: Apache-2.0
"""Points of a mixture of low-rank Gaussians: data whose subspaces, labels and optimal denoiser are known."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clusterplug.core.checks import check_count, check_number

__all__ = ['MoLRG']


class MoLRG(Dataset):
    r"""Mixture of low-rank Gaussians: :math:`x = \mu_k + U_k a + \text{noise} \cdot e`, a and e standard normal.

    Args:
        width: n, numbers of a point. With ``shape`` the product of it.
        dims: Dimension of each component.
        num_per_class: Points of each component: an int, or one for each.
        orthogonal: Whether the components are orthogonal to each other; needs sum(dims) <= n.
        noise: Standard deviation of the noise on every number.
        means: (K, n) means of the components; None = 0.
        shape: Of the points handed over, such as (C, H, W), with n numbers; the bases are of points flattened in
            that order. None: (n,).
        seed: Of everything.
        dtype: Of points and bases.

    Attributes:
        x: (N, n). labels: (N,) int64, in blocks. bases: tuple of K tensors (n, d_k) with orthonormal columns.

    Indexing gives ``(x, label)`` of a point, x in ``shape``.

    Raises:
        ValueError: sum(dims) > n with ``orthogonal``, or shapes that do not fit.

    Source: Wang et al. 2024 (arXiv 2409.02426), definition 1; class MoLRG of huijieZH/Diffusion-Model-Generalizability,
    edm/training/dataset.py (CC BY-NC-SA, not copied). **Differs**: bases and images are in one order of memory (theirs
    are H x W x C bases for C x H x W images); floats instead of values stored as (x + 1) 127.5.

    Example:
        >>> data = MoLRG(24, [4, 4], 10, seed=0)
        >>> data.x.shape, data.labels.bincount(), data[0][1]
        (torch.Size([20, 24]), tensor([10, 10]), 0)
    """

    def __init__(
        self,
        width: int,
        dims: Sequence[int],
        num_per_class: int | Sequence[int],
        *,
        orthogonal: bool = True,
        noise: float = 0.0,
        means: Tensor | None = None,
        shape: Sequence[int] | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ):
        width = check_count(width, 'width', 1)
        if isinstance(dims, int) or not len(dims):
            raise ValueError(f'dims must hold the dimension of each component, such as [4, 4], got {dims!r}')
        dims = [check_count(each, 'dims', 1, width) for each in dims]
        counts = [num_per_class] * len(dims) if not isinstance(num_per_class, Sequence) else list(num_per_class)
        if len(counts) != len(dims):
            raise ValueError(f'num_per_class must be an int or one for each of {len(dims)} components, got {counts}')
        counts = [check_count(each, 'num_per_class', 0) for each in counts]
        if orthogonal and sum(dims) > width:
            raise ValueError(
                f'orthogonal components need sum(dims) <= width, got {sum(dims)} > {width}; set orthogonal=False'
            )
        self.noise, self.shape = check_number(noise, 'noise', 0), (width,) if shape is None else tuple(shape)
        if torch.Size(self.shape).numel() != width:
            raise ValueError(f'shape must hold {width} numbers, got {self.shape}')
        if means is not None and tuple(means.shape) != (len(dims), width):
            raise ValueError(f'means must have shape ({len(dims)}, {width}), got {tuple(means.shape)}')
        generator = torch.Generator().manual_seed(check_count(seed, 'seed'))

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        if orthogonal:
            bases = torch.linalg.qr(normal(width, sum(dims)))[0].split(dims, 1)
        else:
            bases = [torch.linalg.qr(normal(width, dim))[0] for dim in dims]
        parts = []
        for number, (basis, count) in enumerate(zip(bases, counts, strict=True)):
            part = normal(count, basis.shape[1]) @ basis.mT + self.noise * normal(count, width)
            parts.append(part if means is None else part + means[number].double())
        self.x = torch.cat(parts).to(dtype)
        self.labels = torch.arange(len(dims)).repeat_interleave(torch.tensor(counts))
        self.bases = tuple(basis.to(dtype) for basis in bases)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index].view(self.shape), int(self.labels[index])
