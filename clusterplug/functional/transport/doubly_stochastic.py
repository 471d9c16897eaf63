# SPDX-License-Identifier: Apache-2.0
"""The doubly stochastic matrix nearest to a kernel in relative entropy: a soft membership of points in points."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clusterplug.core.checks import check_count, check_number, check_points
from clusterplug.core.numerics import host_checks_allowed, no_autocast, working_dtype
from clusterplug.functional.transport.sinkhorn import sinkhorn_log_plan

__all__ = ['doubly_stochastic']


def doubly_stochastic(kernel: Tensor, *, epsilon: float, num_iters: int, symmetric: bool = False) -> Tensor:
    r"""Scale the exponential of a kernel so that its rows and its columns sum to 1.

    .. math:: \Gamma = \operatorname{argmax}_{\Gamma \ge 0,\, \Gamma 1 = \Gamma^\top 1 = 1} \langle \Gamma, K \rangle
              - \epsilon \sum_{ij} \Gamma_{ij} \log \Gamma_{ij} = \mathrm{diag}(u)\, e^{K / \epsilon}\, \mathrm{diag}(v)

    For a kernel of similarities between points, row i is a distribution over the points of the subspace or cluster of
    i. Large ``epsilon`` gives 1 / n everywhere, small ``epsilon`` the best permutation (the identity, where each point
    is most like itself).

    Args:
        kernel: (..., n, n) floating, larger = more alike. fp16 and bf16 are computed in fp32.
        epsilon: Strength of the entropy, > 0, in units of the kernel.
        num_iters: Number of iterations, >= 1.
        symmetric: The kernel is symmetric. Then one potential suffices, averaged with its own update,
            ``f <- (f - LSE_j(K / epsilon + f_j)) / 2``: half the work, an exactly symmetric result, and a gradient
            from the fixed point (one linear solve) instead of from recorded iterations, exact at convergence.

    Returns:
        (..., n, n) in the type of ``kernel``. Without ``symmetric`` rows sum to 1 to rounding and columns to the
        accuracy reached. A problem with NaN gives NaN, alone.

    Raises:
        TypeError: If ``kernel`` is not a floating tensor.
        ValueError: If it is not square, an option is out of range or (looked at on the CPU) ``symmetric`` is set and
            it is not.

    Source: Sinkhorn, 1964; Zass and Shashua, "Doubly stochastic normalization for spectral clustering", NIPS 2006;
    as membership Ding et al., ICCV 2023, arXiv 2301.01805. **Differs from the follow-up's code** LeslieTrue/CPP: its 5
    half iterations leave column sums 1 % off and cut the gradient; the number of iterations counts rows and columns.

    Example:
        >>> doubly_stochastic(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), epsilon=0.5, num_iters=10)
        tensor([[0.8808, 0.1192],
                [0.1192, 0.8808]])
    """
    check_points(kernel, 'kernel')
    if kernel.shape[-1] != kernel.shape[-2]:
        raise ValueError(f'kernel must be square (..., n, n), got {tuple(kernel.shape)}; for others use sinkhorn')
    epsilon = check_number(epsilon, 'epsilon', above=0)
    num_iters = check_count(num_iters, 'num_iters', 1)
    with no_autocast(kernel):
        values = kernel.to(working_dtype(kernel.dtype))
        if not symmetric:
            # a plan of mass 1 with uniform marginals, times n
            log_plan = sinkhorn_log_plan(values, epsilon=epsilon, num_iters=num_iters)
            return (log_plan.exp() * kernel.shape[-1]).to(kernel.dtype)
        if host_checks_allowed(kernel):
            off = (values.detach() - values.detach().mT).abs().amax((-2, -1))
            size = values.detach().abs().amax((-2, -1))
            if bool((off > 1e-3 * size).any()):
                raise ValueError('kernel must be symmetric with symmetric=True, got one that is not; drop the option')
        return _Symmetric.apply(values, epsilon, num_iters).to(kernel.dtype)


class _Symmetric(torch.autograd.Function):
    """exp(K / epsilon + f_i + f_j), with the gradient of the fixed point."""

    @staticmethod
    def forward(ctx, kernel, epsilon, num_iters):
        scaled = (kernel + kernel.mT) / (2 * epsilon)
        # start: as if each row were alone
        potential = -torch.logsumexp(scaled, -1) / 2
        for _ in range(num_iters):
            potential = (potential - torch.logsumexp(scaled + potential.unsqueeze(-2), -1)) / 2
        plan = (scaled + (potential.unsqueeze(-1) + potential.unsqueeze(-2))).exp()
        ctx.save_for_backward(plan)
        ctx.epsilon = epsilon
        return plan

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (plan,) = ctx.saved_tensors
        flow = grad * plan
        flow = (flow + flow.mT) / 2
        system = plan + torch.diag_embed(plan.sum(-1))
        moved = torch.linalg.solve_ex(system, flow.sum(-1, keepdim=True))[0].squeeze(-1)
        return (flow - plan * (moved.unsqueeze(-1) + moved.unsqueeze(-2))) / ctx.epsilon, None, None
