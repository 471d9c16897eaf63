# SPDX-License-Identifier: Apache-2.0
"""Relaxed Bernoulli masks with gradients."""

import torch
from torch import Tensor

from clusterplug.core.checks import check_number
from clusterplug.core.numerics import no_autocast, working_dtype

__all__ = ['concrete_mask']

_EPS = torch.finfo(torch.float32).eps / 2


def concrete_mask(logits: Tensor, temperature: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
    r"""Draw a mask between 0 and 1 whose entries are above a half with the probability of their logit.

    .. math:: m = \mathrm{sigmoid}\!\left(\frac{\log u - \log(1 - u) + x}{\tau}\right), \quad u \sim U(0, 1), \qquad
              P(m > 1/2) = \mathrm{sigmoid}(x).

    The draw is a differentiable function of the logits: the relaxed Bernoulli ("Concrete") distribution. It tends to a
    mask of 0 and 1 for small temperatures, and to 1/2 everywhere for large ones.

    Args:
        logits: x (...), any shape. -inf gives 0, +inf gives 1, NaN stays NaN; no entry touches another one.
        temperature: tau > 0.
        generator: Of the device of the logits; None = torch's own of that device.

    Returns:
        (...) in the type of ``logits``; drawn in fp32.

    Raises:
        TypeError: ``logits`` is not floating, or ``generator`` no generator.
        ValueError: A temperature that is not positive; a generator of another device.

    Source: Tang et al., "Concrete Subspace Learning based Interference Elimination for Multi-task Model Fusion", 2023
    (arXiv 2312.06173), section 4.2; official code tanganke/subspace_fusion (no license file) and the port
    tanganke/fusion_bench (MIT). The distribution: Maddison, Mnih, Teh, ICLR 2017. **Differs from the authors' code**:
    a generator instead of the global seed; u never is 0 or 1, of which the logarithm is infinite.

    Example:
        >>> mask = concrete_mask(torch.tensor([-50.0, 50.0]), 0.5, torch.Generator().manual_seed(0))
        >>> mask.round()
        tensor([0., 1.])
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f'logits must be a floating tensor, got {getattr(logits, "dtype", type(logits).__name__)}')
    temperature = check_number(temperature, 'temperature', above=0)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f'generator must be a torch.Generator or None, got {type(generator).__name__}')
    if generator is not None and generator.device.type != logits.device.type:
        raise ValueError(f'generator must be of the device of the logits, {logits.device}, got {generator.device}')
    with no_autocast(logits):
        # in fp32 whatever comes in, so that the same seed gives the same mask
        uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float32, device=logits.device)
        noise = uniform.clamp_(_EPS, 1 - _EPS).logit_()
        return torch.sigmoid((noise + logits.to(working_dtype(logits.dtype))) / temperature).to(logits.dtype)
