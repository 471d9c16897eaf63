# SPDX-License-Identifier: Apache-2.0
"""Reconstruction of the input and of every hidden layer."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from clusterplug.core.checks import check_number
from clusterplug.core.numerics import no_autocast, working_dtype
from clusterplug.registry import MODELS

__all__ = ['LayerwiseReconstructionLoss']


@MODELS.register_module()
class LayerwiseReconstructionLoss(nn.Module):
    r"""Mean squared errors of a decoder's outputs against the input and the clean features of an encoder.

    .. math:: L = \mathrm{mean}(\hat x - x)^2 + \sum_l w_l \, \mathrm{mean}(\hat h_l - h_l)^2

    Args:
        hidden_weight: w, one for all hidden layers or one for each.
        detach_targets: Stop the gradient into the clean features. The official code lets it flow; stopping it takes
            away the shortcut of shrinking the targets.

    Called with two lists of the same length, from the input outwards: ``reconstructed`` = [x_hat, h_1_hat, ...] and
    ``clean`` = [x, h_1, ...], each pair of the same shape (N, ...). Returns a 0-dim loss, in fp32 at least; 0 for
    empty tensors.

    Source: Ghasedi Dizaji et al., DEPICT, ICCV 2017, eq. 6; herandy/DEPICT (no license file), weights 1 and 0.1.

    Example:
        >>> import torch
        >>> loss = LayerwiseReconstructionLoss()
        >>> float(loss([torch.ones(2, 3), torch.ones(2, 5)], [torch.zeros(2, 3), torch.zeros(2, 5)]))
        1.100000023841858
    """

    def __init__(self, hidden_weight: float | Sequence[float] = 0.1, detach_targets: bool = False):
        super().__init__()
        given: Any = hidden_weight
        if isinstance(given, Sequence) and not isinstance(given, str):
            hidden_weight = [check_number(weight, 'hidden_weight', 0) for weight in given]
        else:
            hidden_weight = check_number(hidden_weight, 'hidden_weight', 0)
        self.hidden_weight = hidden_weight
        self.detach_targets = detach_targets

    def forward(self, reconstructed: Sequence[Tensor], clean: Sequence[Tensor]) -> Tensor:
        """Return the weighted sum of the mean squared errors."""
        if not reconstructed or len(reconstructed) != len(clean):
            raise ValueError(
                f'reconstructed and clean must hold the same layers, at least the input, got {len(reconstructed)} and '
                f'{len(clean)}'
            )
        hidden = len(clean) - 1
        weights = self.hidden_weight if isinstance(self.hidden_weight, list) else [self.hidden_weight] * hidden
        if len(weights) != hidden:
            raise ValueError(f'hidden_weight must hold one weight for each of {hidden} hidden layers, got {weights}')
        terms = []
        for number, (output, target, weight) in enumerate(zip(reconstructed, clean, [1.0, *weights], strict=True)):
            if output.shape != target.shape:
                raise ValueError(
                    f'layer {number} is reconstructed with shape {tuple(output.shape)}, not {tuple(target.shape)}; '
                    f'match kernels, strides and paddings of the decoder'
                )
            if self.detach_targets:
                target = target.detach()
            with no_autocast(output):
                dtype = working_dtype(output.dtype)
                error = (output.to(dtype) - target.to(dtype)).square().sum() / max(1, output.numel())
            terms.append(weight * error)
        return sum(terms[1:], terms[0])
