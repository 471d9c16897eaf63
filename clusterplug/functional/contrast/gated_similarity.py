# SPDX-License-Identifier: Apache-2.0
"""Similarity of anchors and keys inside the channels that a gate of each anchor opens."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_device, check_points
from clusterplug.core.numerics import exact_products, working_dtype

__all__ = ['gated_similarity']


def gated_similarity(anchors: Tensor, keys: Tensor, gates: Tensor, *, normalize_in_subspace: bool = True) -> Tensor:
    r"""Return the cosine of every anchor with every key, both seen through the gate of the anchor.

    .. math::
        S_{bn} = \frac{\langle z_b \circ g_b,\ k_n \circ g_b \rangle}{\|z_b \circ g_b\|\, \|k_n \circ g_b\|}
        = \frac{(z_b \circ g_b^2) \cdot k_n}{\|z_b \circ g_b\| \sqrt{g_b^2 \cdot k_n^2}}

    computed as two products (B, D) x (D, N); the tensor (B, N, D) of gated keys is never made. The lengths of anchors,
    keys and gates do not matter.

    Args:
        anchors: (..., B, D) embeddings.
        keys: (..., N, D) embeddings that they are compared with.
        gates: (..., B, D) one gate an anchor, usually within 0 .. 1; channels with 0 do not count.
        normalize_in_subspace: False: anchors and keys get unit length before they are gated, and none after it,
            :math:`\hat z_b \circ g_b^2 \cdot \hat k_n`: one product. The gate then scales the similarity too.

    Returns:
        (..., B, N) in the type of ``anchors``, computed in fp32 at least; within rounding of -1 .. 1. 0, without
        gradient, where anchor or key are 0 in the open channels. NaN in the row of an anchor (or gate) and in the
        column of a key that are not finite, and nowhere else.

    Raises:
        TypeError: A tensor of another kind.
        ValueError: Shapes or devices that do not fit.

    Source: Wu et al., "Rethinking Positive Pairs in Contrastive Learning" (Hydra, SimLAP), arXiv 2410.18200; written
        from
    descriptions of erow/vitookit and erow/FastSSL. **Differs from the authors' code**: theirs does not normalize in the
    subspace (``normalize_in_subspace=False``), or makes the tensor (B, N, D).

    Example:
        >>> z, k = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, -1.0], [1.0, 1.0]])
        >>> gated_similarity(z, k, torch.tensor([[1.0, 0.0]])).tolist(), gated_similarity(z, k, torch.ones(1,
        2)).tolist() ([[1.0, 1.0]], [[0.0, 1.0]])
    """
    for tensor, name in ((anchors, 'anchors'), (keys, 'keys'), (gates, 'gates')):
        check_points(tensor, name, allow_empty=True)
        check_device(tensor, anchors.device, name)
    if anchors.shape[-1] != keys.shape[-1] or anchors.shape[:-2] != keys.shape[:-2] or 0 in anchors.shape[-1:]:
        raise ValueError(
            f'anchors and keys must have shapes (..., B, D) and (..., N, D) with D >= 1, got {tuple(anchors.shape)} '
            f'and {tuple(keys.shape)}'
        )
    if gates.shape != anchors.shape:
        raise ValueError(f'gates must have the shape of the anchors, {tuple(anchors.shape)}, got {tuple(gates.shape)}')
    with exact_products(anchors):
        dtype = working_dtype(anchors.dtype, keys.dtype, gates.dtype)
        z, k = _scaled(anchors.to(dtype)), _scaled(keys.to(dtype))
        if not normalize_in_subspace:
            squared = gates.to(dtype).square()
            return ((_unit(z) * squared) @ _unit(k).mT).to(anchors.dtype)
        squared = _scaled(gates.to(dtype)).square()
        gated = z * squared
        lengths = (gated * z).sum(-1, keepdim=True) * (squared @ k.square().mT)
        # a comparison with NaN is False: what is not finite passes
        nothing = lengths <= torch.finfo(dtype).tiny
        found = (gated @ k.mT) * lengths.masked_fill(nothing, 1.0).rsqrt()
        return found.masked_fill(nothing, 0.0).to(anchors.dtype)


def _scaled(x: Tensor) -> Tensor:
    """Rows with a largest entry of 1, so that squares neither overflow nor vanish; NaN where one is not finite."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    return x / largest.masked_fill(largest == 0, 1.0)


def _unit(x: Tensor) -> Tensor:
    """Rows of unit length; 0, without gradient, where they are 0."""
    squares = x.square().sum(-1, keepdim=True)
    nothing = squares == 0
    return x.masked_fill(nothing, 0.0) * squares.masked_fill(nothing, 1.0).rsqrt()
