# SPDX-License-Identifier: Apache-2.0
"""What embeddings tell of the position of their row in a strided grid, learned online and taken away."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterplug.core.checks import check_count, check_number, whole_number
from clusterplug.core.numerics import keep_fp32

_AXES = 3


def check_period(period: int) -> int:
    """Return the period; raise unless it is a power of two from 2 on."""
    period = check_count(period, 'position_period', 2)
    if period & (period - 1):
        raise ValueError(f'position_period must be a power of two, got {period}; take the stride of the deepest layer')
    return period


class PositionRegression(nn.Module):
    r"""Running linear regression, class by class, of embeddings on the position inside the cells of a stride.

    A row of a feature map behind strided layers tells its position inside the cells of the deeper layers: layers that
    double the resolution use other weights for each corner of a cell. For the bit :math:`b` of each axis at each level
    (which half of the cell of 2, 4, ... ``period`` rows) the regressors are the products of
    :math:`(-1)^b` over every set of axes, 7 a level. Sums over the anchors, centered within the class, decay with the
    steps; the regression is damped by ``ridge`` anchors.

    Args:
        num_classes: C.
        embed_dims: D.
        period: rows of the map that one cell of the deepest layer holds along each axis, a power of two.
        momentum: share of the sums that is kept in a step.
        ridge: anchors that say that there is nothing to learn.

    Attributes:
        moments: (C, P, P) fp32 running sum of products of regressors.
        products: (C, P, D) fp32 running sum of regressors times embeddings.

    Example:
        >>> regression = PositionRegression(num_classes=1, embed_dims=4, period=2)
        >>> cells = torch.arange(200)[:, None]
        >>> told = torch.tensor([0, 0.3, 0, 0]) * (cells % 2 - 0.5)
        >>> x, design = F.normalize(torch.tensor([1.0, 0, 0, 0]) + told, dim=1)[None], regression.design(cells)[None]
        >>> regression.update(x, design, torch.ones(1, 200, dtype=torch.bool))
        >>> x[..., 1].abs().max() > 0.1, regression(x, design)[..., 1].abs().max() < 0.01
        (tensor(True), tensor(True))
    """

    sync_buffers_exempt = True  # every rank holds the same values by construction

    moments: Tensor
    products: Tensor
    damping: Tensor

    def __init__(
        self, num_classes: int, embed_dims: int, period: int, momentum: float = 0.99, ridge: float = 10.0
    ) -> None:
        super().__init__()
        num_classes, embed_dims = whole_number('num_classes', num_classes), whole_number('embed_dims', embed_dims)
        self.period = check_period(period)
        self.momentum = check_number(momentum, 'momentum', 0, 1)
        self.ridge = check_number(ridge, 'ridge', above=0)
        size = (self.period.bit_length() - 1) * (2**_AXES - 1)
        self.register_buffer('moments', torch.zeros(num_classes, size, size))
        self.register_buffer('products', torch.zeros(num_classes, size, embed_dims))
        self.register_buffer('damping', self.ridge * torch.eye(size), persistent=False)

    def _apply(self, fn, recurse=True):
        """Move with the model, but compute and keep state in fp32 when it is cast."""
        return super()._apply(keep_fp32(fn, widen=False), recurse)

    def design(self, cells: Tensor) -> Tensor:
        """(M, P) regressors of rows at the coordinates ``cells`` (M, 1 to 3) int64 of their grid."""
        columns = []
        for level in range(self.period.bit_length() - 1):
            sign = 1.0 - 2.0 * ((cells >> level) & 1).float()
            sign = F.pad(sign, (0, _AXES - sign.shape[1]), value=1.0)
            # products over all sets of axes: 1, x, y, xy, z, xz, yz, xyz; the first is constant
            found = torch.ones_like(sign[:, :1])
            for axis in range(_AXES):
                found = torch.cat([found, found * sign[:, axis : axis + 1]], 1)
            columns.append(found[:, 1:])
        return torch.cat(columns, 1)

    def weights(self) -> Tensor:
        """(C, P, D) what one unit of each regressor adds to an embedding."""
        factor, _ = torch.linalg.cholesky_ex(self.moments + self.damping)  # without a look at the device
        return torch.cholesky_solve(self.products, factor)

    @torch.no_grad()
    def forward(self, x: Tensor, design: Tensor) -> Tensor:
        """Unit rows (C, V, D) without what their regressors (C, V, P) tell."""
        return F.normalize(torch.baddbmm(x, design, self.weights(), alpha=-1), dim=-1)

    @torch.no_grad()
    def update(self, x: Tensor, design: Tensor, valid: Tensor) -> None:
        """Learn from unit rows (C, V, D), their regressors (C, V, P) and (C, V) bool, which slots hold one."""
        weight = valid[..., None].to(x.dtype)
        count = weight.sum(1, keepdim=True).clamp_(min=1)
        x, design = ((each - (each * weight).sum(1, keepdim=True) / count) * weight for each in (x, design))
        kept = 1 - (1 - self.momentum) * valid.any(1).to(x.dtype)[:, None, None]  # absent classes forget nothing
        self.moments.mul_(kept).baddbmm_(design.mT, design)
        self.products.mul_(kept).baddbmm_(design.mT, x)
