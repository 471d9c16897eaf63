# SPDX-License-Identifier: Apache-2.0
"""How the clustering loss splits the anchors of a class over its centers."""

from torch import Tensor, nn

from clusterplug.core.checks import check_number, whole_number
from clusterplug.functional.transport import split_subclasses
from clusterplug.losses.position_regression import check_period
from clusterplug.memory import SubclassMemory
from clusterplug.registry import MODELS


@MODELS.register_module()
class BalancedAssigner(nn.Module):
    """Split the anchors or regions of every class over its centers in equal shares (:func:`assign_subclasses`).

    Part of :class:`~clusterplug.losses.PointClusterLoss` (``assigner=``). Another assigner is a module with the same
    ``forward`` and the attribute ``cell_size``.

    Args:
        epsilon: entropic regularization.
        num_iters: None: solved to the limit; a number: so many Sinkhorn iterations, to compare with other code.
        cell_size: with ``regions='cell'`` of the loss, and where ``'instance'`` finds no object: edge of the cells
            that are connected to regions, in the units of the coordinates (m). Images have pixels instead.
        position_period: for taps with a grid behind strided layers: what an embedding tells of the position of its row
            inside cells of so many rows (a power of two: stride of the deepest layer over that of the tap) is removed
            before the assignment (:class:`~clusterplug.losses.PositionRegression`). None: it is not.

    Source: Feng et al., ICCV 2023, online clustering (step 2 of the official code, FengZicai/Cluster3DSeg, MIT).

    Differs from the authors' code: see :func:`~clusterplug.functional.assign_subclasses`.
    """

    def __init__(
        self,
        epsilon: float = 0.04,
        num_iters: int | None = None,
        cell_size: float = 1.0,
        position_period: int | None = None,
    ):
        super().__init__()
        self.epsilon = check_number(epsilon, 'epsilon', 1e-3, 1e4)
        self.num_iters = whole_number('num_iters', num_iters, optional=True)
        self.cell_size = check_number(cell_size, 'cell_size', above=0)
        self.position_period = None if position_period is None else check_period(position_period)

    def forward(self, x: Tensor, valid: Tensor, memory: SubclassMemory) -> tuple[Tensor, Tensor, Tensor]:
        """Assign without gradient and without host synchronization.

        Args:
            x: (C, V + 1, D) fp32 unit rows, empty ones in the last slot.
            valid: (C, V + 1) bool.
            memory: with the centers.

        Returns:
            (C, V + 1) int64 subclass within the class, K for none; (C, V + 1) bool, rows without one; (C, V + 1) fp32
            proportional to the squared distance to the nearest center in use, at most 0 for copies of a center.
        """
        ids, left_out, closest = split_subclasses(
            x,
            memory.center_store,
            valid=valid,
            num_active=memory.num_seeded,
            sizes=memory.sizes,
            epsilon=self.epsilon,
            num_iters=self.num_iters,
            inactive=memory.unused,
        )
        # 1 - cosine is half the squared distance; an anchor within 1e-6 of a center is a copy of it
        return ids, left_out, (1 - 1e-6) / self.epsilon - closest
