"""Within-class assignment of points to subclass centers, all classes in one padded batch."""

import torch
from torch import Tensor

from clusterplug.functional._alternate_log_softmax import alternate_log_softmax
from clusterplug.functional._constants import arange

# Between the block of what takes part and the block of what does not: exp of it is 0, yet it is finite.
_APART = -1e6


def assign_subclasses(
    x: Tensor,
    centers: Tensor,
    *,
    valid: Tensor,
    num_active: Tensor,
    epsilon: float = 0.04,
    num_iters: int = 16,
    balance: float = 1.0,
    min_points_per_cluster: int = 2,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Split the points of every class over the centers of that class, balanced by optimal transport.

    For each class the plan :math:`L = \mathrm{diag}(u) \exp(x p^\top / \epsilon) \mathrm{diag}(v)` with uniform
    marginals is found by Sinkhorn iterations in the log domain; a point goes to its largest entry. A class with fewer
    than ``min_points_per_cluster`` points per center cannot be balanced in a useful way: its points go to the nearest
    center. Without gradient; no host synchronisation; two launches an iteration.

    The last slot of every class must be empty and its last center out of use: what takes no part forms a block of its
    own with them, so that neither the iteration nor the arg max needs a mask.

    Args:
        x: (C, V + 1, D) unit rows, fp32.
        centers: (C, K + 1, D) unit rows.
        valid: (C, V + 1) bool, slots that hold a point; False in the last.
        num_active: (C,) int64, the first so many centers of each class take part, at most K.
        epsilon: entropic regularisation (kappa of the paper).
        num_iters: Sinkhorn iterations. 16 give 95 to 99.9 % of the labels of the limit, 50 more than 99 %.
        balance: 1 = equal shares (the paper); below 1 the shares are only pulled towards equal ones (the column
            marginals are relaxed by a Kullback-Leibler penalty, ``balance`` is the exponent of its scaling), so that
            rare subclasses stay small; 0 = nearest center.
        min_points_per_cluster: see above.

    Returns:
        ids: (C, V + 1) int64 row of the center within the class; K for empty slots and classes without centers.
        left_out: (C, V + 1) bool, slots without a point, or of a class without centers.
        closest: (C, V + 1) cosine to the nearest active center over epsilon; below -1e5 where there is none.

    Source: Feng et al., ICCV 2023, online clustering (step 2 of the official code); the transport of Asano et al.,
    "Self-labelling via simultaneous clustering and representation learning", ICLR 2020.

    Differs from the authors' code: theirs raises a softmax to the power 25 in float64, which is the same kernel
    (epsilon 0.04), loops over classes, stops on a host-side test (typically after 11 iterations) that a NaN ends and
    an inf never ends, and solves with as few as one point.
    """
    num_active = num_active[:, None]
    inactive = arange(centers.shape[1], x.device) >= num_active
    apart = (valid[..., None] == inactive[:, None]) * _APART
    logits = torch.baddbmm(apart, x, centers.mT, alpha=1 / epsilon)
    best, nearest = logits.max(-1)
    if balance == 0:
        ids = nearest
    else:
        plan = alternate_log_softmax(logits, num_iters, col_power=balance)
        enough = valid.sum(1, keepdim=True) >= num_active * min_points_per_cluster
        ids = torch.where(enough, plan.argmax(-1), nearest)
    # best is the gap between the blocks for a point of a class without centers
    left_out = valid <= (best < _APART / 2)
    return ids.masked_fill(left_out, centers.shape[1] - 1), left_out, best
