# SPDX-License-Identifier: Apache-2.0
"""Weight of a sample in the loss from the likelihood of its appearance."""

from torch import Tensor

from clusterplug.core.checks import check_number
from clusterplug.core.numerics import host_checks_allowed, no_autocast, working_dtype

__all__ = ['likelihood_weights']


def likelihood_weights(p: Tensor, *, eta: float, gamma: float) -> Tensor:
    r"""Return the weight of samples of likelihood ``p``: 1 for what was never seen, least for what is common.

    .. math:: w(p) = \frac{\eta + (1 - p)^\gamma}{\eta + 1}.

    It falls with p from w(0) = 1 to w(1) = eta / (eta + 1). gamma = 0 gives exactly 1, so that a weighted loss is the
    plain one bit for bit; eta = 0 is the modulator of the focal loss.

    Args:
        p: (...) likelihoods from 0 to 1, floating. fp16 and bf16 are computed in fp32. No gradient passes through it.
        eta: Floor of the weights, >= 0.
        gamma: How fast the weight falls, >= 0.

    Returns:
        (...) weights in the type of ``p``; NaN where p is NaN on a device whose values are not looked at.

    Raises:
        TypeError: ``p`` is not a floating tensor.
        ValueError: A negative ``eta`` or ``gamma``; on the CPU also a value outside 0 to 1, or NaN (elsewhere looking
            would be a synchronization).

    Source: Shrivastava et al., "DatasetEquity", ICCV 2023 Workshops, section 3 (arXiv 2308.09878); official code
    towardsautonomy/DatasetEquity (no license). **Differs from the authors' code**: nothing in the formula. They call
    the weighted loss "Generalized Focal Loss"; it is not the loss of that name in mmdet.

    Example:
        >>> likelihood_weights(torch.tensor([0.0, 0.1, 1.0]), eta=0.5, gamma=5.0)
        tensor([1.0000, 0.7270, 0.3333])
    """
    if not isinstance(p, Tensor) or not p.is_floating_point():
        got = p.dtype if isinstance(p, Tensor) else type(p).__name__
        raise TypeError(f'p must be a floating tensor, got {got}; convert it with torch.as_tensor(p, dtype=...)')
    eta, gamma = check_number(eta, 'eta', 0), check_number(gamma, 'gamma', 0)
    p = p.detach()
    if host_checks_allowed(p) and p.numel() and not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(
            f'p must be from 0 to 1, got values from {float(p.min()):g} to {float(p.max()):g}; divide the sizes of '
            f'clusters by the largest'
        )
    with no_autocast(p):
        rare = (1 - p.to(working_dtype(p.dtype))).pow(gamma)
        return ((eta + rare) / (eta + 1)).to(p.dtype)
