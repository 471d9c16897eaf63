# SPDX-License-Identifier: Apache-2.0
"""Within-class assignment of points to subclass centers, all classes in one padded batch."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_count, check_mask, check_number, check_points
from clusterplug.core.constants import arange
from clusterplug.core.numerics import host_checks_allowed, working_dtype
from clusterplug.core.padded_classes import PaddedClasses
from clusterplug.functional.transport._alternate_log_softmax import alternate_log_softmax
from clusterplug.functional.transport._balanced_plan import balanced_log_plan

# Between the block of valid slots and active centers and the block of the others: exp of it is 0, yet it is finite.
_APART = -1e6
# A class with one point: how strongly subclasses that had many points lately are avoided, and the least size.
_SIZE_PENALTY = 8.0
_LEAST_SIZE = 1e-3


def assign_subclasses(
    x: Tensor,
    centers: Tensor,
    *,
    valid: Tensor,
    num_active: Tensor,
    sizes: Tensor | None = None,
    epsilon: float = 0.04,
    num_iters: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Split the points of every class over the centers of that class, balanced by optimal transport.

    For each class the plan :math:`L = \mathrm{diag}(u) \exp(x p^\top / \epsilon) \mathrm{diag}(v)` with uniform
    marginals is found, for any number of points from 2 on (fewer points than centers are spread over several of them),
    and a point goes to its largest entry. One point alone fits every center equally after balancing: it goes
    to the center with the largest :math:`x \cdot p_k / \epsilon - 8 \log \mathrm{size}_k`, so that balance is kept
    over time. Without gradient; no host synchronization.

    The last slot of every class must be empty and its last center inactive: empty slots and inactive centers form a
    block of their own, so that neither the solver nor the arg max needs a mask.

    Args:
        x: (C, V + 1, D) unit rows, floating; computed in fp32 at least.
        centers: (C, K + 1, D) unit rows.
        valid: (C, V + 1) bool, slots that hold a point; False in the last.
        num_active: (C,) int64, the first so many centers of each class are used, at most K.
        sizes: (C, K + 1) fp32, running sizes of the subclasses on any scale, for classes with one point; None: such a
            point goes to the nearest center.
        epsilon: entropic regularization (kappa of the paper).
        num_iters: None: solved to the limit by Newton's method on the column potentials, in about 100 launches. A
            number: so many Sinkhorn iterations of two launches each, to compare with other code.

    Returns:
        ids: (C, V + 1) int64 row of the center within the class; K for empty slots and classes without centers.
        left_out: (C, V + 1) bool, slots without a point, or of a class without centers.
        closest: (C, V + 1) cosine to the nearest active center over epsilon, in fp32 (float64 for float64); below -1e5
            where there is none.

    Raises:
        TypeError: ``x`` or ``centers`` not floating, ``valid`` not bool.
        ValueError: shapes or devices that do not fit.

    Source: Feng et al., ICCV 2023, online clustering (step 2 of the official code); the transport of Asano et al.,
    "Self-labelling via simultaneous clustering and representation learning", ICLR 2020.

    Differs from the authors' code: theirs raises a softmax to the power 25 in float64, which is the same kernel
    (epsilon 0.04), loops over classes, stops on a host-side test (after 11 iterations on isotropic rows, 91 to 261 on
    tight ones) that a NaN ends and an inf never ends, and gives a single point an arbitrary center.
    """
    check_points(x)
    check_points(centers, 'centers')
    check_mask(valid, x.shape[:2], x.device, 'valid')
    if x.dim() != 3 or centers.dim() != 3 or (len(x), x.shape[2]) != (len(centers), centers.shape[2]):
        raise ValueError(
            f'x and centers must have shapes (C, V + 1, D) and (C, K + 1, D), got {tuple(x.shape)} and '
            f'{tuple(centers.shape)}'
        )
    if not isinstance(num_active, Tensor) or num_active.is_floating_point() or num_active.shape != x.shape[:1]:
        got = f'{num_active.dtype} {tuple(num_active.shape)}' if isinstance(num_active, Tensor) else repr(num_active)
        raise ValueError(f'num_active must be an integer tensor ({len(x)},), one number for each class, got {got}')
    if sizes is not None and (not isinstance(sizes, Tensor) or sizes.shape != centers.shape[:2]):
        raise ValueError(f'sizes must have shape {tuple(centers.shape[:2])}, one for each center, got {sizes!r}')
    check_number(epsilon, 'epsilon', above=0)
    if num_iters is not None:
        check_count(num_iters, 'num_iters')
    if host_checks_allowed(x) and len(x):
        if PaddedClasses.of(valid).of_dummy(valid).any():
            raise ValueError('valid must be False in the last slot of every class, got True; add an empty slot')
        most = PaddedClasses.of(centers).num_rows
        if not 0 <= int(num_active.min()) <= int(num_active.max()) <= most:
            raise ValueError(
                f'num_active must be 0 to K = {most} (the last center is inactive), got {num_active.tolist()}'
            )
    return split_subclasses(
        x, centers, valid=valid, num_active=num_active, sizes=sizes, epsilon=epsilon, num_iters=num_iters
    )


def split_subclasses(
    x: Tensor,
    centers: Tensor,
    *,
    valid: Tensor,
    num_active: Tensor,
    sizes: Tensor | None = None,
    epsilon: float = 0.04,
    num_iters: int | None = None,
    inactive: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`assign_subclasses` without input validation, for a training step whose shapes are its own.

    ``inactive`` (C, K + 1) bool is what ``num_active`` says, where the caller has it already.
    """
    dtype = working_dtype(x.dtype, centers.dtype)
    x, centers = x.to(dtype), centers.to(dtype)
    if inactive is None:
        inactive = arange(centers.shape[1], x.device) >= num_active[:, None]
    # (C, K + 1, V + 1)
    apart = torch.empty(*inactive.shape, valid.shape[1], dtype=dtype, device=x.device)
    torch.eq(valid[:, None], inactive[..., None], out=apart)
    logits = torch.baddbmm(apart, centers, x.mT, beta=_APART, alpha=1 / epsilon)
    best, nearest = logits.max(1)
    count = valid.sum(1, keepdim=True)
    if num_iters is None:
        plan = balanced_log_plan(logits, _column_mass(count, inactive, num_active[:, None], valid.shape[1]))
    else:
        plan = alternate_log_softmax(logits.mT, num_iters).mT
    if sizes is not None:
        nearest = logits.sub((sizes + _LEAST_SIZE).log_()[..., None], alpha=_SIZE_PENALTY).argmax(1)
    ids = torch.where(count > 1, plan.argmax(1), nearest)
    # best is the gap between the blocks for a point of a class without centers
    left_out = valid <= (best < _APART / 2)
    return PaddedClasses.of(centers).ignore(ids, left_out), left_out, best


def _column_mass(count: Tensor, inactive: Tensor, num_active: Tensor, slots: int) -> Tensor:
    """(C, K + 1) points per center: equal shares of the valid slots, and of the empty ones among inactive centers."""
    columns = torch.where(inactive, inactive.shape[1] - num_active, num_active)
    return torch.where(inactive, slots - count, count) / columns
