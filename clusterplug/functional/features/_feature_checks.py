# SPDX-License-Identifier: Apache-2.0
"""Checks at the door of feature clustering."""

from torch import Tensor

from clusterplug.core.checks import check_device, check_points

WEIGHTINGS = ('mean', 'similarity')


def check_feature_sets(x: Tensor, values: Tensor, centers: Tensor, center_values: Tensor) -> None:
    """Raise unless the four are floating (..., N, D), (..., N, D'), (..., M, D), (..., M, D') with M >= 1."""
    sets = (('x', x), ('values', values), ('centers', centers), ('center_values', center_values))
    for name, each in sets:
        check_points(each, name, allow_empty=True)
        check_device(each, x.device, name)
    rows = (('values', values, x, 'x'), ('center_values', center_values, centers, 'centers'))
    for name, each, other, other_name in rows:
        if each.shape[:-1] != other.shape[:-1]:
            raise ValueError(
                f'{name} must have a row for each of {other_name}, {tuple(other.shape[:-1])}, got '
                f'{tuple(each.shape[:-1])}'
            )
    if centers.shape[:-2] != x.shape[:-2] or centers.shape[-1] != x.shape[-1]:
        raise ValueError(
            f'centers must have the batch and the channels of x, {tuple(x.shape[:-2])} and {x.shape[-1]}, got '
            f'{tuple(centers.shape[:-2])} and {centers.shape[-1]}'
        )
    if center_values.shape[-1] != values.shape[-1]:
        raise ValueError(
            f'center_values must have the channels of values, {values.shape[-1]}, got {center_values.shape[-1]}'
        )
    if centers.shape[-2] < 1 or x.shape[-1] < 1:
        raise ValueError(f'centers must hold at least one center of at least one channel, got {tuple(centers.shape)}')


def check_projection(projection: tuple[Tensor, Tensor] | None, x: Tensor, values: Tensor) -> None:
    """Raise unless it is None or a weight (D, D') and a bias (D,) that lead from the values (..., D') to x (..., D)."""
    if projection is None:
        return
    shapes = tuple(tuple(each.shape) for each in projection)
    wanted = ((x.shape[-1], values.shape[-1]), (x.shape[-1],))
    if shapes != wanted:
        raise ValueError(
            f'projection must be a weight and a bias that make x of values, of shapes {wanted[0]} and {wanted[1]}, got '
            f'{" and ".join(map(str, shapes))}'
        )


def check_weighting(weighting: str) -> None:
    """Raise unless ``weighting`` is known."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f'weighting must be one of {", ".join(WEIGHTINGS)}, got {weighting!r}')
