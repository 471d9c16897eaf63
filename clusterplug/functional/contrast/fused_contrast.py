# SPDX-License-Identifier: Apache-2.0
"""Several contrasts of the same anchors in one node of autograd, with a backward pass written by hand."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _FusedContrast(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchors, keys, problems, temperature):
        values, counted, slopes = zip(*(problem.solve(anchors, keys) for problem in problems), strict=True)
        counts = torch.stack(counted)
        share = counts.clamp(min=1)
        ctx.save_for_backward(anchors, share, *slopes)
        ctx.problems, ctx.temperature = problems, temperature
        ctx.mark_non_differentiable(counts)
        return torch.stack(values).div_(share), counts

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_values, _):
        anchors, share, *slopes = ctx.saved_tensors
        weights = (grad_values / share).div_(ctx.temperature)
        to_anchors = slopes[0] * weights[0, :, None]
        for slope, weight in zip(slopes[1:], weights[1:], strict=True):
            to_anchors.addcmul_(slope, weight[:, None])
        to_keys = None
        if ctx.needs_input_grad[1]:
            for problem, weight in zip(ctx.problems, weights, strict=True):
                if hasattr(problem, 'to_keys'):
                    part = problem.to_keys(anchors, weight)
                    to_keys = part if to_keys is None else to_keys + part
        return to_anchors, to_keys, None, None


def fused_contrast(
    anchors: Tensor, problems: Sequence, keys: Tensor | None = None, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Means over positives, and numbers of positives, both (problems, A), of each problem on the same anchors.

    Each problem forms its sums and their gradient with respect to the anchors in the same passes, so that backward
    only weighs them. No double backward.

    Args:
        anchors: (A, D) unit rows, fp32 or fp64.
        problems: objects with ``solve(anchors, keys)``, which returns sums over positives (A,), numbers of positives
            (A,) and the slope (A, D) of each sum with respect to ``anchor / temperature``; and, where a gradient
            reaches the keys, with ``to_keys(anchors, weights)``, weights (A,) that of the sums over the temperature.
        keys: (M, D) unit rows that get a gradient; None where nothing but the anchors does.
        temperature: that of all problems.
    """
    return _FusedContrast.apply(anchors, keys, list(problems), temperature)
