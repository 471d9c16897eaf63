# SPDX-License-Identifier: Apache-2.0
"""Discrimination of several right classes from many wrong ones, with both sides bounded on their own."""

import math

import torch
from torch import Tensor

from clusterplug.core.checks import check_device, check_number, check_points
from clusterplug.core.numerics import no_autocast, working_dtype

__all__ = ['multilabel_discrimination']

# Under the root of sqrt(1 - cos^2), whose slope at 1 is infinite: cosines count as 1e-7 away from 1 there.
_LEAST_SINE_SQUARED = 2e-7


def multilabel_discrimination(positive: Tensor, negative: Tensor, *, scale: float = 1.0, margin: float = 0.0) -> Tensor:
    r"""Return the multi-label cluster discrimination loss of each row.

    .. math:: \log\Big(1 + \sum_i e^{-s_i^+}\Big) + \log\Big(1 + \sum_j e^{s_j^-}\Big), \qquad
              s^+ = \gamma \cos(\theta^+ + m), \quad s^- = \gamma \cos\theta^-,

    which is log(1 + PN + P + N), factored: the pulls of all positives together, and the pushes of all negatives
    together, are below gamma each, whatever their numbers.

    Args:
        positive: (N, l) scores of a row's own classes, floating; +inf pads a row with fewer of them.
        negative: (N, S) scores of other classes, floating; -inf pads. l and S may be 0.
        scale: gamma > 0, on both sides.
        margin: m in radians, 0 <= m < pi / 2, on the positives, at every scale. With a margin the positives must be
            cosines (held within -1 and 1). Where theta + m exceeds pi, cos(theta) - m sin(m) is used, which goes on
            falling.

    Returns:
        (N,) in the type of ``positive``, computed in fp32 at least. A row without positives has 0 for the first term.
        NaN in a row makes the loss of that row NaN. Padding gets the gradient 0.

    Raises:
        TypeError: A score that is not a floating tensor; ``scale`` or ``margin`` not a number.
        ValueError: Shapes that do not fit, ``scale`` or ``margin`` out of range.

    Source: An, Yang, Dai, Feng, Deng, "Multi-label Cluster Discrimination for Visual Representation Learning", ECCV
    2024, section 3.3, arXiv 2407.17331; margin as in the official repository of the predecessor, deepglint/unicom
    (MIT), ``unicom/partial_fc.py``. **Differs from the authors' code**: the loss itself is not in their repository, and
    scale and margin are not in the paper's formula. Their margin passes the gradient of cos(theta + m) straight through
    to the cosine; here it is the true derivative. Theirs skips the margin at scale 1; here it always acts.

    Example:
        >>> multilabel_discrimination(torch.zeros(1, 1), torch.zeros(1, 1))  # 2 ln 2
        tensor([1.3863])
        >>> multilabel_discrimination(torch.tensor([[2.0, torch.inf]]), torch.tensor([[-1.0]]))
        tensor([0.4402])
    """
    check_points(positive, 'positive', allow_empty=True)
    check_points(negative, 'negative', allow_empty=True)
    if positive.dim() != 2 or negative.dim() != 2 or len(positive) != len(negative):
        raise ValueError(
            f'positive and negative must have shapes (N, l) and (N, S) with one N, got {tuple(positive.shape)} and '
            f'{tuple(negative.shape)}; give the scores of each row on both sides'
        )
    check_device(negative, positive.device, 'negative')
    scale = check_number(scale, 'scale', above=0)
    margin = _check_margin(margin)
    with no_autocast(positive):
        dtype = working_dtype(positive.dtype, negative.dtype)
        own, others = positive.to(dtype), negative.to(dtype)
        padding, unused = own == math.inf, others == -math.inf
        # A finite stand-in before margin and scale: their slopes at infinity are NaN.
        own = cosine_margin(torch.where(padding, 0.0, own), margin) if margin else torch.where(padding, 0.0, own)
        own = torch.where(padding, -math.inf, -scale * own)
        others = torch.where(unused, -math.inf, scale * torch.where(unused, 0.0, others))
        zero = own.new_zeros(len(own), 1)
        loss = torch.cat([zero, own], -1).logsumexp(-1) + torch.cat([zero, others], -1).logsumexp(-1)
    return loss.to(positive.dtype)


def _check_margin(margin: float) -> float:
    """Return the margin, an angle in radians."""
    return check_number(margin, 'margin', 0, 1.57, hint='it is an angle in radians; 0.3 is the usual one')


def cosine_margin(cosine: Tensor, margin: float) -> Tensor:
    r"""Return cos(theta + m) of cos(theta), and cos(theta) - m sin(m) where theta + m > pi.

    Args:
        cosine: Any shape, floating; held within -1 and 1.
        margin: m in radians, 0 <= m < pi / 2.

    Returns:
        The shape and type of ``cosine``. The gradient is the true one, with the sine held above 4.5e-4.

    Raises:
        ValueError: The margin is out of range.

    Source: Deng et al., "ArcFace", CVPR 2019. **Differs from deepglint/unicom (MIT)**: see
    :func:`multilabel_discrimination`.

    Example:
        >>> cosine_margin(torch.tensor([0.0, -1.0]), 0.3)
        tensor([-0.2955, -1.0887])
    """
    margin = _check_margin(margin)
    held = cosine.clamp(-1, 1)
    sine = (1 - held.square()).clamp(min=_LEAST_SINE_SQUARED).sqrt()
    moved = held * math.cos(margin) - sine * math.sin(margin)
    return torch.where(held > -math.cos(margin), moved, held - margin * math.sin(margin))
