# SPDX-License-Identifier: Apache-2.0
"""Coding rate reduction as a loss: features of a part span few directions, all together many."""

from torch import Tensor, nn

from clusterplug.core.checks import check_number, check_points
from clusterplug.core.numerics import working_dtype
from clusterplug.functional import coding_rate, conditional_coding_rate
from clusterplug.registry import MODELS


@MODELS.register_module()
class RateReductionLoss(nn.Module):
    r"""Spread all features over many directions and those of each part over few.

    .. math:: L = -\bigl(R(Z) - \gamma R_c(Z, \Gamma)\bigr)

    with :func:`~clusterplug.functional.coding_rate` and :func:`~clusterplug.functional.conditional_coding_rate`, both
    in fp32 or better with autocast off, and with gradients by hand. The parts are given: one-hot labels (MCR2), soft
    labels of a head, or a :func:`~clusterplug.functional.doubly_stochastic` membership of points in points (MLC).

    Args:
        eps2: squared distortion, > 0; larger = coarser.
        gamma: weight of the rate of the parts, >= 0.
        num_neighbors: of each part use only so many members, where they hold 99 % of it; None: all. See
            :func:`~clusterplug.functional.conditional_coding_rate`.

    Shapes:
        ``z`` (n, d) floating, rows of unit length as a rule (they are not normalized here); ``membership`` (n, k),
        non-negative.

    Returns of ``forward``:
        0-dim tensor in the type of ``z``. NaN where a row holds NaN or inf, so that a gradient scaler skips the step.

    Raises:
        ValueError, TypeError: arguments or inputs that do not fit.

    Source: Yu et al., NeurIPS 2020, arXiv 2006.08558; Ding et al., "Unsupervised manifold linearizing and clustering",
    ICCV 2023, arXiv 2301.01805. **Differs from the follow-up's code** LeslieTrue/CPP (``loss/loss_fn.py``): twice its
    value (no factor 1/2); a tenth of the memory; ``eps2`` acts.

    Example:
        >>> z = torch.eye(4).repeat_interleave(8, 0)
        >>> round(float(RateReductionLoss(eps2=0.5)(z, z)), 3)
        -2.197
    """

    def __init__(self, eps2: float = 0.1, gamma: float = 1.0, num_neighbors: int | None = None):
        super().__init__()
        self.eps2 = check_number(eps2, 'eps2', above=0)
        self.gamma = check_number(gamma, 'gamma', 0)
        self.num_neighbors = num_neighbors

    def forward(self, z: Tensor, membership: Tensor) -> Tensor:
        check_points(z, 'z')
        wide = z.to(working_dtype(z.dtype))
        parts = conditional_coding_rate(wide, membership, eps2=self.eps2, num_neighbors=self.num_neighbors)
        return (self.gamma * parts - coding_rate(wide, eps2=self.eps2)).to(z.dtype)

    def extra_repr(self) -> str:
        return f'eps2={self.eps2:g}, gamma={self.gamma:g}, num_neighbors={self.num_neighbors}'
