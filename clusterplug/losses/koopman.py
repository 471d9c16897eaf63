# SPDX-License-Identifier: Apache-2.0
"""Terms that give sequence embeddings linear dynamics without collapse."""

import torch
from torch import Tensor, nn

from clusterplug.core.checks import check_choice, check_count, check_number
from clusterplug.core.distributed import sum_ranks, world_size
from clusterplug.core.numerics import keep_fp32, no_autocast
from clusterplug.functional import linear_dynamics, spectral_entropy, temporal_contrast
from clusterplug.registry import MODELS

__all__ = ['KoopmanLoss']


@MODELS.register_module()
class KoopmanLoss(nn.Module):
    r"""Make the latents of sequences predictable by a linear map, coherent in time, and spread over many modes.

    .. math:: L = \alpha \, \mathrm{NCE}(z) + \beta \lVert z_{t+1} - z_t K \rVert^2
              - \gamma \, S(C / \mathrm{tr}\, C)

    with S the von Neumann entropy of the covariance of all latents, which is **maximized**: without it the weak modes
    are switched off. Next to any reconstruction loss, or as a regularizer of embeddings of sequences.

    Args:
        embed_dims: D.
        operator: K: 'ridge' = fitted to each batch (mean over sequences, without gradient), 'learned' = a parameter,
            'orthogonal' = a parameter that only rotates, so that no mode grows or dies.
        ridge: Of the fit.
        num_neighbors: k of the temporal contrast.
        temperature: Of it.
        contrast_weight: alpha; 0 leaves the term out.
        consistency_weight: beta; likewise.
        entropy_weight: gamma; likewise.
        loss_weight: Factor on all terms.
        gather: Where it runs on several ranks, fit K to and take the entropy of the latents of all of them: then the
            mean over ranks of losses and of gradients is that of one process with the joined batch, also where ranks
            hold different numbers of sequences, or none. Ranks exchange D x D sums. All must call it in the same step.

    Shapes:
        ``latents`` (B, T, D); ``next_latents`` (B, T, D) the successors of each, where they were encoded in a pass of
        their own, as the authors do; else the latents shifted by one.

    Returns of ``forward``:
        dict with ``loss_contrast``, ``loss_consistency``, ``loss_entropy`` (at most 0), 0-dim in fp32 at least.

    Raises:
        ValueError, TypeError: T <= 2 k, another width, values out of range, on the CPU NaN or inf.

    Source: Cheng et al., "Information Shapes Koopman Representation", ICLR 2026 (arXiv 2510.13025); official code
    Wenxuan52/InformationKoopman (no license), ``model/physical_simulation/base.py``.

    **Differs from the authors' code**: theirs adds the entropy, so minimizes it, against the paper; it has no
    consistency term, and ignores k and tau of its own configs.

    Example:
        >>> loss = KoopmanLoss(8)
        >>> terms = loss(torch.randn(2, 16, 8))
        >>> sorted(terms), bool(terms['loss_entropy'] < 0)
        (['loss_consistency', 'loss_contrast', 'loss_entropy'], True)
    """

    def __init__(
        self,
        embed_dims: int,
        operator: str = 'ridge',
        *,
        ridge: float = 0.1,
        num_neighbors: int = 3,
        temperature: float = 0.1,
        contrast_weight: float = 2.0,
        consistency_weight: float = 1.0,
        entropy_weight: float = 0.1,
        loss_weight: float = 1.0,
        gather: bool = True,
    ):
        super().__init__()
        self.embed_dims = check_count(embed_dims, 'embed_dims', 1)
        self.operator = check_choice(operator, 'operator', ('ridge', 'learned', 'orthogonal'))
        self.ridge = check_number(ridge, 'ridge', 0)
        self.num_neighbors = check_count(num_neighbors, 'num_neighbors', 1)
        self.temperature = check_number(temperature, 'temperature', above=0)
        self.contrast_weight = check_number(contrast_weight, 'contrast_weight', 0)
        self.consistency_weight = check_number(consistency_weight, 'consistency_weight', 0)
        self.entropy_weight = check_number(entropy_weight, 'entropy_weight', 0)
        self.loss_weight = check_number(loss_weight, 'loss_weight', 0)
        self.gather = gather
        start = {'learned': torch.eye(embed_dims), 'orthogonal': torch.zeros(embed_dims, embed_dims)}.get(operator)
        self.weight = None if start is None else nn.Parameter(start)

    def _apply(self, fn, recurse=True):
        """Move with the model, but stay fp32 when it is cast."""
        return super()._apply(keep_fp32(fn), recurse)

    def dynamics(self, latents: Tensor | None = None, next_latents: Tensor | None = None) -> Tensor:
        """(D, D) the map K with z_next = z K: the learned one, or fitted to the given latents, without gradient.

        With ``gather``, fitted to those of all ranks, all of which must call it in the same step then.
        """
        if self.weight is not None:
            if self.operator == 'learned':
                return self.weight
            with no_autocast(self.weight):
                return torch.linalg.matrix_exp(self.weight - self.weight.mT)
        if latents is None:
            raise ValueError("latents must be given for operator='ridge', which is fitted to them")
        one, other = _pairs(latents, next_latents)
        fitted = linear_dynamics(one.detach(), other.detach(), ridge=self.ridge).flatten(0, -3)
        if not self._across_ranks:
            return fitted.mean(0)
        return sum_ranks(fitted.sum(0)) / sum_ranks(fitted.new_full((), len(fitted)))

    @property
    def _across_ranks(self) -> bool:
        return self.gather and world_size() > 1

    def _mean(self, mean: Tensor, number: int) -> Tensor:
        """A mean over ``number`` things so that the mean over ranks is that over the things of all ranks."""
        if not self._across_ranks:
            return mean
        total = sum_ranks(mean.new_full((), number))
        return mean * (number * world_size() / total.clamp(min=1))

    def forward(self, latents: Tensor, next_latents: Tensor | None = None) -> dict[str, Tensor]:
        if not isinstance(latents, Tensor) or latents.dim() != 3 or latents.shape[-1] != self.embed_dims:
            got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ValueError(f'latents must have shape (B, T, {self.embed_dims}), got {got}')
        if next_latents is not None and next_latents.shape != latents.shape:
            raise ValueError(
                f'next_latents must have the shape of latents, {tuple(latents.shape)}, got {tuple(next_latents.shape)}'
            )
        latents = latents if latents.dtype == torch.float64 else latents.float()
        next_latents = None if next_latents is None else next_latents.to(latents.dtype)
        losses = {}
        with no_autocast(latents):
            if self.contrast_weight:
                term = temporal_contrast(latents, num_neighbors=self.num_neighbors, temperature=self.temperature)
                anchors = len(latents) * (latents.shape[1] - 2 * self.num_neighbors)
                losses['loss_contrast'] = self.contrast_weight * self._mean(term, anchors)
            if self.consistency_weight:
                one, other = _pairs(latents, next_latents)
                gap = (other - one @ self.dynamics(latents, next_latents).to(one.dtype)).square()
                term = gap.mean() if gap.numel() else gap.sum()
                losses['loss_consistency'] = self.consistency_weight * self._mean(term, gap.numel())
            if self.entropy_weight:
                entropy = spectral_entropy(latents.flatten(0, 1), across_ranks=self._across_ranks)
                losses['loss_entropy'] = -self.entropy_weight * entropy
        return {name: self.loss_weight * value for name, value in losses.items()}


def _pairs(latents: Tensor, next_latents: Tensor | None) -> tuple[Tensor, Tensor]:
    if next_latents is None:
        return latents[..., :-1, :], latents[..., 1:, :]
    return latents, next_latents
