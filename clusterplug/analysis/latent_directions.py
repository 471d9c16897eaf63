# SPDX-License-Identifier: Apache-2.0
"""Directions of a generator's input that change its output most, alone or inside a region."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import jvp, vmap

from clusterplug.core.checks import check_count
from clusterplug.core.numerics import plain_attention, recordable
from clusterplug.functional import erase_directions, jacobian_svd

__all__ = ['LatentDirections', 'latent_directions', 'null_space_projection', 'traverse']


class LatentDirections(NamedTuple):
    """Directions of the input, and what a unit step along each changes, to first order."""

    directions: Tensor  # (r, *x.shape), of length 1
    values: Tensor  # (r,) length of the change of the output; inside the region, where there is one
    outside: Tensor  # (r,) length of the change outside the region; 0 without one


@torch.inference_mode(False)
@torch.no_grad()
def latent_directions(
    fn: Callable[[Tensor], Tensor],
    x: Tensor,
    rank: int,
    *,
    mask: Tensor | None = None,
    null_rank: int = 10,
    **options: Any,
) -> LatentDirections:
    r"""Return the leading right singular vectors of a generator's Jacobian: its strongest local directions.

    With a region, those of the output inside it without their part in the leading ``null_rank`` right singular vectors
    of the output outside (null-space projection): edits that leave the rest alone.

    Args:
        fn: ``x -> output``, of one latent code or one noisy sample without a batch, as in
            :func:`~clusterplug.functional.jacobian_svd`: a generator, or a denoiser at one noise level, where the
            rank is low at intermediate noise.
        x: Where.
        rank: r, number of directions.
        mask: Bool, broadcasts with the output; True = the region that may change.
        null_rank: Directions of the rest that are taken out; 0 takes none.
        **options: Of :func:`~clusterplug.functional.jacobian_svd` (``method``, ``num_iters``, ``chunk_size``, ...).

    Returns:
        LatentDirections. Those of a region are of length 1, but no longer orthogonal; one of which nothing is left is 0
        and warned of.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`~clusterplug.functional.jacobian_svd`; a mask that is True, or
            False, everywhere.

    Source: Chen et al. 2024 (LOCO Edit, arXiv 2409.02374); code ChicyChen/LOCO-Edit (Apache-2.0); Wang et al. 2024
    (arXiv 2409.02426), section 5. **Differs from the authors' code**: V (V^T v) instead of the n x n matrix V V^T.

    Example:
        >>> fn = lambda z: torch.stack([3 * z[0] + z[1], z[0]])
        >>> found = latent_directions(fn, torch.zeros(2), 1, mask=torch.tensor([True, False]), null_rank=1)
        >>> found.directions, found.values, found.outside
        (tensor([[0., 1.]]), tensor([1.]), tensor([0.]))
    """
    x = recordable(x) if isinstance(x, Tensor) else x
    found = jacobian_svd(fn, x, rank, mask=mask, **options)
    directions = found.v.mT.reshape(-1, *x.shape)
    if mask is None:
        return LatentDirections(directions, found.s, torch.zeros_like(found.s))
    null_rank = check_count(null_rank, 'null_rank')
    region = mask.expand(fn(x).shape)
    inside = int(region.sum())
    if inside in (0, region.numel()):
        raise ValueError(f'mask must be True in a part of the output, got {inside} of {region.numel()} numbers')
    if null_rank:
        rest = jacobian_svd(fn, x, min(null_rank, x.numel(), region.numel()), mask=~mask, **options)
        # directions that do not reach the rest at all need not be avoided
        reach = rest.s > rest.s[:1] * torch.finfo(rest.s.dtype).eps ** 0.5
        directions = null_space_projection(directions, rest.v.mT[reach].reshape(-1, *x.shape))
    with plain_attention():
        change = vmap(lambda each: jvp(fn, (x,), (each,))[1])(directions)
    values, outside = (torch.where(part, change, 0.0).flatten(1).norm(dim=1).to(x.dtype) for part in (region, ~region))
    return LatentDirections(directions, values, outside)


def null_space_projection(directions: Tensor, null: Tensor) -> Tensor:
    r"""Return directions without their part in the span of others, at length 1.

    .. math:: d' = (I - V V^\top) d \, / \, \| (I - V V^\top) d \|, \qquad V \text{ a basis of the span}

    Args:
        directions: (r, ...) floating.
        null: (k, ...) directions to avoid, of any length, not necessarily independent; k = 0 avoids none.

    Returns:
        (r, ...) in the type of ``directions``; 0, with a warning, for a direction in the span.

    Raises:
        TypeError, ValueError: Shapes that do not fit, or numbers that are not finite.

    Source: as :func:`latent_directions`.

    Example:
        >>> null_space_projection(torch.tensor([[1.0, 1.0]]), torch.tensor([[5.0, 0.0]]))
        tensor([[0., 1.]])
    """
    for value, name in ((directions, 'directions'), (null, 'null')):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f'{name} must be a floating tensor, got {getattr(value, "dtype", type(value).__name__)}')
    if directions.dim() < 2 or directions.shape[1:] != null.shape[1:]:
        raise ValueError(f'null must have shape (k, *{tuple(directions.shape[1:])}), got {tuple(null.shape)}')
    flat, avoid = directions.flatten(1).double(), null.flatten(1).double()
    left = erase_directions(flat, avoid)
    before, after = flat.norm(dim=1, keepdim=True), left.norm(dim=1, keepdim=True)
    gone = after <= 1e-6 * before
    if bool(gone.any()):
        warnings.warn(
            f'nothing is left of directions {gone[:, 0].nonzero()[:, 0].tolist()} outside the span to avoid; lower '
            f'null_rank or choose a larger region',
            stacklevel=2,
        )
    return torch.where(gone, 0.0, left / torch.where(gone, 1.0, after)).to(directions.dtype).view(directions.shape)


@torch.no_grad()
def traverse(fn: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor, steps: Sequence[float]) -> Tensor:
    """Return the outputs at ``x + step * direction``, for all directions and steps: (r, len(steps), *output).

    Args:
        fn: ``x -> output`` of one code without a batch.
        x: The start.
        directions: (r, *x.shape).
        steps: Numbers, such as ``[-5, 0, 5]``.

    Raises:
        ValueError: Shapes that do not fit, or no step.

    Example:
        >>> traverse(lambda z: z.sum(), torch.zeros(2), torch.eye(2), [-1.0, 2.0])
        tensor([[-1.,  2.],
                [-1.,  2.]])
    """
    if tuple(directions.shape[1:]) != tuple(x.shape):
        raise ValueError(f'directions must have shape (r, *{tuple(x.shape)}), got {tuple(directions.shape)}')
    if not len(steps) or not len(directions):
        raise ValueError('steps and directions must hold at least one each')
    return torch.stack([torch.stack([fn(x + float(step) * each) for step in steps]) for each in directions])
