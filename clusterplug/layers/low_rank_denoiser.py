# SPDX-License-Identifier: Apache-2.0
"""A denoiser whose only parameters are subspaces, so that its training clusters them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_count, check_points
from clusterplug.core.numerics import keep_fp32
from clusterplug.functional import low_rank_posterior_mean, orthonormal_frame
from clusterplug.registry import MODELS

__all__ = ['LowRankDenoiser']


@MODELS.register_module()
class LowRankDenoiser(nn.Module):
    r"""The optimal denoiser of a mixture of low-rank Gaussians, with its subspaces as parameters.

    :func:`~clusterplug.functional.low_rank_posterior_mean` with bases that are the orthonormal frames of a free
    matrix, so any optimizer may train it. Minimizing :class:`~clusterplug.losses.DenoisingLoss` over them is PCA for
    one component and k-subspaces for several.

    Args:
        in_channels: D, width of the points.
        dims: Dimension of each component: a sequence of K ints.
        soft: Weights of the components as the noisy point tells (True), or the one component with the largest
            projection of the clean point, where it is given, else of the noisy one (the form of theorem 3).
        orthogonal: Whether the components are orthogonal to each other as well, as in the paper; needs
            sum(dims) <= D.
        learn_weights: Train the log-probabilities of the components; else they stay equal.

    Inputs of ``forward``:
        x: (..., N, D) noisy points. signal, noise: numbers or (..., N), as in the function. clean: (..., N, D) clean
        points, for ``soft=False``.

    Returns of ``forward``:
        (..., N, D) in the type of ``x``. Parameters stay fp32 in a model that is cast.

    Raises:
        ValueError: sum(dims) > D with ``orthogonal``, or a dimension above D.

    Source: Wang et al. 2024 (arXiv 2409.02426), equations 8 and 13; the official code names this model
    (``param-mlp``) but does not hold it. **Differs**: components need not be orthogonal to each other.

    Example:
        >>> denoiser = LowRankDenoiser(6, [2, 1])
        >>> denoiser(torch.ones(4, 6), 0.7, 0.5).shape, [tuple(each.shape) for each in denoiser.bases()]
        (torch.Size([4, 6]), [(6, 2), (6, 1)])
    """

    def __init__(
        self,
        in_channels: int,
        dims: Sequence[int],
        *,
        soft: bool = True,
        orthogonal: bool = True,
        learn_weights: bool = False,
    ):
        super().__init__()
        self.in_channels = check_count(in_channels, 'in_channels', 1)
        if isinstance(dims, int) or not len(dims):
            raise ValueError(f'dims must hold the dimension of each component, such as [4, 4], got {dims!r}')
        self.dims = tuple(check_count(each, 'dims', 1, self.in_channels) for each in dims)
        if orthogonal and sum(self.dims) > self.in_channels:
            raise ValueError(
                f'orthogonal components need sum(dims) <= in_channels, got {sum(self.dims)} > {self.in_channels}; '
                f'lower dims or set orthogonal=False'
            )
        self.soft, self.orthogonal = bool(soft), bool(orthogonal)
        self.weight = nn.Parameter(torch.empty(self.in_channels, sum(self.dims)))
        self.log_weights = nn.Parameter(torch.zeros(len(self.dims))) if learn_weights else None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the subspaces anew, uniformly."""
        with torch.no_grad():
            drawn = torch.empty(self.weight.shape, device='cpu' if generator is None else generator.device)
            self.weight.copy_(drawn.normal_(generator=generator))
            if self.log_weights is not None:
                self.log_weights.zero_()

    @torch.no_grad()
    def set_bases(self, bases: Tensor | Sequence[Tensor]) -> None:
        """Start at given bases, (K, D, d) or K tensors (D, d_k).

        With ``orthogonal`` the nearest frame of all of them together is taken.
        """
        parts = list(bases)
        if [tuple(part.shape) for part in parts] != [(self.in_channels, dim) for dim in self.dims]:
            raise ValueError(
                f'bases must be tensors {[(self.in_channels, dim) for dim in self.dims]}, got '
                f'{[tuple(part.shape) for part in parts]}'
            )
        joined = torch.cat([part.to(self.weight) for part in parts], 1)
        joined = orthonormal_frame(joined, 'polar') if self.orthogonal else joined
        # entries of the size of drawn ones: the length does not matter but for how far a step of Adam turns
        self.weight.copy_(joined * self.in_channels**0.5)

    def bases(self) -> list[Tensor]:
        """Return the orthonormal bases (D, d_k) of the components, with their gradient."""
        if self.orthogonal:
            return list(orthonormal_frame(self.weight).split(self.dims, 1))
        if len(set(self.dims)) == 1:  # one batch of factorizations
            return list(orthonormal_frame(self.weight.unflatten(1, (len(self.dims), -1)).transpose(0, 1)).unbind())
        return [orthonormal_frame(part) for part in self.weight.split(self.dims, 1)]

    def forward(self, x: Tensor, signal: float | Tensor, noise: float | Tensor, clean: Tensor | None = None) -> Tensor:
        bases = self.bases()
        labels = None if self.soft else self.assign(x if clean is None else clean, bases)
        return low_rank_posterior_mean(
            x, bases, signal=signal, noise=noise, log_weights=self.log_weights, labels=labels
        )

    @torch.no_grad()
    def assign(self, x: Tensor, bases: Sequence[Tensor] | None = None) -> Tensor:
        """Return the component with the largest projection of each point (..., N, D): (..., N) int64."""
        check_points(x, allow_empty=True)
        bases = self.bases() if bases is None else bases
        along = (x.to(bases[0].dtype) @ torch.cat(list(bases), -1)).square()
        return torch.stack([part.sum(-1) for part in along.split(self.dims, -1)], -1).argmax(-1)

    def _apply(self, fn, recurse=True):
        return super()._apply(keep_fp32(fn), recurse)

    def extra_repr(self) -> str:
        return f'{self.in_channels}, {list(self.dims)}, soft={self.soft}, orthogonal={self.orthogonal}'
