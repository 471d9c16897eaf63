# SPDX-License-Identifier: Apache-2.0
"""Features without their components along given directions."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_device, check_finite, check_points
from clusterplug.core.numerics import exact_products, host_checks_allowed, working_dtype

__all__ = ['erase_directions']


def erase_directions(x: Tensor, directions: Tensor) -> Tensor:
    r"""Remove from every row of ``x`` what lies in the span of ``directions``.

    .. math:: x' = x - x\, V^{+} V, \qquad V = \text{directions}\ (R \times D),

    so :math:`V x' = 0` and what is orthogonal to all directions stays. The directions may have any length and need not
    be orthogonal: repeated, dependent and zero rows change nothing. Erasing twice equals erasing once.

    Args:
        x: (..., N, D), floating. A row with NaN or infinity becomes NaN; the other rows are not affected.
        directions: (..., R, D) one direction a row, or (D,) for one; the batch dimensions broadcast with those of
            ``x``. R = 0 returns ``x`` as it is. Two directions count as dependent when their angle is below about
            1e-5 (fp32).

    Returns:
        A tensor of the shape (leading dimensions broadcast) and type of ``x``; computed in fp32 at least.

    Raises:
        TypeError: ``x`` or ``directions`` is not a floating tensor.
        ValueError: A wrong shape or device; on the CPU also a direction that is not finite.

    Source: Venkataramanan et al., "Franca: Nested Matryoshka Clustering for Scalable Visual Representation Learning",
    arXiv 2507.14137, section on RASA; official code valeoai/Franca (Apache-2.0). **Differs from the authors' code**:
    theirs makes two directions orthonormal by Gram-Schmidt and materializes repeated copies of them for every token;
    here any number of directions, dependent ones too, in two products.

    Example:
        >>> x = torch.tensor([[3.0, 4.0, 5.0]])
        >>> erase_directions(x, torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0]]))
        tensor([[0., 0., 5.]])
    """
    check_points(x, allow_empty=True)
    if not isinstance(directions, Tensor) or not directions.is_floating_point():
        got = directions.dtype if isinstance(directions, Tensor) else type(directions).__name__
        raise TypeError(
            f'directions must be a floating tensor, got {got}; convert it with torch.as_tensor(...).float()'
        )
    if directions.dim() == 1:
        directions = directions[None]
    if directions.dim() < 2 or directions.shape[-1] != x.shape[-1]:
        raise ValueError(
            f'directions must have shape (..., R, {x.shape[-1]}) for x of {x.shape[-1]} channels, got '
            f'{tuple(directions.shape)}; give one direction a row'
        )
    check_device(directions, x.device, 'directions')
    if host_checks_allowed(x):
        check_finite(directions, 'directions')
    if 0 in (*x.shape, *directions.shape):
        return x.clone()
    with exact_products(x):
        dtype = working_dtype(x.dtype, directions.dtype)
        rows = x.to(dtype)
        frame = directions.to(dtype)
        # Unit rows: a direction must not count as small next to a long one. Divided by the largest entry first, as the
        # square of a huge or tiny one leaves fp32.
        peak = frame.detach().abs().amax(-1, keepdim=True)
        frame = frame / torch.where(peak > 0, peak, 1.0)
        frame = torch.nn.functional.normalize(frame, dim=-1)
        inverse = torch.linalg.pinv(frame, rtol=1e-5 if dtype == torch.float32 else 1e-12)
        rows = rows - (rows @ inverse) @ frame
        rows = rows - (rows @ inverse) @ frame  # once more: the first pass leaves rounding of the size of what it took
    return rows.to(x.dtype)
