"""The core of Sinkhorn's iteration in the log domain for uniform marginals: two launches an iteration."""

import torch
from torch import Tensor


def alternate_log_softmax(logits: Tensor, num_iters: int, col_power: float = 1.0) -> Tensor:
    r"""Normalise columns, then rows, ``num_iters`` times; the constants of uniform marginals cancel out.

    Args:
        logits: (..., N, K) scores over epsilon.
        num_iters: column-then-row steps.
        col_power: below 1 the column scaling :math:`v = (c / E^\top u)^{p}` of transport whose column marginals are
            relaxed by :math:`\lambda\,\mathrm{KL}`, with :math:`p = \lambda / (\lambda + \epsilon)`.

    Returns:
        log(plan / row mass) (..., N, K).

    Source: Cuturi, NeurIPS 2013; for ``col_power`` Chizat et al., "Scaling algorithms for unbalanced optimal transport
    problems", 2018.
    """
    if col_power == 1:
        for _ in range(num_iters):
            logits = logits.log_softmax(-2).log_softmax(-1)
        return logits
    log_v = torch.zeros_like(logits[..., :1, :])
    rows = logits.log_softmax(-1)
    for _ in range(num_iters):
        log_v = col_power * (log_v - rows.logsumexp(-2, keepdim=True))
        rows = (logits + log_v).log_softmax(-1)
    return rows
