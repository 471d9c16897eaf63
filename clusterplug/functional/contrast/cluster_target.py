# SPDX-License-Identifier: Apache-2.0
"""Self-training targets of deep clustering: soft assignments, sharpened or balanced, and the Student-t assignment."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_choice, check_device, check_mask, check_number, check_points
from clusterplug.core.distributed import sum_over_ranks
from clusterplug.core.numerics import exact_products, host_checks_allowed, no_autocast, working_dtype

__all__ = ['cluster_target', 'student_assignment']

KINDS = ('dec', 'sqrt')


@torch.no_grad()
def cluster_target(
    p: Tensor, kind: str = 'dec', *, mass: Tensor | None = None, mask: Tensor | None = None, group=None
) -> Tensor:
    r"""Return the target distribution of soft assignments, each cluster divided by its mass.

    .. math:: f_k = \sum_n p_{nk}, \qquad
              q_{nk} \propto p_{nk}^2 / f_k \;\; (\text{dec}), \qquad
              q_{nk} \propto p_{nk} / \sqrt{f_k} \;\; (\text{sqrt}), \qquad \sum_k q_{nk} = 1.

    ``'sqrt'`` is the closed form of min KL(q || p) + KL(mean q || uniform) with the row sums held constant; ``'dec'``
    sharpens besides and minimizes neither. Uniform rows and balanced one-hot rows are fixed points of both.

    Args:
        p: (..., N, K), floating, non-negative, rows that sum to 1. fp16 and bf16 are computed in fp32. N = 0 is
            allowed with ``group`` only.
        kind: ``'dec'`` or ``'sqrt'``.
        mass: (..., K) or (..., 1, K) masses f to use instead of the column sums of ``p``, so that a batch can be
            turned into targets with the mass of the whole set. Their unit does not matter.
        mask: (..., N) bool, True = takes part in the mass and gets a target; other rows are 0.
        group: torch.distributed group whose ranks hold the other rows; masses are summed over it.

    Returns:
        (..., N, K) in the type of ``p``, without gradient: a target is a constant. A cluster of mass 0 stays 0, a row
        of zeros stays 0. A row with NaN or inf is NaN, and counts for nothing in the masses.

    Raises:
        TypeError: ``p`` is not a floating tensor.
        ValueError: ``kind``, ``mass`` or ``mask`` is wrong, or (on the CPU) an entry is negative.

    Source: Xie, Girshick and Farhadi, "Unsupervised Deep Embedding for Clustering Analysis", ICML 2016, eq. 3 (dec);
    Ghasedi Dizaji et al., DEPICT, ICCV 2017, eq. 8 (sqrt; the official code herandy/DEPICT, no license, runs dec).
    **Differs from the authors' code**: masked, batched, over ranks, and defined for empty clusters (theirs: NaN).

    Example:
        >>> p = torch.tensor([[0.8, 0.2], [0.6, 0.4]])
        >>> cluster_target(p)
        tensor([[0.8727, 0.1273],
                [0.4909, 0.5091]])
        >>> cluster_target(p, 'sqrt')[0]
        tensor([0.7237, 0.2763])
    """
    check_points(p, 'p', allow_empty=group is not None)
    check_choice(kind, 'kind', KINDS)
    check_mask(mask, p.shape[:-1], p.device)
    with no_autocast(p):
        rows = p.to(working_dtype(p.dtype))
        good = torch.isfinite(rows).all(-1, keepdim=True)
        if host_checks_allowed(p) and bool(((rows < 0) & good).any()):
            raise ValueError('p must not be negative, got negative entries; pass probabilities, not logits')
        takes_part = good if mask is None else good & mask[..., None]
        if mass is None:
            mass = sum_over_ranks(torch.where(takes_part, rows, 0.0).sum(-2, keepdim=True), group)
        else:
            mass = _given_mass(mass, p).to(rows.dtype)
        # Divided by its largest, so that neither tiny nor huge masses leave the range of the type.
        mass = mass / mass.amax(-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        scale = torch.where(mass > 0, mass, 1.0)
        # Each row in units of its largest entry: the proportions are the same, and no square leaves the range.
        largest = rows.amax(-1, keepdim=True)
        rows = rows / torch.where(largest > 0, largest, 1.0)
        target = rows.square() / scale if kind == 'dec' else rows / scale.sqrt()
        target = torch.where(mass > 0, target, 0.0)
        total = target.sum(-1, keepdim=True)
        target = target / torch.where(total > 0, total, 1.0)
        target = torch.where(good, target, torch.nan)
        if mask is not None:
            target = torch.where(mask[..., None], target, 0.0)
    return target.to(p.dtype)


def student_assignment(z: Tensor, centers: Tensor, *, degrees: float = 1.0) -> Tensor:
    r"""Return the soft assignment of embeddings to centers by Student's t kernel.

    .. math:: q_{nk} \propto (1 + \|z_n - \mu_k\|^2 / \nu)^{-(\nu + 1)/2}, \qquad \sum_k q_{nk} = 1.

    Args:
        z: (..., N, D), floating; fp16 and bf16 are computed in fp32.
        centers: (..., K, D).
        degrees: nu > 0, degrees of freedom; large values come near a Gaussian kernel.

    Returns:
        (..., N, K) in the type of ``z``; rows sum to 1. Differentiable in both. Never 0 / 0: it is a softmax of logs.

    Raises:
        TypeError: A tensor is not floating.
        ValueError: The dimensions differ, or ``degrees`` is not positive.

    Source: van der Maaten and Hinton, 2008; Xie et al., DEC, ICML 2016, eq. 1.

    Example:
        >>> student_assignment(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [3.0]]))
        tensor([[0.9091, 0.0909],
                [0.2857, 0.7143]])
    """
    check_points(z, 'z', allow_empty=True)
    check_points(centers, 'centers')
    check_device(centers, z.device, 'centers')
    if z.shape[-1] != centers.shape[-1]:
        raise ValueError(
            f'centers must have the {z.shape[-1]} dimensions of z, got {tuple(centers.shape)} for {tuple(z.shape)}'
        )
    degrees = check_number(degrees, 'degrees', above=0)
    with no_autocast(z), exact_products(z):
        points = z.to(working_dtype(z.dtype))
        centers = centers.to(points.dtype)
        # Moved to the mean center, so that the products do not cancel where everything lies far from the origin.
        origin = centers.detach().mean(-2, keepdim=True)
        points, centers = points - origin, centers - origin
        squared = (
            points.square().sum(-1, keepdim=True) + centers.square().sum(-1)[..., None, :] - 2 * points @ centers.mT
        ).clamp_min(0)
        logits = -(degrees + 1) / 2 * torch.log1p(squared / degrees)
        return logits.softmax(-1).to(z.dtype)


def _given_mass(mass: Tensor, p: Tensor) -> Tensor:
    if not isinstance(mass, Tensor):
        raise TypeError(f'mass must be a tensor (..., K), got {type(mass).__name__}; convert it with torch.as_tensor')
    check_device(mass, p.device, 'mass')
    if mass.dim() == p.dim() - 1 or mass.dim() == 1:
        mass = mass[..., None, :]
    if mass.shape[-1] != p.shape[-1] or mass.shape[-2] != 1 or mass.dim() != max(mass.dim(), 2):
        raise ValueError(f'mass must hold one value for each of the {p.shape[-1]} clusters, got {tuple(mass.shape)}')
    return mass
