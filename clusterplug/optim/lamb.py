# SPDX-License-Identifier: Apache-2.0
"""The step of LAMB."""

import torch
from torch import Tensor

__all__ = ['lamb']


def lamb(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool = False,
) -> None:
    r"""Do one step of LAMB in place: AdamW's update, rescaled in each layer to the length of its weight.

    .. math:: u = \hat m / (\sqrt{\hat v} + \epsilon) + \lambda w, \qquad w \leftarrow w - \eta \,
              \frac{\lVert w \rVert}{\lVert u \rVert} u

    The ratio is 1 where either length is 0, and without weight decay (gains and biases). No synchronization.

    Args:
        params: Weights, changed in place, as are the following three.
        grads: Their gradients.
        exp_avgs: m.
        exp_avg_sqs: v.
        steps: 0-dim counters, one per weight.
        lr: eta.
        beta1: Share of the old m that is kept.
        beta2: Share of the old v that is kept.
        eps: epsilon.
        weight_decay: lambda.
        maximize: Ascend.

    Source: You et al., "Large Batch Optimization for Deep Learning", ICLR 2020 (arXiv 1904.00962), algorithm 2; as
    timm's ``Lamb`` (Apache-2.0) with ``max_grad_norm=None``: clip gradients outside, where all of them are seen.

    Example:
        >>> weight, grad = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 1.0])
        >>> m, v, step = torch.zeros(2), torch.zeros(2), torch.tensor(0.0)
        >>> lamb([weight], [grad], [m], [v], [step], lr=0.1, beta1=0.9, beta2=0.999, eps=0.0, weight_decay=0.0)
        >>> weight
        tensor([2.9000, 3.9000])
    """
    for p, grad, first, second, count in zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True):
        grad = -grad if maximize else grad
        count += 1
        first.lerp_(grad, 1 - beta1)
        second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        step = count.item()  # a counter on the CPU
        update = (first / (1 - beta1**step)) / ((second / (1 - beta2**step)).sqrt_().add_(eps))
        ratio = 1.0
        if weight_decay != 0:
            update.add_(p, alpha=weight_decay)
            lengths = torch.linalg.vector_norm(p), torch.linalg.vector_norm(update)
            ratio = torch.where((lengths[0] > 0) & (lengths[1] > 0), lengths[0] / lengths[1], 1.0)
        p.sub_(update.mul_(ratio * lr))
