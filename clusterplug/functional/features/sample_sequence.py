# SPDX-License-Identifier: Apache-2.0
"""Reading a sequence between its elements."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_device, check_points
from clusterplug.core.numerics import no_autocast, working_dtype

__all__ = ['sample_sequence']


def sample_sequence(x: Tensor, positions: Tensor) -> Tensor:
    r"""Return the values of a sequence at any positions, by linear interpolation.

    .. math:: y(p) = (1 - f)\, x_{\lfloor p \rfloor} + f\, x_{\lfloor p \rfloor + 1}, \qquad f = p - \lfloor p \rfloor

    with p clamped to 0 .. L - 1: beyond the ends stands the last element. Differentiable in both arguments; at an
    element itself the slope is that of the interval behind it.

    Args:
        x: (..., L, C) sequences of L >= 1 elements.
        positions: (..., M) floating, in elements: 0 is the first, L - 1 the last.

    Returns:
        (..., M, C) in the type of ``x``, computed in fp32 at least. NaN where a position or one of the two elements
        that it lies between is NaN, and nowhere else.

    Raises:
        TypeError: A tensor of another kind.
        ValueError: Shapes or devices that do not fit.

    Source: the deformable attention of Nguyen et al., "Joint Self-Supervised Image-Volume Representation Learning with
    Intra-Inter Contrastive Clustering", AAAI 2023, arXiv 2212.01893. **Differs from the authors' code**: the package
    that it uses (deformable-attention 0.0.18) puts the coordinate on the wrong axis, so that all its samples are of
    the middle of the sequence; and it reads zeros beyond the ends.

    Example:
        >>> sample_sequence(torch.tensor([[[0.0], [10.0], [20.0]]]), torch.tensor([[0.5, 2.0, 7.0]])).flatten().tolist()
        [5.0, 20.0, 20.0]
    """
    check_points(x, 'x')
    if not isinstance(positions, Tensor) or not positions.is_floating_point():
        got = positions.dtype if isinstance(positions, Tensor) else type(positions).__name__
        raise TypeError(f'positions must be a floating tensor, got {got}; convert it with positions.float()')
    if positions.shape[:-1] != x.shape[:-2] or positions.dim() == 0:
        raise ValueError(
            f'positions must have shape (..., M) for x (..., L, C), got {tuple(positions.shape)} for {tuple(x.shape)}'
        )
    check_device(positions, x.device, 'positions')
    with no_autocast(x):
        last = x.shape[-2] - 1
        dtype = working_dtype(x.dtype, positions.dtype)
        values, p = x.to(dtype), positions.to(dtype).clamp(0, last)
        # a NaN has no index; the fraction keeps it
        low = p.detach().nan_to_num(0.0).floor().long()
        fraction = (p - low)[..., None]
        shape = (*low.shape, x.shape[-1])
        below = values.gather(-2, low[..., None].expand(shape))
        above = values.gather(-2, (low + 1).clamp(max=last)[..., None].expand(shape))
        return torch.lerp(below, above, fraction.expand(shape)).to(x.dtype)
